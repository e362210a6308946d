"""Every command of the three pages in docs/tasks runs, in its order and with smaller sizes."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from robobench.cli import main
from robobench.report.board_folder import write_snapshot

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "docs" / "tasks"
BOARD = "leaderboards/cifar10-jpeg-resnet20"
TRADES = "trades-resnet20-cifar10-s0-b05cfb1126"
# Smaller values for the commands of the pages.
SMALL = {"run.train_images=256": "run.train_images=64", "50": "20", "3": "1"}
NET = """from torch import nn


def net(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, num_classes))
"""


def run_page(name: str, replaced: dict[str, str], capsys: pytest.CaptureFixture[str]) -> list[tuple[list[str], str]]:
    """Run every command of a page with some words replaced; return the words and the output of each."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (TASKS / name).read_text(), re.DOTALL | re.MULTILINE)
    out = []
    for command in "".join(blocks).splitlines():
        program, *words = shlex.split(command)
        assert program == "robobench"
        words = [text for word in words for text in replaced.get(word, word).split()]
        status = main(words)
        shown = capsys.readouterr()
        assert status == 0, (command, shown.err)
        out.append((words, shown.out))
    return out


def write_smooth_at(folder: Path) -> None:
    """Write the defense of the README."""
    found = re.search(r"```python\n(# smooth_at\.py.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    (folder / "smooth_at.py").write_text(found[1])


def test_student_fills_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_smooth_at(tmp_path)
    outputs = run_page("student.md", SMALL, capsys)
    plan = next(text for words, text in outputs if "--dry-run" in words)
    assert plan.startswith("estimated on this machine") and "smooth-at on cnn x 2 seeds" in plan
    table, latex = (text for words, text in outputs if words[0] == "leaderboard")
    assert "±" in table and re.search(r"^ *\d +smooth-at +2 ", table, re.MULTILINE)
    assert r"$\pm$" in latex and "AT & 2 &" in latex and r"\ell_\infty" in latex
    assert re.search(r"smooth-at \(seed 0\) - at", outputs[-1][1])


def test_engineer_gets_verdict_report_and_gate(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        folder = tmp_path / "photos" / "test" / name
        folder.mkdir(parents=True)
        for number in range(8):
            pixels = draw.integers(0, 120, (32, 32, 3), np.uint8) + (100 if name == "dog" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    linear = nn.Linear(192, 2)  # brighter pictures are dogs
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 192))
        linear.bias.copy_(torch.tensor([84.0, -84.0]))
    torch.save({"2.weight": linear.weight, "2.bias": linear.bias}, tmp_path / "weights.pt")
    small = "imagefolder:photos --set run.attack_resolution=32 --set run.image_size=32 --threads 1"
    replaced = {"--minutes": "--attacks", "10": "fgsm,pgd", "imagefolder:photos": small}
    outputs = run_page("engineer.md", replaced, capsys)
    assert len(outputs) <= 5
    assert "Of 16 images 16 are classified correctly" in outputs[0][1] and "external:v2.3" in outputs[0][1]
    assert "Verdict:" in outputs[1][1]
    assert (tmp_path / "runs" / "report.html").is_file()
    (model,) = json.loads((tmp_path / "result.json").read_text())["models"]
    assert model["worst_case"][0]["eps"] == "8/255" and model["worst_case"][0]["accuracy"] >= 0.3
    again = [
        *outputs[-1][0],
        "--fail-under",
        "1.0@Linf:8/255",
        "--mean",
        "0.4,0.4,0.4",
        "--std",
        "1,1,1",
    ]  # another model: all dogs
    assert main(again) == 1 and "gate missed: worst case" in capsys.readouterr().err
    assert main([*outputs[-1][0], "--fail-under", "0.3@L2:1"]) == 2


def test_reviewer_attacks_a_board_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--epochs", "1", "--examples", "24", "--set", "run.train_images=64", "--threads", "1"]
    assert main(["run", "trades", *small, "--attacks", "pgd,fgsm", "-q"]) == 0
    write_snapshot(tmp_path / "runs", tmp_path / "board")
    (name,) = (folder.name for folder in (tmp_path / "board").glob("trades-*"))
    capsys.readouterr()
    replaced = {
        BOARD: "board", f"{BOARD}/{TRADES}": f"board/{name}", TRADES: name, "pgd.steps=100": "pgd.steps=4",
        "100": "24", "--data-dir": "", "DIR": "", "eps=8/255": "eps=0.05", "8/255": "0.05",
    }  # fmt: skip
    outputs = run_page("reviewer.md", replaced, capsys)
    assert "reproduced: trades (seed 0), pgd" in outputs[1][1]
    assert "recorded: pgd (steps=20" in outputs[2][1] and "Of 24 images" in outputs[2][1]
    assert "Verdict:" in outputs[3][1]
    wrong = ["reproduce", "board", "--filter", "defense=at"]
    assert main(wrong) == 2 and "matches no row; values: standard, trades" in capsys.readouterr().err
