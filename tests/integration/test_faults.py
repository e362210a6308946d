"""The scripts of tests/faults in their short form, signals, and `store`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from robobench.cli import main
from robobench.store.artifacts import Store

FAULTS = Path(__file__).parents[1] / "faults"


def test_the_fault_scripts_find_nothing_in_their_short_form():
    done = subprocess.run([sys.executable, FAULTS / "short.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("3 kills", "damage: ", "refused by", "wrong command lines", "at once: 2 processes"):
        assert said in done.stdout


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "runs")
    for name in ("a", "b"):
        with made.create("evaluations", name, {"is": name}) as work:
            (work / "record.json").write_text(json.dumps({"is": name}))
    return made


def test_store_check_names_what_is_damaged_and_changes_nothing(store, capsys):
    assert main(["store", "check", "--out", str(store.root)]) == 0
    assert capsys.readouterr().out == "2 artefacts whole, 0 damaged\n"
    file = store.folder("evaluations", "b") / "record.json"
    file.write_text("{}")
    assert main(["store", "check", "--out", str(store.root)]) == 1
    said = capsys.readouterr().out
    assert f"damaged: '{file}' has changed since it was written" in said and "1 damaged" in said
    assert file.read_text() == "{}"


def test_store_list_counts_what_is_there_and_what_was_set_aside(store, capsys):
    (store.folder("evaluations", "b") / "record.json").write_text("{}")
    assert store.find("evaluations", "b") is None
    assert main(["store", "list", "--out", str(store.root)]) == 0
    lines = [line.split()[:-2] for line in capsys.readouterr().out.splitlines()]
    assert lines == [["evaluations", "1"], ["set", "aside", "1"]]


def test_two_artefacts_that_changed_places_are_noticed(store):
    a, b = (store.folder("evaluations", name) for name in "ab")
    a.rename(a.with_name("c"))
    b.rename(a)
    assert store.find("evaluations", "a") is None


def test_a_changed_recipe_is_noticed(store):
    manifest = store.folder("evaluations", "a") / "artifact.json"
    manifest.write_text(manifest.read_text().replace('"is": "a"', '"is": "x"'))
    assert store.find("evaluations", "a") is None


def test_a_fresh_store_sets_aside_what_it_did_not_build_and_finds_what_it_did(store):
    fresh = Store(store.root, overwrite=True)
    assert fresh.find("evaluations", "a") is None
    assert store.folder("evaluations", "a.replaced-1").is_dir()
    with fresh.create("evaluations", "a", {}):
        pass
    assert fresh.find("evaluations", "a") is not None


def test_a_lock_names_its_owner_and_dies_with_it(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom robobench.store import Store\n"
        "with Store(Path(sys.argv[1])).lock('model', 'one'):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "held\n"
        said: list[str] = []

        def tell(line: str) -> None:
            said.append(line)
            owner.kill()

        with Store(tmp_path, tell=tell).lock("model", "one"):
            owner.wait()
    assert said[0].startswith(f"waiting for process {owner.pid} on host ")
    assert said[0].endswith("which works on model 'one'")


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_step_saves_says_how_to_go_on_and_sets_the_status(tmp_path, capsys, monkeypatch, sent, status):
    from robobench.training.accumulation import one_step

    steps: list[int] = []

    def step_and_signal(*arguments: object, **more: object):
        steps.append(1)
        if len(steps) == 4:  # the first is the warm-up's
            os.kill(os.getpid(), sent)
        return real(*arguments, **more)

    real = one_step
    monkeypatch.setattr(training, "one_step", step_and_signal)
    arguments = [
        "run", "--defense", "standard", "--epochs", "2", "--batch-size", "16", "--examples", "8", "--attacks", "fgsm",
        "--protocol", "white-box", "--set", "run.train_images=64", "--threads", "1", "--out", str(tmp_path / "my runs"),
    ]  # fmt: skip
    before = signal.getsignal(signal.SIGINT)
    assert main([*arguments, "--overwrite"]) == status
    said = capsys.readouterr().err
    assert f"to go on from here: robobench {' '.join(arguments[:-1])} '{tmp_path / 'my runs'}'" in said
    assert len(steps) == 4 and signal.getsignal(signal.SIGINT) is before
    assert main(arguments) == 0
    assert "goes on from epoch 1, step 4" in capsys.readouterr().err
    assert len(steps) == 4 + 1 + 5  # another warm-up, and what was left of eight steps


def test_a_second_signal_leaves_at_once():
    code = (
        "import os, signal\nfrom robobench import interrupts\n"
        "with interrupts.handled(), interrupts.deferred():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    print('never')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT and done.stdout == "still here\n"
