"""`paper run`: notes and refused requests."""

from __future__ import annotations

from robobench.cli import main
from robobench.paper.run import changed_flags_note
from robobench.planning.request import ExperimentConfig


def test_changed_flags_are_noted():
    assert changed_flags_note(ExperimentConfig()) == []
    assert changed_flags_note(ExperimentConfig(epochs=1, sets=("pgd.steps=2",))) == [
        "changed on the command line: --epochs 1 --set pgd.steps=2"
    ]


def test_wrong_requests_are_refused_in_one_line(capsys, tmp_path):
    for arguments in (
        ["table", "10"],
        ["table", "2", "--format", "pdf"],
        ["run", "0", "--out", str(tmp_path / "runs")],
        ["run", "5", "--preset", "huge", "--out", str(tmp_path / "runs")],
        ["run", "5", "--set", "macdd.mask=false", "--out", str(tmp_path / "runs")],
        ["run", "5", "--rows", str(tmp_path / "no" / "rows.csv"), "--out", str(tmp_path / "runs")],
        ["figure", "9", "--out", str(tmp_path / "a.png"), "--store", str(tmp_path / "runs")],
        ["figure", "2", "--out", str(tmp_path / "a.txt"), "--store", str(tmp_path / "runs")],
    ):
        assert main(["paper", *arguments]) == 2
        streams = capsys.readouterr()
        assert not streams.out and len(streams.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
