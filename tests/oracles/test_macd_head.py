"""MACD's head phase: the backbone stays, BatchNorm's statistics are those of a clean pass, the head converges."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.core.timing import Stopwatch
from robobench.defenses.macd import MACDConfig, head
from robobench.training.base import DefenseSetup, PrecomputedArray, Train
from robobench.training.context import TrainRuntime
from robobench.training.linear_head import clean_features
from robobench.training.loop import run_train
from robobench.training.precompute import run_precompute
from tests.helpers.macd import IMAGES, LABELS, TINY, setup_of, state


class Images:
    """The helper's images as a source of the training loop."""

    labels = LABELS

    def __len__(self) -> int:
        return len(IMAGES)

    def images(self, index: Tensor) -> Tensor:
        return IMAGES[index]


def run_head_phase(config: MACDConfig = TINY) -> tuple[DefenseSetup, dict[str, Tensor]]:
    """Run the phase as the core does; return the setup, and the state of the model before it."""
    setup = setup_of()
    setup.model.body[1].running_mean.fill_(5.0)  # type: ignore[index,union-attr,operator]
    before, runtime = state(setup.model), TrainRuntime("cpu", "fp32", 0)
    for stage in head.stages(setup, config):
        if isinstance(stage, Train):
            run_train(runtime, stage, Images(), Stopwatch())
        else:
            array = torch.cat(
                [torch.from_numpy(part) for part in run_precompute(runtime, stage, Images(), Stopwatch())[1]]
            )
            assert array.shape[1:] == stage.shape
            setup.precomputed[stage.name] = PrecomputedArray(array.numpy())
    return setup, before


def test_head_phase_keeps_backbone_bit_for_bit():
    setup, before = run_head_phase()
    moved = {name for name, value in setup.model.state_dict().items() if not torch.equal(value, before[name])}
    statistics = {"body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked"}
    assert moved == {"head.weight", "head.bias", *statistics}
    setup, before = run_head_phase(replace(TINY, bn_recalibrate=False))
    moved = {name for name, value in setup.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"head.weight", "head.bias"}


def test_statistics_are_those_of_one_clean_pass():
    """One batch of all images: their mean, and their variance with n - 1."""
    setup, _ = run_head_phase(replace(TINY, batch_size=24))
    with torch.no_grad():
        convolved = setup.model.body[0](IMAGES)  # type: ignore[index,operator]
    norm = setup.model.body[1]  # type: ignore[index]
    torch.testing.assert_close(norm.running_mean, convolved.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, convolved.var((0, 2, 3)))


def test_statistics_of_batches_are_averaged():
    setup = setup_of()
    recalibrate, convolved = head.Recalibrate(setup.model).train(), setup.model.body[0]  # type: ignore[index]
    parts = [IMAGES[:12], IMAGES[12:]]
    for part in parts:
        loss = recalibrate(head.Batch(part, LABELS, LABELS, 0, None))  # type: ignore[arg-type]
        assert not loss.total.requires_grad
    with torch.no_grad():
        variances = [convolved(part).var((0, 2, 3)) for part in parts]  # type: ignore[operator]
    torch.testing.assert_close(setup.model.body[1].running_var, sum(variances) / 2)  # type: ignore[index]


def test_head_reaches_optimum_of_logistic_regression():
    """The optimum of the regularized cross-entropy on the frozen features, found by L-BFGS in float64."""
    decay = 0.01
    config = replace(TINY, head_epochs=300, head_lr=0.5, weight_decay=decay, batch_size=24)
    setup, _ = run_head_phase(config)
    features = clean_features(setup.model.eval(), IMAGES).double()
    optimum = nn.Linear(features.shape[1], 3).double()
    solver = torch.optim.LBFGS(optimum.parameters(), max_iter=2000, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def objective(layer: nn.Linear) -> Tensor:
        penalty = decay / 2 * sum(p.square().sum() for p in layer.parameters())
        return F.cross_entropy(layer(features), LABELS) + penalty

    def closure() -> Tensor:
        solver.zero_grad()
        loss = objective(optimum)
        loss.backward()
        return loss

    solver.step(closure)  # type: ignore[arg-type,no-untyped-call]
    trained = setup.model.head.double()  # type: ignore[union-attr,operator]
    assert objective(trained).item() == pytest.approx(objective(optimum).item(), rel=1e-3)
    torch.testing.assert_close(trained.weight, optimum.weight, rtol=0, atol=0.01)


def test_head_trains_on_features_of_eval_mode():
    setup, _ = run_head_phase()
    stored = setup.precomputed["head-features"][torch.arange(24)]
    torch.testing.assert_close(stored, setup.model.eval().features(IMAGES))  # type: ignore[operator]
