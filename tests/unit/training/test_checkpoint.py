"""Checkpoints: a resumed stage ends with the same bits, and damaged saves are not used."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robobench.core.threat import ThreatModel
from robobench.core.timing import Stopwatch
from robobench.errors import NonFiniteLossError
from robobench.store.artifacts import Store
from robobench.store.partial import PartialResults
from robobench.testing import Blobs
from robobench.training.base import Batch, Loss
from robobench.training.checkpoint import Checkpoint
from robobench.training.lars import LARS
from robobench.training.loop import run_train
from robobench.training.selection import EpochSelection
from tests.helpers.training import RUNTIME, STEPS, FragileObjective, checkpoint_in, fragile_stage, sgd, stage_of, train


def adamw(objective: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(objective.parameters(), lr=0.01, fused=True)


def lars(objective: nn.Module) -> torch.optim.Optimizer:
    return LARS(objective.parameters(), lr=1.0, momentum=0.9, decay=1e-4)


@pytest.mark.parametrize("optimizer", [sgd, adamw, lars])
@pytest.mark.parametrize("dies_at", [1, 3, 5])
def test_resumed_training_ends_with_same_bits(tmp_path, optimizer, dies_at):
    expected, expected_log, _ = train(FragileObjective(), optimizer=optimizer)
    with pytest.raises(ZeroDivisionError):
        train(FragileObjective(dies_at), checkpoint_in(tmp_path), optimizer=optimizer)
    resumed = FragileObjective()
    state, log, _ = train(resumed, checkpoint_in(tmp_path), optimizer=optimizer)
    assert resumed.steps == STEPS - dies_at  # nothing was done twice
    assert log == expected_log
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_resumed_policies_give_same_images(tmp_path):
    """RandAugment, erasing and CutMix draw by key: nothing of them is in the checkpoint."""

    def run(checkpoint=None, dies_at=None):
        stage = stage_of(FragileObjective(dies_at), augment="crop-flip+randaugment+erasing", cutmix=1.0)
        _, trained = run_train(RUNTIME, stage, Blobs(), Stopwatch(), checkpoint=checkpoint)
        return trained.state_dict()

    expected = run()
    with pytest.raises(ZeroDivisionError):
        run(checkpoint_in(tmp_path), dies_at=4)
    state = run(checkpoint_in(tmp_path))
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_best_epoch_is_restored(tmp_path):
    def trained(objective: FragileObjective, checkpoint: Checkpoint) -> EpochSelection:
        selection = EpochSelection(RUNTIME, lambda: objective.model, Blobs(), ThreatModel("Linf", 0.1), epochs=1)
        checkpoint.selections = {"best": selection}
        stage = fragile_stage(objective)
        run_train(RUNTIME, stage, Blobs(), Stopwatch(), checkpoint=checkpoint, validate=selection.validate)
        return selection

    whole = trained(FragileObjective(), checkpoint_in(tmp_path / "whole"))
    with pytest.raises(ZeroDivisionError):
        trained(FragileObjective(5), checkpoint_in(tmp_path / "killed"))
    again = trained(FragileObjective(), checkpoint_in(tmp_path / "killed"))
    assert sorted(whole.results) == [0, 1] and again.results == whole.results and again.record() == whole.record()
    assert all(torch.equal(again.weights[name], value) for name, value in whole.weights.items())


def test_seconds_exclude_time_between_runs(tmp_path):
    ticks = iter(range(10**6))  # each reading of the clock is one second later

    def stopwatch() -> Stopwatch:
        return Stopwatch(wall=lambda: float(next(ticks)), cpu=lambda: 0.0)

    killed, resumed = fragile_stage(FragileObjective(4)), fragile_stage(FragileObjective())
    with pytest.raises(ZeroDivisionError):
        run_train(RUNTIME, killed, Blobs(), stopwatch(), checkpoint=checkpoint_in(tmp_path))
    for _ in range(1000):
        next(ticks)
    record, _ = run_train(RUNTIME, resumed, Blobs(), stopwatch(), checkpoint=checkpoint_in(tmp_path))
    assert record.seconds == STEPS  # a second for each of the blocks between two saves


@pytest.mark.parametrize("damage", [b"", b"\x80\x04cos\nsystem\n", None])
def test_damaged_checkpoint_is_quarantined(tmp_path, damage):
    """The stage then starts from the beginning."""
    with pytest.raises(ZeroDivisionError):
        train(FragileObjective(4), checkpoint_in(tmp_path))
    (file,) = tmp_path.rglob("state.safetensors")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data) if damage is None else damage)
    again = FragileObjective()
    state, _, _ = train(again, checkpoint_in(tmp_path, every=1))
    assert again.steps == STEPS and len(list(tmp_path.rglob("*.damaged-1"))) == 1
    expected = train(FragileObjective())[0]
    assert all(torch.equal(a, b) for a, b in zip(state.values(), expected.values(), strict=True))


def test_nonfinite_loss_keeps_last_finite_state(tmp_path):
    class Breaks(FragileObjective):
        def forward(self, batch: Batch) -> Loss:
            loss = super().forward(batch)
            return Loss(loss.total * float("nan" if self.steps == 5 else 1))

    with pytest.raises(NonFiniteLossError, match="epoch 2, step 2"):
        train(Breaks(), checkpoint_in(tmp_path))
    states = PartialResults(Store(tmp_path), "checkpoints/one")
    assert states.newest() is not None
    resumed = FragileObjective()
    state, _, _ = train(resumed, checkpoint_in(tmp_path))
    assert resumed.steps == STEPS - 4 and all(bool(v.isfinite().all()) for v in state.values())


def test_saving_takes_at_most_2_percent_of_time(tmp_path):
    now = [0.0]
    checkpoint = Checkpoint(PartialResults(Store(tmp_path), "checkpoints/one"), 60.0, clock=lambda: now[0])
    now[0] = 59.0
    assert not checkpoint.due()
    now[0] = 60.0
    assert checkpoint.due()
    with checkpoint._timed():
        now[0] = 70.0  # ten seconds to save
    now[0] = 70.0 + 499.0
    assert not checkpoint.due()
    now[0] = 70.0 + 500.0
    assert checkpoint.due()
