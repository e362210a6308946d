"""`robobench new` writes packages that keep the contract as they stand; `list env` says what is here."""

from __future__ import annotations

import importlib.metadata
import tomllib

import pytest

from robobench.cli import main


@pytest.mark.parametrize("kind", ["defense", "attack"])
def test_a_new_plugin_passes_check_unchanged(kind, tmp_path, monkeypatch, capsys):
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["defence", "mine"], "known: defense, attack"),
        (["defense", "My Own"], "small letters"),
        (["attack", "../x"], "small letters"),
        (["defense", "class"], "cannot name a defense"),
        (["attack", "pgd"], "already registered by robobench.attacks.pgd"),
        (["attack", "there"], "is there already"),
    ],
)
def test_a_name_that_cannot_be_is_refused_and_nothing_is_written(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert main(["new", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_list_env_says_what_is_here_and_the_next_move(tmp_path, monkeypatch, capsys):
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "test-0.parquet").touch()
    monkeypatch.setenv("ROBOBENCH_DATA", str(tmp_path))
    assert main(["list", "env"]) == 0
    lines = {line[:22].strip(): line[22:].strip() for line in capsys.readouterr().out.splitlines()}
    for package in ("torch", "torchattacks", "robustbench"):
        assert lines[package].startswith(importlib.metadata.version(package))
    assert lines["cifar10"] == f"found in {tmp_path / 'cifar10'}"
    assert lines["cifar100"].startswith("not found; --data-dir")
    assert "GiB free" in lines["disk here"] and any(name.startswith("bf16 on") for name in lines)
