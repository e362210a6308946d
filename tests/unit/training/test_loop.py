"""The training loop: batches, draws, clock, hooks, precision and compilation."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from robobench.core.threat import ThreatModel
from robobench.core.timing import Stopwatch
from robobench.defenses.at import ATConfig, ATObjective
from robobench.errors import NonFiniteLossError
from robobench.models.wrapper import PreprocessedModel
from robobench.testing import Blobs, SmallNet
from robobench.training.base import Batch, Loss
from robobench.training.context import TrainRuntime
from robobench.training.loop import run_train, warm_up
from tests.helpers.training import (
    RUNTIME,
    FragileObjective,
    RecordingObjective,
    checkpoint_in,
    fragile_stage,
    stage_of,
)


def test_warm_up_keeps_no_optimizer_state():
    """The warm-up copies the model. With optimizer state too it would need more memory than any step."""
    built, plain = [], stage_of(SmallNet())
    stage = replace(
        plain,
        objective=RecordingObjective(SmallNet()),
        optimizer=lambda objective: built.append(plain.optimizer(objective)) or built[-1],
    )
    run_train(RUNTIME, stage, Blobs(), Stopwatch())
    assert len(built) == 1 and built[0].state


def test_epochs_have_all_images_in_new_order():
    objective = RecordingObjective(SmallNet())
    run_train(RUNTIME, stage_of(objective), Blobs(), Stopwatch())
    epochs = [torch.cat([b.index for b in objective.batches if b.epoch == e]) for e in (0, 1)]
    for order in epochs:
        assert order.sort().values.tolist() == list(range(48))
    assert not torch.equal(*epochs)


def test_draws_do_not_depend_on_batch_size():
    draws = {}
    for batch_size in (20, 48):
        objective = RecordingObjective(SmallNet())
        run_train(RUNTIME, stage_of(objective, batch_size=batch_size), Blobs(), Stopwatch())
        batches = [b for b in objective.batches if b.epoch == 1]
        draws[batch_size] = {int(i): float(u) for b in batches for i, u in zip(b.index, b.rng.uniform(), strict=True)}
    assert draws[20] == draws[48]


def test_training_keeps_global_generator():
    before = torch.get_rng_state()
    run_train(RUNTIME, stage_of(RecordingObjective(SmallNet())), Blobs(), Stopwatch())
    assert torch.equal(before, torch.get_rng_state())


def test_warm_up_does_not_train():
    net = SmallNet()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    run_train(RUNTIME, stage_of(RecordingObjective(net), epochs=0), Blobs(), Stopwatch())
    warm_up(RUNTIME, stage_of(RecordingObjective(net)), RecordingObjective(net), Blobs())
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_nonfinite_loss_stops_at_its_step():
    class Breaks(RecordingObjective):
        def forward(self, batch: Batch) -> Loss:
            loss = super().forward(batch)
            return Loss(loss.total * (float("nan") if batch.epoch == 1 else 1.0))

    objective = Breaks(SmallNet())
    with pytest.raises(NonFiniteLossError, match=r"stage 'train' became nan in epoch 2, step 1"):
        run_train(RUNTIME, stage_of(objective), Blobs(), Stopwatch())
    assert sum(b.epoch == 1 for b in objective.batches) == 1


def test_logging_is_not_timed():
    record, _ = run_train(
        RUNTIME,
        stage_of(RecordingObjective(SmallNet())),
        Blobs(),
        Stopwatch(),
        lambda name, epoch, metrics: time.sleep(0.4),
    )
    assert record.seconds < 0.8  # two sleeps would make it more


def test_epoch_hook_is_timed():
    def hook(batch: Batch) -> tuple[dict[str, float], bool]:
        time.sleep(0.3)
        return {}, False

    stage = replace(stage_of(RecordingObjective(SmallNet())), on_epoch_end=hook)
    record, _ = run_train(RUNTIME, stage, Blobs(), Stopwatch())
    assert record.seconds >= 0.6  # two epochs


def test_epoch_hook_ends_stage(tmp_path):
    """If the process dies before the stage is stored, the repeated run ends at the same epoch."""

    def stage_with_hook():
        epochs = []

        def hook(batch: Batch) -> tuple[dict[str, float], bool]:
            assert len(batch.index) == 16
            epochs.append(batch.epoch)
            return {"seen": float(len(epochs))}, batch.epoch == 0

        return replace(fragile_stage(FragileObjective()), on_epoch_end=hook), epochs

    validated, log = [], []
    stage, epochs = stage_with_hook()
    record, _ = run_train(
        RUNTIME, stage, Blobs(), Stopwatch(), lambda name, epoch, metrics: log.append(metrics), checkpoint_in(tmp_path),
        lambda epoch, last: validated.append((epoch, last)) or {"validated": 1.0},
    )  # fmt: skip
    assert (record.epochs, record.images, epochs, validated) == (1, 48, [0], [(0, True)])
    assert log[0]["seen"] == 1 and log[0]["validated"] == 1 and len(log) == 1
    stage, epochs = stage_with_hook()
    assert run_train(RUNTIME, stage, Blobs(), Stopwatch(), checkpoint=checkpoint_in(tmp_path))[0].epochs == 1
    assert epochs == [0]


def test_loss_without_gradient_takes_no_step():
    class NoGradient(RecordingObjective):
        def forward(self, batch: Batch) -> Loss:
            with torch.no_grad():
                return Loss(super().forward(batch).total)

    net = SmallNet()
    before = net.head.weight.clone()
    run_train(RUNTIME, stage_of(NoGradient(net)), Blobs(), Stopwatch())
    assert torch.equal(before, net.head.weight)


def test_bf16_reaches_nearly_the_same_loss():
    losses = {}
    for precision in ("fp32", "bf16"):
        found = []
        torch.manual_seed(0)
        run_train(
            TrainRuntime("cpu", precision, 0),
            stage_of(RecordingObjective(SmallNet()), epochs=4),
            Blobs(),
            Stopwatch(),
            lambda s, e, m, found=found: found.append(m["loss"]),
        )
        losses[precision] = found[-1]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_compiled_training_matches_eager_training():
    """Up to rounding. The model is compiled once for the attack and once for training, not once per batch size."""
    losses, graphs, found = {}, [], counters["stats"]
    for compiled in (False, True):
        objective = ATObjective(PreprocessedModel(SmallNet()), ThreatModel("Linf", 0.05), ATConfig(inner_steps=2))
        before = found["unique_graphs"]
        run_train(
            TrainRuntime("cpu", "fp32", 0, compiled=compiled),
            stage_of(objective),  # batches of 16; the warm-up has one of 20
            Blobs(),
            Stopwatch(),
            lambda s, e, m, at=compiled: losses.setdefault(at, []).append(m["loss"]),
        )
        graphs.append(found["unique_graphs"] - before)
    assert graphs[0] == 0 and 2 <= graphs[1] <= 4
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)
