"""`transfer:FILE`: adversarial examples from a file."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import robobench
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.errors import RequestError, ThreatModelError
from robobench.plugins.discovery import parse_attack_spec


@pytest.fixture
def example_files(tmp_path):
    """Examples of 6 images in three kinds of file; every second one has a darker first pixel."""
    images = torch.full((6, 3, 2, 2), 0.5)
    adv = images.clone()
    adv[::2, 0, 0, 0] -= 0.05
    np.savez(tmp_path / "a.npz", adv=adv.numpy(), labels=np.zeros(6))
    save_file({"x_adv": adv}, tmp_path / "a.safetensors")
    torch.save({"adv": adv}, tmp_path / "a.pt")
    return tmp_path, images, adv


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pt"])
def test_examples_are_matched_by_image_index(example_files, suffix):
    folder, images, adv = example_files
    cls, values = parse_attack_spec(f"transfer:{folder / 'a'}.{suffix}")
    attack = cls(cls.Config(**values), ThreatModel("Linf", 0.06))
    rows = torch.tensor([4, 1, 2])
    kept = torch.tensor([0, 2])
    rng = KeyedRng.of(rows, "any")[kept].child("part", 1)
    result = attack.attack_early_stop(nn.Flatten(), images[rows][kept], torch.zeros(2).long(), rng)
    assert torch.equal(result.adv, adv[[4, 2]])


def test_bad_example_files_are_refused(example_files):
    """Images outside the ball, too few images, a missing file, and pickled objects."""
    folder, images, adv = example_files
    name, labels, net = f"transfer:{folder / 'a.npz'}", torch.zeros(6).long(), nn.Flatten()
    assert torch.equal(robobench.attack(name, net, images, labels, eps=0.06), adv)
    with pytest.raises(ThreatModelError, match="left the threat model on 3 of 6 images"):
        robobench.attack(name, net, images, labels, eps=0.04)
    with pytest.raises(RequestError, match="holds 6 images, and none for test image 6"):
        robobench.attack(name, net, images[[0] * 7], labels[[0] * 7], eps=0.06)
    with pytest.raises(RequestError, match=r"no adversarial examples at .* give an \.npz"):
        robobench.attack(f"transfer:{folder / 'b.npz'}", net, images, labels, eps=0.06)
    for wrong, line in (("transfer", "write transfer:FILE"), ("pgd:8", "write 'pgd' alone")):
        with pytest.raises(RequestError, match=line):
            robobench.attack(wrong, net, images, labels, eps=0.06)
    torch.save(ThreatModel("Linf", 0.1), folder / "code.pt")
    np.savez(folder / "code.npz", adv=np.array([ThreatModel("Linf", 0.1)], dtype=object))
    for file in ("code.pt", "code.npz"):
        with pytest.raises(RequestError, match="cannot read"):
            robobench.attack(f"transfer:{folder / file}", net, images, labels, eps=0.06)


def test_changed_file_changes_config(example_files):
    folder, _, adv = example_files
    cls, values = parse_attack_spec(f"transfer:{folder / 'a.npz'}")
    before = cls.Config(**values)
    np.savez(folder / "a.npz", adv=adv.numpy() / 2)
    assert before != cls.Config(**values)
