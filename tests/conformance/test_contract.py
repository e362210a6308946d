"""Every registered defense and attack passes the contract checks that third-party plug-ins must pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robobench.plugins.discovery import KINDS, discover
from robobench.testing import Blobs, check_plugin

NAMES = [(kind, name) for kind in KINDS for name, found in discover(kind).items() if found.library is None]
BAD_ATTACKS = '''
import torch
from robobench.api import ATTACKS, Attack, DEFAULT_OPTIONS


@ATTACKS.register("leaves-the-ball")
class LeavesTheBall(Attack):
    """Adds noise of twice the radius, from torch's global generator."""

    def attack_full_budget(self, model, images, labels, rng, options=DEFAULT_OPTIONS):
        return (images + 2 * self.threat.eps * torch.rand_like(images)).clamp(0, 1)


@ATTACKS.register("writes-to-its-input")
class WritesToItsInput(Attack):
    """Moves the images in place."""

    def attack_full_budget(self, model, images, labels, rng, options=DEFAULT_OPTIONS):
        return images.mul_(1 - self.threat.eps / 100)
'''


@pytest.mark.parametrize(("kind", "name"), NAMES, ids=[name for _, name in NAMES])
def test_plugin_passes_contract(kind, name, tmp_path):
    if name == "transfer":  # it takes a file
        np.savez(tmp_path / "adv.npz", adv=Blobs(num_classes=4).images(torch.arange(48)).numpy())
        name = f"transfer:{tmp_path / 'adv.npz'}"
    findings = list(check_plugin(name))
    assert len(findings) >= 5
    assert [f"{check}: {problem}" for _, _, check, problem in findings if problem] == []


def test_bad_plugins_are_caught(tmp_path):
    (tmp_path / "bad.py").write_text(BAD_ATTACKS)
    problems = {(name, check): problem for _, name, check, problem in check_plugin(str(tmp_path / "bad.py")) if problem}
    assert "left the threat model" in problems["leaves-the-ball", "stays in threat model (Linf)"]
    assert "differ" in problems["leaves-the-ball", "deterministic (Linf)"]
    assert "global generator" in problems["leaves-the-ball", "no side effects (Linf)"]
    assert "input images in place" in problems["writes-to-its-input", "no side effects (Linf)"]
    assert "deterministic" not in {check.split(" (")[0] for name, check in problems if name == "writes-to-its-input"}
