"""`robobench new` writes packages that pass the contract checks; `robobench env` prints what is installed."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from robobench.cli import main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", ["defense", "attack"])
def test_new_plugin_passes_check(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = f"my-own-{kind}"
    assert main(["new", kind, name]) == 0
    written = capsys.readouterr().out.split()
    assert all((tmp_path / file).is_file() for file in written)
    file = tmp_path / name / f"my_own_{kind}.py"
    assert main(["check", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 5 and all(line.startswith(f"ok   {kind} {name}") for line in lines)
    project = tomllib.loads((tmp_path / name / "pyproject.toml").read_text())
    assert project["project"]["entry-points"][f"robobench.{kind}s"] == {name: f"my_own_{kind}"}
    assert project["tool"]["setuptools"]["py-modules"] == [f"my_own_{kind}"]
    test = (tmp_path / name / "tests" / f"test_my_own_{kind}.py").read_text()
    assert "$" not in file.read_text() + test + (tmp_path / name / "README.md").read_text()
    compile(test, "test", "exec")


def test_new_plugins_pass_ruff_and_mypy(tmp_path):
    """The files are clean under the rules of this repository, mypy's strict mode included."""
    for kind in ("defense", "attack"):
        assert main(["new", kind, f"my-own-{kind}", "--out", str(tmp_path / kind)]) == 0
    files = [str(tmp_path / kind / f"my_own_{kind}.py") for kind in ("defense", "attack")]
    settings = ["--config", "pyproject.toml"]
    for command in (
        ["ruff", "check", *settings, str(tmp_path)],
        ["ruff", "format", "--check", *settings, str(tmp_path)],
        ["mypy", *files],
    ):
        pytest.importorskip(command[0])
        done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["defence", "mine"], "known: defense, attack"),
        (["defense", "My Own"], "lower-case letters"),
        (["attack", "../x"], "lower-case letters"),
        (["defense", "class"], "invalid defense name 'class'"),
        (["attack", "pgd"], "already registered by robobench.attacks.pgd"),
        (["attack", "there"], "already exists"),
    ],
)
def test_bad_name_is_refused_and_nothing_written(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert main(["new", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_env_prints_versions_data_and_next_step(tmp_path, monkeypatch, capsys):
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "test-0.parquet").touch()
    monkeypatch.setenv("ROBOBENCH_DATA", str(tmp_path))
    assert main(["env"]) == 0
    lines = {line[:22].strip(): line[22:].strip() for line in capsys.readouterr().out.splitlines()}
    for package in ("torch", "torchattacks", "robustbench"):
        assert lines[package].startswith(importlib.metadata.version(package))
    assert lines["cifar10"] == f"found in {tmp_path / 'cifar10'}"
    assert lines["cifar100"].startswith("not found; --data-dir")
    assert "GiB free" in lines["disk here"] and any(name.startswith("bf16 on") for name in lines)
