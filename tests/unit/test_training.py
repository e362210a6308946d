from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters

from robobench.core.console import Reporter
from robobench.core.device import COMPILE_MIN_IMAGES, should_compile
from robobench.core.threat import ThreatModel
from robobench.core.timing import Stopwatch
from robobench.defenses.at import ATConfig, ATObjective
from robobench.errors import NonFiniteLossError, RequestError
from robobench.execution.training_job import Trainer
from robobench.models.wrapper import PreprocessedModel
from robobench.planning.planner import make_plan
from robobench.planning.request import ExperimentConfig
from robobench.testing import Blobs, SmallNet
from robobench.training.accumulation import batch_sizes
from robobench.training.base import Batch, DefenseSetup, Loss, Precompute, Train, TrainConfig, lr_schedule, sgd
from robobench.training.context import TrainRuntime
from robobench.training.loop import run_train
from robobench.training.precompute import run_precompute


class Spy(nn.Module):
    """Cross-entropy that remembers what it was given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[Batch] = []

    def forward(self, batch: Batch) -> Loss:
        self.seen.append(batch)
        return Loss(F.cross_entropy(self.model(batch.images), batch.labels), {"one": torch.tensor(1.0)})


def stage(objective: nn.Module, **recipe: object) -> Train:
    config = TrainConfig(**{"epochs": 2, "batch_size": 20, "lr": 0.05, "augment": "none", **recipe})  # type: ignore[arg-type]
    setup = DefenseSetup(
        model=nn.Identity(),
        threat=ThreatModel("Linf", 0.1),
        config=config,
        num_classes=3,
        image_shape=(3, 32, 32),
        train_size=48,
    )
    return setup.train("train", objective)


def test_an_epoch_is_cut_into_batches_of_nearly_equal_size():
    assert batch_sizes(1437, 128) == [120] * 9 + [119] * 3
    assert batch_sizes(5, 128) == [5]
    assert sum(batch_sizes(129, 128)) == 129 and min(batch_sizes(129, 128)) == 64


def test_the_warm_up_holds_no_state_of_an_optimizer():
    """It has a copy of the network already: with such a state too it would need more than any step after it."""
    made, plain = [], stage(SmallNet())
    kept = replace(plain, objective=Spy(SmallNet()), optimizer=lambda o: made.append(plain.optimizer(o)) or made[-1])
    run_train(TrainRuntime("cpu", "fp32", 0), kept, Blobs(), Stopwatch())
    assert len(made) == 1 and made[0].state


def test_every_image_is_seen_once_an_epoch_in_another_order():
    spy = Spy(SmallNet())
    run_train(TrainRuntime("cpu", "fp32", 0), stage(spy), Blobs(), Stopwatch())
    epochs = [torch.cat([b.index for b in spy.seen if b.epoch == e]) for e in (0, 1)]
    for order in epochs:
        assert order.sort().values.tolist() == list(range(48))
    assert not torch.equal(*epochs)


def test_the_draws_of_an_image_do_not_depend_on_the_batch_size():
    draws = {}
    for batch_size in (20, 48):
        spy = Spy(SmallNet())
        run_train(TrainRuntime("cpu", "fp32", 0), stage(spy, batch_size=batch_size), Blobs(), Stopwatch())
        first = [b for b in spy.seen if b.epoch == 1]
        draws[batch_size] = {int(i): float(u) for b in first for i, u in zip(b.index, b.rng.uniform(), strict=True)}
    assert draws[20] == draws[48]


def test_training_leaves_torch_s_generator_alone():
    before = torch.get_rng_state()
    run_train(TrainRuntime("cpu", "fp32", 0), stage(Spy(SmallNet())), Blobs(), Stopwatch())
    assert torch.equal(before, torch.get_rng_state())


def test_the_warm_up_changes_nothing_that_is_trained():
    net = SmallNet()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    run_train(TrainRuntime("cpu", "fp32", 0), stage(Spy(net), epochs=0), Blobs(), Stopwatch())
    from robobench.training.loop import warm_up

    warm_up(TrainRuntime("cpu", "fp32", 0), stage(Spy(net)), Spy(net), Blobs())
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_a_loss_that_is_not_finite_stops_training_at_that_step():
    class Breaks(Spy):
        def forward(self, batch: Batch) -> Loss:
            loss = super().forward(batch)
            return Loss(loss.total * (float("nan") if batch.epoch == 1 else 1.0))

    spy = Breaks(SmallNet())
    with pytest.raises(NonFiniteLossError, match=r"stage 'train' became nan in epoch 2, step 1"):
        run_train(TrainRuntime("cpu", "fp32", 0), stage(spy), Blobs(), Stopwatch())
    assert sum(b.epoch == 1 for b in spy.seen) == 1


def test_logging_stands_outside_the_clock():
    def slow_log(name: str, epoch: int, metrics: dict[str, float]) -> None:
        import time

        time.sleep(0.4)

    quick, _ = run_train(TrainRuntime("cpu", "fp32", 0), stage(Spy(SmallNet())), Blobs(), Stopwatch(), slow_log)
    assert quick.seconds < 0.8  # two sleeps would make it more


def test_a_look_that_may_end_a_stage_is_paid_for_by_it():
    def watch(batch: Batch) -> tuple[dict[str, float], bool]:
        import time

        time.sleep(0.3)
        return {}, False

    record, _ = run_train(
        TrainRuntime("cpu", "fp32", 0), replace(stage(Spy(SmallNet())), watch=watch), Blobs(), Stopwatch()
    )
    assert record.seconds >= 0.6  # two epochs


def test_a_loss_without_a_gradient_takes_no_step():
    class Looks(Spy):
        def forward(self, batch: Batch) -> Loss:
            with torch.no_grad():
                return Loss(super().forward(batch).total)

    net = SmallNet()
    before = net.head.weight.clone()
    run_train(TrainRuntime("cpu", "fp32", 0), stage(Looks(net)), Blobs(), Stopwatch())
    assert torch.equal(before, net.head.weight)


def test_a_produced_array_is_aligned_with_the_training_images():
    data = Blobs()
    made = Precompute(name="twice", function=lambda batch: batch.images * 2, batch_size=7)
    record, parts = run_precompute(TrainRuntime("cpu", "fp32", 0), made, data, Stopwatch())
    assert torch.equal(torch.from_numpy(np.concatenate(parts)), data.images(torch.arange(48)) * 2)
    assert record.images == 48


def test_a_produced_array_is_made_in_halves_where_memory_runs_out():
    def made(most: int) -> list[np.ndarray]:
        def function(batch: Batch) -> torch.Tensor:
            if len(batch.images) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return batch.images.amax((1, 2, 3)) + batch.rng.uniform(1)[:, 0]

        stage = Precompute(name="largest", function=function, batch_size=20)
        return run_precompute(TrainRuntime("cpu", "fp32", 0), stage, Blobs(), Stopwatch())[1]

    assert np.array_equal(np.concatenate(made(6)), np.concatenate(made(20)))


def test_bf16_trains_to_nearly_the_same_loss():
    losses = {}
    for precision in ("fp32", "bf16"):
        found = []
        torch.manual_seed(0)
        run_train(
            TrainRuntime("cpu", precision, 0),
            stage(Spy(SmallNet()), epochs=4),
            Blobs(),
            Stopwatch(),
            lambda s, e, m, found=found: found.append(m["loss"]),
        )
        losses[precision] = found[-1]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_a_compiled_training_is_the_other_one_up_to_rounding_and_is_compiled_twice():
    losses, graphs, found = {}, [], counters["stats"]
    for compiled in (False, True):
        objective = ATObjective(PreprocessedModel(SmallNet()), ThreatModel("Linf", 0.05), ATConfig(inner_steps=2))
        before = found["unique_graphs"]
        run_train(
            TrainRuntime("cpu", "fp32", 0, compiled=compiled),
            stage(objective),  # batches of 16; the warm-up has one of 20
            Blobs(),
            Stopwatch(),
            lambda s, e, m, at=compiled: losses.setdefault(at, []).append(m["loss"]),
        )
        graphs.append(found["unique_graphs"] - before)
    assert graphs[0] == 0 and 2 <= graphs[1] <= 4  # the network attacked, and trained: once each, not once a batch
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)


def test_a_stage_from_the_store_leaves_its_network_as_compiled_as_running_it_does(tmp_path, monkeypatch):
    compiled: list[nn.Module] = []
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(nn.Module, "compile", lambda net, **how: compiled.append(net))
    sets = ("run.train_images=16", "rocl.inner_steps=1", "rocl.head_epochs=1")
    request = ExperimentConfig(
        defenses=("rocl",), compile="on", epochs=1, sets=sets, protocol="white-box", out=tmp_path
    )
    plan = make_plan(request)
    (training,) = plan.training_order()
    for _ in range(2):  # the second time only the head is trained, on a network that its stage does not register
        compiled.clear()
        Trainer(plan, Reporter(-1)).train(training)
        assert compiled
        shutil.rmtree(tmp_path / training.folder)


def test_a_teacher_is_compiled_before_it_is_measured_where_no_clock_runs(tmp_path, monkeypatch):
    compiled: list[nn.Module] = []
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(nn.Module, "compile", lambda net, **how: compiled.append(net))

    def probe(engine, network, *rest):
        assert network.net in compiled
        raise torch._dynamo.exc.InternalTorchDynamoError("odd")

    monkeypatch.setattr(trainer, "probe", probe)
    request = ExperimentConfig(
        defenses=("iad",), compile="on", epochs=1, sets=("run.train_images=16", "at.inner_steps=1"), out=tmp_path
    )
    runner = Trainer(make_plan(request), Reporter(-1))
    runner.train_all()
    assert list(runner.failures.values()) == ["it cannot be compiled (odd); --compile off trains it"]


def test_auto_compiles_long_trainings_on_a_cpu_with_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    assert [should_compile("auto", "cpu", images) for images in (COMPILE_MIN_IMAGES - 1, COMPILE_MIN_IMAGES)] == [
        False,
        True,
    ]
    assert (
        not should_compile("auto", "cuda", 10**9)
        and should_compile("on", "cuda", 1)
        and not should_compile("off", "cpu", 10**9)
    )
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not should_compile("auto", "cpu", 10**9)
    with pytest.raises(RequestError, match=r"needs a C\+\+ compiler"):
        should_compile("on", "cpu", 1)


def test_step_schedules_drop_at_the_published_epochs():
    at = lr_schedule(TrainConfig())  # 200 epochs, tenfold at 100 and 150
    assert [round(at(e), 6) for e in (0, 99.9, 100, 149.9, 150, 199)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_one_cycle_rises_then_falls_to_zero():
    factor = lr_schedule(TrainConfig(epochs=10, schedule="one-cycle"))
    assert factor(0) == 0 and factor(3) == pytest.approx(1) and factor(10) == 0


def test_the_training_radius_grows_over_the_warm_up():
    recipe, threat = TrainConfig(epochs=12, eps_rampup=1 / 3), ThreatModel("Linf", 0.1)
    assert [round(recipe.threat_at_epoch(threat, e).eps, 4) for e in (0, 1, 3, 11)] == [0.025, 0.05, 0.1, 0.1]


def test_sgd_takes_the_recipe_s_values():
    group = sgd(TrainConfig(lr=0.3, momentum=0.8, weight_decay=1e-3))(SmallNet()).param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.3, 0.8, 1e-3)


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", -1), ("drops", (100, 150)), ("lr", 0), ("momentum", 1), ("schedule", "steps"), ("eps_rampup", 2)],
)
def test_a_recipe_names_the_field_that_is_wrong(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        TrainConfig(**{field: value})
