"""Several processes against one: the same steps, the same bits, one store, and one line where something is wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robobench.cli import main
from robobench.distributed import collectives, launch
from robobench.errors import RequestError
from robobench.planning.planner import make_plan
from robobench.planning.request import ExperimentConfig

STEPS = Path(__file__).parents[1] / "devices" / "steps.py"
NET = """
from torch import nn

def plain(num_classes):
    first = nn.Conv2d(3, 6, 5, stride=4)
    return nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 7 * 7, num_classes))
"""
SMALL = (
    *("--epochs", "1", "--batch-size", "33", "--threads", "1", "--attacks", "pgd", "--eps", "0.1", "--quiet"),
    *("--examples", "40", "--set", "run.train_images=200", "--set", "run.eval_batch_size=16", "--set", "pgd.steps=4"),
)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=900)


def test_two_gloo_processes_take_the_steps_of_one_stop_together_and_notice_a_death():
    done = run(STEPS, "--only", "mtard,rocl,gathered")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "process 1 of 2 died (SIGKILL) and the others were ended" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A store that two processes under torchrun filled, and the command."""
    place = tmp_path_factory.mktemp("devices")
    (place / "net.py").write_text(NET)
    command = ["run", "--defense", "at", "--model", f"{place / 'net.py'}:plain", *SMALL, "--out", str(place / "runs")]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "robobench"]
    done = run(*torchrun, *command)
    assert done.returncode == 0, done.stderr
    return place / "runs", command, done


def records(store: Path) -> dict[str, dict[str, object]]:
    found = (json.loads(path.read_text()) for path in store.glob("artifacts/evaluations/*/record.json"))
    return {record["key"]: record for record in found}


def test_one_process_alone_finds_the_same_bits_and_prints_the_same(shared, capsys):
    store, command, done = shared
    theirs = records(store)
    for kind in ("evaluations", "transfer"):
        (store / "artifacts" / kind).rename(store.parent / kind)
    try:
        assert main(command) == 0
        assert capsys.readouterr().out == done.stdout
        ours = records(store)
    finally:
        for kind in ("evaluations", "transfer"):
            (store.parent / kind).rename(store.parent / f"{kind}-of-two")
    assert ours.keys() == theirs.keys() and len(ours) == 5  # at, control: both protocols; the source: transfer
    for key, record in ours.items():
        assert record["status"] == "ok"
        for bits in ("clean_bits", "robust_bits", "weights_digest"):
            assert record[bits] == theirs[key][bits]


def test_the_store_is_written_once_and_says_how_many_devices_it_took(shared):
    store, _, done = shared
    assert "Traceback" not in done.stderr
    folders = [path.parent for path in store.glob("*/timing.json")]
    assert len(folders) == 3 and len(list(store.rglob("*.building"))) == 0
    for folder in folders:
        timing = json.loads((folder / "timing.json").read_text())
        assert timing["devices"] == 2 and timing["hardware"].startswith("2 processes on ")
    assert not list((store / "artifacts").glob("checkpoints/*/*"))


def planned(model: str, **flags: object):
    request = ExperimentConfig(defenses=("standard",), model=model, threads=1, protocol="white-box", **flags)
    return make_plan(request).trainings[0]


def test_the_key_knows_the_devices_only_where_batchnorm_sees_shares(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    plain = f"{tmp_path / 'net.py'}:plain"
    assert planned(plain, devices=2).key == planned(plain).key
    assert planned("cnn", devices=2).key != planned("cnn").key
    assert planned("cnn", devices=2).recipe["devices"] == 2


def test_threads_are_counted_for_each_process():
    assert make_plan(ExperimentConfig(devices=2)).threads == max(1, torch.get_num_threads() // 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--devices", "0"], "--devices must be at least 1, got 0"),
        (["--set", "run.sync_batchnorm=true", "--device", "cpu"], "run.sync_batchnorm=true works on GPUs only"),
    ],
)
def test_what_cannot_be_had_is_one_line_and_creates_nothing(tmp_path, capsys, arguments, said):
    assert main(["run", "--defense", "standard", *arguments, "--out", str(tmp_path / "runs")]) == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1 and not (tmp_path / "runs").exists()


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lightning_fabric" else find(name))
    with pytest.raises(RequestError, match=r"2 devices need lightning-fabric: pip install 'robobench\[distributed\]'"):
        launch.resolve_device_count(2, "cpu")


def test_a_flag_that_contradicts_torchrun_is_refused(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setitem(os.environ, name, value)
    with pytest.raises(RequestError, match="--devices 2: torchrun started 4 processes; leave the flag out"):
        launch.resolve_device_count(2, "cpu")


def test_alone_everything_is_the_identity():
    values = torch.randn(3, 2, requires_grad=True)
    assert collectives.gather_batch(values) == (values, 0)
    assert (
        torch.equal(collectives.mean_over_batch(values, 3), values)
        and not collectives.mean_over_batch(values, 3).requires_grad
    )
    assert collectives.wrap_ddp(network := torch.nn.Linear(2, 2)) is network
    assert list(collectives.map_across_ranks([1, 2, 3], lambda n: n * n)) == [1, 4, 9]
    with pytest.raises(ZeroDivisionError):
        collectives.on_rank_zero(lambda: 1 / 0)


def test_the_shares_of_a_batch_are_all_of_it_and_weigh_as_many_images_as_they_hold(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        shares.append(collectives.local_shard(torch.arange(11)))
    assert torch.equal(torch.cat(shares), torch.arange(11)) and [len(s) for s in shares] == [4, 4, 3]
    means = torch.tensor([collectives.shard_weight(len(s), 11) * s.double().mean() for s in shares])
    assert means.mean() == torch.arange(11).double().mean()
