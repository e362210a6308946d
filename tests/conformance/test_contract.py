"""Every registered defense and attack keeps the contract a stranger's is held to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robobench.plugins.discovery import KINDS, discover
from robobench.testing import Blobs, check_plugin

NAMES = [(kind, name) for kind in KINDS for name in discover(kind)]


@pytest.mark.parametrize(("kind", "name"), NAMES, ids=[name for _, name in NAMES])
def test_the_contract_holds(kind, name, tmp_path):
    if name == "transfer":  # it takes a file
        np.savez(tmp_path / "adv.npz", adv=Blobs(num_classes=4).images(torch.arange(48)).numpy())
        name = f"transfer:{tmp_path / 'adv.npz'}"
    findings = list(check_plugin(name))
    assert len(findings) >= 5
    broken = [f"{check}: {problem}" for _, _, check, problem in findings if problem]
    assert not broken


def test_a_plugin_that_breaks_the_contract_is_caught(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text(
        "import torch\nfrom robobench.api import ATTACKS, Attack\n\n\n"
        '@ATTACKS.register("leaves-the-ball")\nclass Leaves(Attack):\n    """Adds too much."""\n\n'
        "    def perturb(self, model, images, labels, noise):\n"
        "        return (images + 2 * self.threat.eps * torch.rand_like(images)).clamp(0, 1)\n"
    )
    broken = {check: problem for _, _, check, problem in check_plugin(str(bad)) if problem}
    assert "left the threat model" in broken["in threat model (Linf)"]
    assert "differ" in broken["same twice (Linf)"]
    assert "global generator" in broken["leaves no trace (Linf)"]
