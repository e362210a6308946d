"""Attacks through the Python interface: odd input gives a result or one clear line; examples made elsewhere."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import robobench
from robobench.attacks.mifgsm import MIFGSM, MIFGSMConfig
from robobench.attacks.pgd import CW, CWConfig
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.errors import RequestError, ThreatModelError
from robobench.plugins.discovery import KINDS, code_digest, discover, load_attack, parse_attack_spec
from tests.helpers.toys import LinearTwoClass

SMALL = {
    **{name: {"steps": 2} for name in ("pgd", "jitter", "cw", "mifgsm", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t")},
    "noise": {"draws": 2},
    "square": {"queries": 3},
    "autoattack": {"steps": 2, "targets": 2, "queries": 3},
    "fgsm": {},
}


@pytest.fixture(autouse=True, scope="module")
def names_read_once():
    """Read the plug-ins' sources once, not for each example."""
    found, kept = discover, {kind: discover(kind) for kind in KINDS}
    discover = kept.__getitem__
    yield
    discover = found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(SMALL)),
    norm=st.sampled_from(["Linf", "L2"]),
    eps=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 1e-30])),
    count=st.integers(0, 3),
    channels=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    classes=st.sampled_from([2, 3, 4, 5, 10, 200]),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float64, torch.float16]),
    layout=st.sampled_from(["plain", "transposed", "strided"]),
)
def test_any_input_gives_images_in_the_ball_or_one_clear_line(
    name, norm, eps, count, channels, height, width, classes, dtype, layout
):
    torch.manual_seed(count * 1000 + height * 10 + width)
    if layout == "strided":
        images = torch.rand(2 * count, channels, height, 2 * width)[::2, :, :, ::2]
    else:
        images = torch.rand(count, channels, *((width, height) if layout == "transposed" else (height, width)))
        images = images.transpose(2, 3) if layout == "transposed" else images
    images, labels = images.to(dtype), torch.arange(count) % classes
    kept, net = (
        images.clone(),
        nn.Sequential(nn.Flatten(), nn.Linear(images[:1].numel() or channels * height * width, classes)),
    )
    try:
        adv = robobench.attack(name, net.to(dtype), images, labels, eps=eps, norm=norm, **SMALL[name])
    except RequestError as err:
        assert "\n" not in str(err)
        expected = dtype == torch.float16 or (name, norm) == ("jitter", "L2")
        assert expected or (name, classes) in {("apgd-dlr", 2), ("apgd-t", 2), ("apgd-t", 3)}
        return
    ThreatModel(norm, eps).check(adv, images, name)
    assert adv.dtype == dtype and torch.equal(images, kept)


def test_a_loss_that_a_model_has_too_few_classes_for_is_refused_by_name():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(RequestError, match="'apgd-t' needs at least 4 classes, the model has 3; use apgd-ce"):
        robobench.attack("apgd-t", net, torch.rand(2, 3, 2, 2), torch.zeros(2).long(), eps="8/255")


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_steps_that_cannot_cross_the_ball_from_their_start_are_warned_about(norm):
    threat = ThreatModel(norm, 0.1)
    assert MIFGSM(MIFGSMConfig(), threat).warnings() == []  # from the clean image 10 steps of 0.1 eps reach the surface
    (said,) = MIFGSM(MIFGSMConfig(steps=5), threat).warnings()
    assert "5 steps of 0.1 eps reach 0.5 eps in all; below 1 eps" in said
    (said,) = CW(CWConfig(steps=10, relative_step=0.1), threat).warnings()
    assert "reach 1 eps in all; below 2 eps" in said


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("make", [lambda t: CW(CWConfig(), t), lambda t: MIFGSM(MIFGSMConfig(), t)])
def test_the_new_gradient_attacks_reach_the_optimum_of_a_linear_model(make, norm):
    model, threat = LinearTwoClass((3, 6, 6)).requires_grad_(False), ThreatModel(norm, 0.05)
    images, labels = torch.full((3, 3, 6, 6), 0.5), torch.zeros(3, dtype=torch.long)
    drop = -model.gap(make(threat).perturb(model, images, labels, KeyedRng.of(torch.arange(3), 0)))
    best = 0.05 * model.w.norm(1 if norm == "Linf" else 2)
    torch.testing.assert_close(drop, best.expand(3), rtol=2e-3, atol=1e-6)


