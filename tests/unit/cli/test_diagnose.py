import json

from robobench.cli import main

FACTORY = """
import torch
from torch import nn


def net(k):
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, k), nn.Softmax(1))
"""


def test_diagnose_checks_user_model(tmp_path, capsys, monkeypatch):
    """It stores nothing."""
    (tmp_path / "mine.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    small = ["--examples", "20", "--attacks", "pgd", "--set", "pgd.steps=3", "--threads", "1"]
    assert main(["diagnose", "--model", "mine.py:net", *small, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "softmax-output" in found["flags"] and found["examples"] == 20
    assert len(found["traces"]) == 2 and len(found["traces"][0]["loss"]) == 4
    assert main(["diagnose", "--model", "mine.py:net", *small]) == 0
    said, progress = capsys.readouterr()
    assert "Verdict: signs of gradient masking in " in said and "20 images are few" in said
    assert "diagnose: pgd at Linf 0.05 on " in progress and "diagnose: pgd with 100 steps at Linf 0.5" in progress
    assert main(["diagnose", "--model", "mine.py:net", "--examples", "5"]) == 2
    assert "--examples 5 is too few" in capsys.readouterr().err
    assert main(["diagnose", "none.pt", "--model", "cnn"]) == 2
    assert "no weights file 'none.pt'" in capsys.readouterr().err
    assert main(["diagnose", "nobody", "--model", "cnn"]) == 2
    assert "holds no model called 'nobody'" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir() if p.name != "__pycache__"] == ["mine.py"]
