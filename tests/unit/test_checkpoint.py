from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robobench.core.threat import ThreatModel
from robobench.core.timing import Stopwatch
from robobench.errors import NonFiniteLossError, OutOfMemoryError
from robobench.store.artifacts import Store
from robobench.store.partial import PartialResults
from robobench.store.tensors import save_array
from robobench.testing import Blobs, SmallNet
from robobench.training.base import Batch, Loss, Precompute, Train
from robobench.training.checkpoint import Checkpoint
from robobench.training.context import TrainRuntime
from robobench.training.loop import run_train
from robobench.training.precompute import run_precompute
from robobench.training.selection import EpochSelection

ENGINE = TrainRuntime("cpu", "fp32", 0)
STEPS = 2 * 3  # two epochs of 48 images at 20


class Objective(nn.Module):
    """Cross-entropy with dropout and a buffer that every step moves; dies when told to."""

    def __init__(self, dies_at: int | None = None, most: int = 1000) -> None:
        super().__init__()
        self.model = SmallNet()
        self.register_buffer("balance", torch.tensor(0.5))
        self.seen, self.dies_at, self.most = 0, dies_at, most

    def forward(self, batch: Batch) -> Loss:
        if self.seen == self.dies_at:
            raise ZeroDivisionError
        self.seen += self.training and batch.epoch < 2  # the warm-up's copy comes with epoch 2
        torch.empty(1 if len(batch.index) <= self.most else 2**58)  # the allocator refuses the second
        loss = F.cross_entropy(F.dropout(self.model(batch.images), 0.2), batch.labels)
        self.balance.lerp_(loss.detach(), 0.1)
        return Loss(self.balance.clone() * loss, {"plain": loss.detach()})


