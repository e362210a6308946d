"""The facts about data sets, and reading them without torch."""

from __future__ import annotations

import subprocess
import sys

from robobench.data.info import DATASETS, dataset_info


def test_radii_belong_to_data_sets():
    """The user's own data have the radii of CIFAR."""
    digits = dataset_info("digits")
    assert (digits.eps["Linf"], digits.train_eps["Linf"]) == ((0.05, 0.1), 0.1)
    assert (digits.eps["L2"], digits.train_eps["L2"]) == ((1.0, 2.0), 2.0)
    for name in ("cifar10", "cifar100", "npz:mine.npz", "imagefolder:mine"):
        info = dataset_info(name)
        assert (info.eps["Linf"], info.train_eps["Linf"]) == ((8 / 255, 16 / 255), 8 / 255)
        assert (info.eps["L2"], info.train_eps["L2"]) == ((0.5, 1.0), 0.5)


def test_facts_need_no_torch():
    code = "import sys; from robobench.data.info import *; dataset_info('digits'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert all(len(info.summary.splitlines()) == 1 for info in DATASETS.values())
