import subprocess
import sys

from robobench.cli import main

FACTORY = """import torch
from torch import nn


def net(num_classes):
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, num_classes))
"""
PLUGIN = '''import sys

from robobench.api import ATTACKS
from robobench.attacks.fgsm import FGSM


@ATTACKS.register("spy")
class Spy(FGSM):
    """Prints what is imported when it starts."""

    def start(self, *args, **kwargs):
        heavy = ("timm", "torchvision", "torchattacks", "sklearn", "pandas", "matplotlib", "scipy")
        print("imported:", *(name for name in heavy if name in sys.modules))
        return super().start(*args, **kwargs)
'''


def test_evaluating_user_factory_imports_no_heavy_package(tmp_path):
    (tmp_path / "mine.py").write_text(FACTORY)
    (tmp_path / "spy.py").write_text(PLUGIN)
    command = "evaluate --model mine.py:net --attacks spy --plugin spy.py --examples 4 --threads 1 --eps 0.1 -q"
    done = subprocess.run(
        [sys.executable, "-m", "robobench", *command.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == ["imported:"]


def test_model_without_published_weights_needs_a_file(tmp_path, capsys):
    assert main(["evaluate", "--model", "cnn", "--out", str(tmp_path / "runs")]) == 2
    assert "model 'cnn' has no published weights; give a file" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
