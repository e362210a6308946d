import time

import pytest

from robobench.core import console
from robobench.core.console import Reporter


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(console, "PROGRESS_LINE_SECONDS", 0.02)


def test_pipe_gets_lines_while_one_unit_runs(fast, capsys):
    part = ["apgd-ce"]
    with Reporter().progress_bar(lambda: f"autoattack, now {part[-1]}", 10) as advance:
        time.sleep(0.1)
        part.append("square")
        advance(5)
        time.sleep(0.1)
    said = capsys.readouterr().err
    assert "autoattack, now apgd-ce: 0/10" in said and "autoattack, now square: 5/10, about" in said


def test_quiet_reporter_writes_no_progress(fast, capsys):
    with Reporter(-1).heartbeat("working"), Reporter(-1).progress_bar("work", 3):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""
