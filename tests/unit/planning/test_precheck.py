"""Requests are checked without torch, and their names are spelled as known."""

import subprocess
import sys


def test_check_needs_no_torch():
    """Refusals come before the seconds in which torch and timm are imported."""
    code = (
        "import sys; from robobench.planning.precheck import check_request; "
        "from robobench.planning.request import ExperimentConfig; "
        "check_request(ExperimentConfig(defenses=('AT',), attacks=('PGD',), teachers=('robust=timm:x',))); "
        "assert not {'torch', 'timm', 'pandas', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