def test_momentum_is_the_decayed_sum_of_gradients_of_length_one():
    model, attack = LinearTwoClass((1, 2, 2)), MIFGSM(MIFGSMConfig(decay=0.5), ThreatModel("Linf", 0.1))
    state = attack.start(torch.full((1, 1, 2, 2), 0.5), torch.zeros(1).long(), KeyedRng.of(torch.arange(1), 0))
    for _ in range(3):
        state, _ = attack.step(model, state)
    unit = (-model.w / model.w.norm(1)).view(1, 1, 2, 2)
    torch.testing.assert_close(state.memory["momentum"], 1.75 * unit.detach())
    torch.testing.assert_close(state.adv, 0.5 + 0.03 * unit.sign())


def test_noise_draws_anew_and_keeps_the_worst_draw():
    model, images = LinearTwoClass((3, 6, 6)).requires_grad_(False), torch.full((4, 3, 6, 6), 0.5)
    gaps = [
        model.gap(robobench.attack("noise", model, images, torch.zeros(4).long(), eps=0.05, draws=draws))
        for draws in (1, 2, 40)
    ]
    assert (gaps[1] <= gaps[0]).all() and (gaps[2] < gaps[0]).all()


# --- transfer:FILE --------------------------------------------------------------------------------


@pytest.fixture
def made_elsewhere(tmp_path):
    """Examples for 6 images, on a network that errs where the first pixel is dark, as three kinds of file."""
    images = torch.full((6, 3, 2, 2), 0.5)
    adv = images.clone()
    adv[::2, 0, 0, 0] -= 0.05
    np.savez(tmp_path / "a.npz", adv=adv.numpy(), labels=np.zeros(6))
    save_file({"x_adv": adv}, tmp_path / "a.safetensors")
    torch.save({"adv": adv}, tmp_path / "a.pt")
    return tmp_path, images, adv


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pt"])
def test_examples_made_elsewhere_come_back_by_the_number_of_their_image(made_elsewhere, suffix):
    folder, images, adv = made_elsewhere
    cls, values = parse_attack_spec(f"transfer:{folder / 'a'}.{suffix}")
    attack = cls(cls.Config(**values), ThreatModel("Linf", 0.06))
    rows = torch.tensor([4, 1, 2])
    picked = torch.tensor([0, 2])
    rng = KeyedRng.of(rows, "any")[picked].child("part", 1)
    found = attack.attack_early_stop(nn.Flatten(), images[rows][picked], torch.zeros(2).long(), rng)
    assert torch.equal(found.adv, adv[[4, 2]])


def test_examples_outside_the_ball_or_missing_or_pickled_are_refused(made_elsewhere):
    folder, images, _ = made_elsewhere
    name, labels, net = f"transfer:{folder / 'a.npz'}", torch.zeros(6).long(), nn.Flatten()
    assert torch.equal(robobench.attack(name, net, images, labels, eps=0.06), made_elsewhere[2])
    with pytest.raises(ThreatModelError, match="left the threat model on 3 of 6 images"):
        robobench.attack(name, net, images, labels, eps=0.04)
    with pytest.raises(RequestError, match="holds 6 images, test image 6 has none there"):
        robobench.attack(name, net, images[[0] * 7], labels[[0] * 7], eps=0.06)
    with pytest.raises(RequestError, match=r"no examples at .* give an \.npz"):
        robobench.attack(f"transfer:{folder / 'b.npz'}", net, images, labels, eps=0.06)
    for wrong, line in (("transfer", "write transfer:FILE"), ("pgd:8", "write 'pgd' alone")):
        with pytest.raises(RequestError, match=line):
            robobench.attack(wrong, net, images, labels, eps=0.06)
    torch.save(ThreatModel("Linf", 0.1), folder / "code.pt")
    np.savez(folder / "code.npz", adv=np.array([ThreatModel("Linf", 0.1)], dtype=object))
    for file in ("code.pt", "code.npz"):
        with pytest.raises(RequestError, match="cannot read"):
            robobench.attack(f"transfer:{folder / file}", net, images, labels, eps=0.06)


def test_another_content_under_the_same_name_is_another_attack(made_elsewhere):
    folder, _, adv = made_elsewhere
    cls, values = parse_attack_spec(f"transfer:{folder / 'a.npz'}")
    before = cls.Config(**values)
    np.savez(folder / "a.npz", adv=adv.numpy() / 2)
    assert before != cls.Config(**values)


def test_an_ensembles_digest_changes_with_its_parts(monkeypatch):
    cls = load_attack("autoattack")
    before = code_digest(cls)
    monkeypatch.setattr(cls, "uses", cls.component_names[:-1])
    assert code_digest(cls) != before
