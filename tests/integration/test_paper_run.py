"""`robobench paper run` with tiny settings: killed and resumed; its rows and figures."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time

import pytest

from robobench.cli import main
from robobench.report.leaderboard import rank_models
from robobench.results.rows import read_rows

TINY = [
    *("--epochs", "1", "--examples", "8", "--threads", "1", "--quiet", "--set", "run.train_images=32"),
    *("--set", "macd.mae_epochs=1", "--set", "macd.encoder_depth=1", "--set", "macd.decoder_depth=1"),
    *("--set", "macd.static_steps=1"),
]
FAST = [*TINY, "--set", "pgd.steps=2", "--set", "torchattacks-pgd.steps=2"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Return a store whose first run was killed after the second ablation was trained, and the files it held then."""
    out = tmp_path_factory.mktemp("paper") / "runs"
    command = [sys.executable, "-m", "robobench", "paper", "run", "5", *FAST, "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 900
    try:
        while len(list(out.glob("macd-*"))) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    return out, {path: path.stat().st_mtime_ns for path in out.glob("*/timing.json")}


def test_killed_run_resumes(killed, capsys, tmp_path):
    out, held = killed
    assert 2 <= sum(path.parent.name.startswith("macd-") for path in held) < 5
    arguments = ["paper", "run", "5", *FAST, "--out", str(out), "--rows", str(tmp_path / "rows.csv")]
    assert main([*arguments, "--format", "json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in compared] == [f"T5-{n}" for n in range(288, 293)]
    assert all(row["accuracy"] is not None and not row["reason"] for row in compared)
    assert len(list(out.glob("macd-*"))) == 5
    assert all(path.stat().st_mtime_ns == when for path, when in held.items())
    rows = read_rows(tmp_path)  # readable as a folder of leaderboards/
    # 10 cells, and one of the transfer source, which is evaluated under transfer only
    assert len(rows) == 10 + 1 and set(rows["protocol"]) == {"white-box", "transfer"}
    assert len(rank_models(rows)) == 5


def test_figure_2_uses_stored_autoencoder(killed, tmp_path):
    pytest.importorskip("matplotlib")
    out, _ = killed
    held = set(out.glob("macd-*"))
    assert main(["paper", "figure", "2", *TINY, "--store", str(out), "--out", str(tmp_path / "2.png")]) == 0
    assert (tmp_path / "2.png").read_bytes()[:4] == b"\x89PNG"
    assert set(out.glob("macd-*")) == held


def test_report_shows_reconstructions_of_stored_autoencoder(killed, tmp_path):
    assert main(["paper", "run", "5", *FAST, "--out", str(killed[0])]) == 0
    out = tmp_path / "runs"
    shutil.copytree(killed[0], out)

    def page_with(*more: str) -> str:
        assert main(["report", str(out), "--html", str(tmp_path / "page.html"), *more]) == 0
        return (tmp_path / "page.html").read_text()

    page = page_with("--figures", str(tmp_path / "f"))
    files = sorted(file.name for file in (tmp_path / "f").glob("*method*"))
    assert files == ["f1-method-1.png", "f1-method-1.svg"]  # one model of the method is enough
    (figure,) = re.findall(r'<figure id="f1-method-1">(.*?)</figure>', page, re.DOTALL)
    assert all(row in figure for row in ("original", "masked", "reconstructed", "first test images"))
    assert len(page) < 2e6
    stages = [p for p in (out / "artifacts" / "stages").iterdir() if stage_of(p) == "mae-feature"]
    for stage in stages:
        (stage / "state.safetensors").write_bytes(b"")
    page = page_with()
    assert "f1-method-1" not in page and "checksum mismatch in" in page
    models = set(out.glob("macd-*"))
    for stage in stages:
        shutil.rmtree(stage)
    assert "f1-method-1" not in page_with()
    assert set(out.glob("macd-*")) == models and not any(s.exists() for s in stages)  # nothing is trained


def stage_of(folder):
    return json.loads((folder / "artifact.json").read_text())["recipe"]["stage"]
