"""Data, teacher or write permission disappear during a run. When they are back, the same command resumes."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from robobench.cli import main
from robobench.core.console import Reporter
from robobench.execution.run import execute_request
from robobench.models.build import build_model
from robobench.models.spec import ModelSpec
from robobench.planning.request import ExperimentConfig
from robobench.store.tensors import save_tensors
from tests.fault_injection import harness

TINY = (
    *("--epochs", "2", "--batch-size", "16", "--examples", "8", "--attacks", "fgsm", "--eps", "0.1"),
    *("--protocol", "white-box", "--threads", "1", "--set", "run.baseline_control=false"),
)
STANDARD = ("run", "--defense", "standard", "--set", "run.train_images=64", *TINY)


def rows_of(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "rows.csv")


def at_call(monkeypatch: pytest.MonkeyPatch, module: str, name: str, number: int, act) -> None:
    """Call `act` before the `number`-th call of a function; the function itself is unchanged."""
    home = importlib.import_module(f"robobench.{module}")
    real, calls = getattr(home, name), []

    def counted(*arguments, **named):
        calls.append(1)
        if len(calls) == number:
            act()
        return real(*arguments, **named)

    monkeypatch.setattr(home, name, counted)


# --- data ---------------------------------------------------------------------------------------


@pytest.fixture
def birds(tmp_path):
    """An image folder of two classes, streamed from disk."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 4)):
        for label, name in enumerate(("jay", "owl")):
            (tmp_path / "birds" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 120, (32, 32, 3), np.uint8) + np.uint8(100 * label)
                Image.fromarray(pixels).save(tmp_path / "birds" / part / name / f"{number}.png")
    return tmp_path / "birds"


@pytest.mark.parametrize(
    ("module", "name", "number"),
    [("training.loop", "one_step", 3), ("evaluation.accuracy", "white_box_examples", 1)],
    ids=["training", "evaluation"],
)
def test_missing_data_fails_cells(birds, tmp_path, monkeypatch, capsys, module, name, number):
    """Data removed during a run leave a reason and no number; a rerun with the data gives the full result."""
    arguments = ["run", "--defense", "standard", "--dataset", f"imagefolder:{birds}", "--preset", "quick", *TINY]
    assert main([*arguments, "--out", str(tmp_path / "reference")]) == 0
    moved, out = birds.with_name("moved"), tmp_path / "runs"
    at_call(monkeypatch, module, name, number, lambda: birds.rename(moved))
    assert main([*arguments, "--out", str(out)]) == 1
    rows = rows_of(out)
    assert set(rows["status"]) == {"failed"} and rows["robust_accuracy"].isna().all()
    assert rows["reason"].str.startswith(f"cannot read the image '{birds}").all()
    assert "Traceback" not in capsys.readouterr().err
    moved.rename(birds)
    assert main([*arguments, "--out", str(out)]) == 0
    assert harness.differences(out, harness.contents(tmp_path / "reference")) == []


# --- teacher ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["removed", "changed"])
def test_changed_teacher_file_fails_training(tmp_path, how):
    teacher, moved, out = tmp_path / "teacher.safetensors", tmp_path / "moved", tmp_path / "runs"
    save_tensors(build_model(ModelSpec("cnn", 10, 32)).state_dict(), teacher)
    request = ExperimentConfig(
        defenses=("iad",), teachers=(f"robust={teacher}",), attacks=("fgsm",), eps=("0.1",), protocol="white-box",
        sets=("run.train_images=16", "run.baseline_control=false", "iad.inner_steps=1"),
        epochs=1, threads=1, examples=8, out=out,
    )  # fmt: skip

    def replace_teacher(plan: object) -> None:
        teacher.rename(moved)
        if how == "changed":
            save_tensors(build_model(ModelSpec("cnn", 10, 32, seed=1)).state_dict(), teacher)

    reason = f"no weights file '{teacher}'" if how == "removed" else f"'{teacher}' has changed since this run began"
    for record in execute_request(request, Reporter(-1), check_plan=replace_teacher):
        assert record["status"] == "failed" and record["robust_bits"] is None
        assert reason in record["reason"] and "external:teacher" in record["reason"]
    assert not list(out.glob("*/model.safetensors"))  # nothing is stored under the key of the original file
    moved.replace(teacher)
    assert {record["status"] for record in execute_request(request, Reporter(-1))} == {"ok"}


# --- write permission ---------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    """A folder, and a function that makes it "ro" or "rw". Root ignores permissions, so it gets a tmpfs."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0:

        def set_mode(how: str) -> None:
            for folder in (place, *(path for path in place.rglob("*") if path.is_dir())):
                folder.chmod(0o555 if how == "ro" else 0o755)

        yield place, set_mode
        set_mode("rw")
        return
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("running as root, and mounting is not allowed")
    try:
        yield place, lambda how: subprocess.run(["mount", "-o", f"remount,{how}", place], check=True)
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def test_read_only_store_can_be_read(disk, tmp_path, capsys):
    place, set_mode = disk
    out = place / "runs"
    run = [*STANDARD, "--out", str(out)]
    assert main(run) == 0

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}

    before = files()
    set_mode("ro")
    capsys.readouterr()
    page = tmp_path / "page.html"
    for reads in (["leaderboard", "--out"], ["store", "list", "--out"], ["store", "check", "--out"]):
        assert main([*reads, str(out)]) == 0, capsys.readouterr().err
    assert main(["report", str(out), "--html", str(page)]) == 0 and page.stat().st_size > 10_000
    capsys.readouterr()
    for writes in (
        run,
        [*run, "--overwrite"],
        [*run, "--seed", "1"],
        ["report", str(out)],
        ["run", *run[1:-1], f"{out}/b"],
    ):
        assert main(writes) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and "cannot be written" in message, message
    assert files() == before
    set_mode("rw")
    assert main(run) == 0


def test_store_that_turns_read_only_resumes(tmp_path, monkeypatch, capsys):
    """The system remounts a faulty disk read-only: every write then fails with EROFS."""
    assert main([*STANDARD, "--out", str(tmp_path / "reference")]) == 0
    out = tmp_path / "runs"
    run = [*STANDARD, "--checkpoint-minutes", "0", "--out", str(out)]
    with monkeypatch.context() as patch:

        def remount() -> None:
            for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "open"):
                patch.setattr(os, name, refusing(getattr(os, name)))

        def refusing(real):
            def call(path, *more, **named):
                writes = real.__name__ != "open" or more[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                if writes and str(path).startswith(str(out)):
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
                return real(path, *more, **named)

            return call

        at_call(patch, "training.loop", "one_step", 3, remount)
        assert main(run) == 1
    output = capsys.readouterr().err
    assert output.splitlines()[-1].startswith("robobench: cannot write ") and "(Read-only file system)" in output
    assert "Traceback" not in output and not (out / "rows.csv").exists()
    assert main(run) == 0
    assert harness.differences(out, harness.contents(tmp_path / "reference")) == []