def sgd(objective: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(objective.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


def adamw(objective: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(objective.parameters(), lr=0.01, fused=True)


def lars(objective: nn.Module) -> torch.optim.Optimizer:
    from robobench.defenses.rocl import LARS

    return LARS(objective.parameters(), lr=1.0, momentum=0.9, decay=1e-4)


def stage(objective: nn.Module, optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd, **more: bool) -> Train:
    return Train(
        name="train",
        objective=objective.to(memory_format=torch.channels_last),
        epochs=2,
        batch_size=20,
        optimizer=optimizer,
        schedule=lambda epoch: 1 / (1 + epoch),
        augment="crop-flip",
        **more,
    )


def saved_in(place: Path, every: float = 0.0) -> Checkpoint:
    """Save after every step, whatever it costs."""
    made = Checkpoint(PartialResults(Store(place), "checkpoints/one"), every)
    made.due = lambda: every == 0  # type: ignore[method-assign]
    return made


def go(objective: nn.Module, checkpoint: Checkpoint | None = None, **more: object):
    """Train; return the state, the lines logged and the stage's record."""
    lines = []
    record, done = run_train(
        ENGINE,
        stage(objective, **more),  # type: ignore[arg-type]
        Blobs(),
        Stopwatch(wall=lambda: 0.0, cpu=lambda: 0.0),
        lambda name, epoch, means: lines.append((epoch, means)),
        checkpoint,
    )
    return copy.deepcopy(done.state_dict()), lines, record


@pytest.mark.parametrize("optimizer", [sgd, adamw, lars])
@pytest.mark.parametrize("dies_at", [1, 3, 5])
def test_a_training_that_dies_goes_on_to_the_same_bits(tmp_path, optimizer, dies_at):
    whole, lines, _ = go(Objective(), optimizer=optimizer)
    with pytest.raises(ZeroDivisionError):
        go(Objective(dies_at), saved_in(tmp_path), optimizer=optimizer)
    resumed = Objective()
    state, told, _ = go(resumed, saved_in(tmp_path), optimizer=optimizer)
    assert resumed.seen == STEPS - dies_at  # nothing was done twice
    assert told == lines
    assert state.keys() == whole.keys()
    assert all(torch.equal(state[name], whole[name]) for name in whole)


def test_the_best_epoch_so_far_survives_a_death(tmp_path):
    def trained(objective: Objective, checkpoint: Checkpoint) -> EpochSelection:
        watch = EpochSelection(ENGINE, objective.model, Blobs(), ThreatModel("Linf", 0.1), epochs=1)
        checkpoint.selection = watch
        run_train(ENGINE, stage(objective), Blobs(), Stopwatch(), checkpoint=checkpoint, look=watch.validate)
        return watch

    whole = trained(Objective(), saved_in(tmp_path / "whole"))
    with pytest.raises(ZeroDivisionError):
        trained(Objective(5), saved_in(tmp_path / "killed"))
    again = trained(Objective(), saved_in(tmp_path / "killed"))
    assert sorted(whole.results) == [0, 1] and again.results == whole.results and again.record() == whole.record()
    assert all(torch.equal(again.weights[name], value) for name, value in whole.weights.items())


def test_a_stage_ends_where_its_watch_says_so_and_again_there_after_a_death(tmp_path):
    def watched() -> tuple[Train, list[int]]:
        seen: list[int] = []

        def watch(batch: Batch) -> tuple[dict[str, float], bool]:
            assert len(batch.index) == 16
            seen.append(batch.epoch)
            return {"seen": float(len(seen))}, batch.epoch == 0

        return replace(stage(Objective()), watch=watch), seen

    lasts, lines = [], []
    made, seen = watched()
    record, _ = run_train(
        ENGINE, made, Blobs(), Stopwatch(), lambda name, epoch, means: lines.append(means), saved_in(tmp_path),
        lambda epoch, last: lasts.append((epoch, last)) or {"looked": 1.0},
    )  # fmt: skip
    assert (record.epochs, record.images, seen, lasts) == (1, 48, [0], [(0, True)])
    assert lines[0]["seen"] == 1 and lines[0]["looked"] == 1 and len(lines) == 1
    made, seen = watched()  # the process died before the stage was kept
    assert run_train(ENGINE, made, Blobs(), Stopwatch(), checkpoint=saved_in(tmp_path))[0].epochs == 1
    assert seen == [0]


def test_the_seconds_of_a_resumed_stage_leave_the_dead_time_out(tmp_path):
    ticks = iter(range(10**6))  # every look at the clock is a second later

    def watch() -> Stopwatch:
        return Stopwatch(wall=lambda: float(next(ticks)), cpu=lambda: 0.0)

    with pytest.raises(ZeroDivisionError):
        run_train(ENGINE, stage(Objective(4)), Blobs(), watch(), checkpoint=saved_in(tmp_path))
    for _ in range(1000):
        next(ticks)
    record, _ = run_train(ENGINE, stage(Objective()), Blobs(), watch(), checkpoint=saved_in(tmp_path))
    assert record.seconds == STEPS  # a second for each of the blocks between two saves


@pytest.mark.parametrize("damage", [b"", b"\x80\x04cos\nsystem\n", None])
def test_a_damaged_checkpoint_is_set_aside_and_the_stage_begins_anew(tmp_path, damage):
    with pytest.raises(ZeroDivisionError):
        go(Objective(4), saved_in(tmp_path))
    (file,) = tmp_path.rglob("state.safetensors")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data) if damage is None else damage)
    again = Objective()
    state, _, _ = go(again, saved_in(tmp_path, every=1))
    assert again.seen == STEPS and len(list(tmp_path.rglob("*.damaged-1"))) == 1
    assert all(torch.equal(a, b) for a, b in zip(state.values(), go(Objective())[0].values(), strict=True))


def test_a_loss_that_is_not_finite_leaves_the_last_good_state(tmp_path):
    class Breaks(Objective):
        def forward(self, batch: Batch) -> Loss:
            loss = super().forward(batch)
            return Loss(loss.total * float("nan" if self.seen == 5 else 1))

    with pytest.raises(NonFiniteLossError, match="epoch 2, step 2"):
        go(Breaks(), saved_in(tmp_path))
    states = PartialResults(Store(tmp_path), "checkpoints/one")
    assert states.newest() is not None
    rest = Objective()
    state, _, _ = go(rest, saved_in(tmp_path))
    assert rest.seen == STEPS - 4 and all(bool(v.isfinite().all()) for v in state.values())


def test_saving_costs_a_fiftieth_of_the_time_at_most(tmp_path):
    now = [0.0]
    made = Checkpoint(PartialResults(Store(tmp_path), "checkpoints/one"), 60.0, clock=lambda: now[0])
    now[0] = 59.0
    assert not made.due()
    now[0] = 60.0
    assert made.due()
    with made._timed():
        now[0] = 70.0  # ten seconds to save
    now[0] = 70.0 + 499.0
    assert not made.due()
    now[0] = 70.0 + 500.0
    assert made.due()


def test_produced_parts_are_kept_and_a_hole_is_filled(tmp_path):
    seen: list[int] = []

    def double(batch: Batch) -> torch.Tensor:
        if len(seen) == 5:
            raise ZeroDivisionError
        seen.extend(batch.index[:1].tolist())
        return batch.images * 2

    made, data = Precompute(name="twice", function=double, batch_size=8), Blobs()
    with pytest.raises(ZeroDivisionError):
        run_precompute(ENGINE, made, data, Stopwatch(), saved_in(tmp_path))
    (tmp_path / "artifacts/checkpoints/one/00000016/array.npy").write_bytes(b"\x93NUMPY")
    seen.clear()
    _, parts = run_precompute(ENGINE, made, data, Stopwatch(), saved_in(tmp_path))
    assert seen == [16, 24, 32, 40][: len(seen)] and 16 in seen
    np.testing.assert_array_equal(np.concatenate(parts), (data.images(torch.arange(48)) * 2).numpy())


def test_a_large_produced_array_stays_on_disk_and_becomes_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "PART_BYTES", 20 * 3 * 32 * 32 * 4)
    made, data = Precompute(name="twice", function=lambda batch: batch.images * 2, batch_size=10), Blobs()
    for _ in range(2):  # made, then resumed
        _, parts = run_precompute(ENGINE, made, data, Stopwatch(), saved_in(tmp_path, every=1))
        assert [(len(part), isinstance(part, np.memmap)) for part in parts] == [(20, True), (20, True), (8, False)]
        save_array(parts, tmp_path / "rows.npy")
        np.save(tmp_path / "whole.npy", (data.images(torch.arange(48)) * 2).numpy())
        assert (tmp_path / "rows.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_batches_are_cut_where_memory_runs_out_and_the_record_says_so():
    small = Objective(most=10)
    _, _, record = go(small)
    assert record.flags == ["batch-cut-2"]
    assert small.seen == 2 * STEPS


def test_gradients_of_the_pieces_add_up_to_those_of_the_batch():
    from robobench.training.accumulation import one_step

    class Plain(Objective):
        def forward(self, batch: Batch) -> Loss:
            return Loss(F.cross_entropy(self.model.eval()(batch.images), batch.labels))

    made = {}
    for parts in (1, 3):
        objective = Plain()
        batch = ENGINE.batch(Blobs(), torch.arange(20), "train", 0)
        loss = one_step(ENGINE, objective, torch.optim.SGD(objective.parameters(), lr=1.0), batch, parts)
        made[parts] = (loss.total.detach(), objective.model.head.weight.detach())
    torch.testing.assert_close(made[1], made[3])


def test_a_loss_over_the_whole_batch_is_never_cut_and_two_images_are_the_least():
    with pytest.raises(OutOfMemoryError, match="depends on the whole batch"):
        go(Objective(most=10), whole_batch=True)
    with pytest.raises(OutOfMemoryError, match="choose a smaller model"):
        go(Objective(most=1))


def test_rocl_s_contrast_asks_for_whole_batches():
    from robobench.core.threat import ThreatModel
    from robobench.plugins.discovery import load_defense
    from robobench.training.base import DefenseSetup

    cls = load_defense("rocl")
    setup = DefenseSetup(
        model=SmallNet(), threat=ThreatModel("Linf", 0.1), config=cls.Config(), num_classes=3,
        image_shape=(3, 32, 32), train_size=48,
    )  # fmt: skip
    assert [s.whole_batch for s in cls(setup.config).stages(setup)] == [True, False]
