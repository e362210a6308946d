"""ABSLD: temperatures by hand, both ways of using them, and RSLAD where they are 1."""

import pytest
import torch

from robobench.defenses.absld import ABSLDConfig, ABSLDObjective
from robobench.defenses.rslad import RSLADConfig, RSLADObjective
from robobench.training.accumulation import one_step
from robobench.training.base import FrozenModel
from tests.helpers.defenses import ADV, CLEAN, LABELS, THREAT, Echo, batch_of, images_of
from tests.helpers.toys import TinyBatchNormNet, color_blobs
from tests.helpers.training import RUNTIME

TEACHER = FrozenModel(Echo(0.0, 2.0, 0.5))
BATCH = batch_of(images_of(CLEAN), LABELS)


def objective_of(**changes):
    made = ABSLDObjective(Echo(), THREAT, ABSLDConfig(**changes), TEACHER, 3)
    made.inner_maximization = lambda batch, target: images_of(ADV)
    return made


def test_first_epoch_is_rslad():
    rslad = RSLADObjective(Echo(), THREAT, RSLADConfig(), TEACHER)
    rslad.inner_maximization = lambda batch, target: images_of(ADV)
    torch.testing.assert_close(objective_of()(BATCH).total, rslad(BATCH).total)


@pytest.mark.parametrize("joint", [True, False])
def test_targets_are_divided_by_temperatures(joint):
    objective = objective_of(joint_temperatures=joint)
    objective.temperatures.copy_(torch.tensor([[2.0, 1, 4], [0.5, 1, 3]]))
    adv, clean = objective.targets(BATCH)
    logits = TEACHER(BATCH.images)
    first, second = torch.tensor([[2.0], [4.0]]), torch.tensor([[0.5], [3.0]])  # of classes 0 and 2
    torch.testing.assert_close(adv, logits / first / second if joint else logits / first)
    torch.testing.assert_close(clean, logits / first / second if joint else logits / second)


def test_temperatures_move_by_relative_loss():
    """Losses 1, 2 and 6 have the gaps -2, -1 and 3 to their mean."""
    objective = objective_of()
    objective.class_losses.copy_(torch.tensor([[1.0, 2, 6], [4, 4, 4]]))
    metrics, ends = objective.update_temperatures(batch_of(BATCH.images, LABELS, epoch=0))
    expected = torch.tensor([[1 + 0.2 / 3, 1 + 0.1 / 3, 0.9], [1, 1, 1]])
    torch.testing.assert_close(objective.temperatures, expected)
    assert not ends and metrics["min_temperature"] == pytest.approx(0.9)
    assert objective.class_losses.abs().max() == 0


def test_rate_drops_with_learning_rate_and_limits_hold():
    objective = objective_of()
    objective.class_losses.copy_(torch.tensor([[0.0, 0, 3], [0, 0, 3]]))
    objective.update_temperatures(batch_of(BATCH.images, LABELS, epoch=214))  # after 215 epochs
    torch.testing.assert_close(objective.temperatures[0], torch.tensor([1.005, 1.005, 0.99]))
    objective.temperatures.fill_(0.5)
    objective.class_losses.copy_(torch.tensor([[0.0, 0, 3], [0, 0, 3]]))
    objective.update_temperatures(batch_of(BATCH.images, LABELS, epoch=0))
    assert objective.temperatures.min() == 0.5


def test_class_losses_add_up():
    objective = objective_of()
    objective(BATCH)
    objective(BATCH)
    expected = -2 * torch.tensor([[0.3, 1, 0.1], [0.7, 1, 0.5]]).log()
    torch.testing.assert_close(objective.class_losses, expected)


def test_weight_perturbation_counts_each_image_once():
    """The sums of a step equal those of a step whose perturbation is tiny, not twice as much."""
    sums = []
    for gamma in (0.0, 1e-6):
        torch.manual_seed(0)
        model = TinyBatchNormNet()
        config = ABSLDConfig(inner_steps=1, awp_gamma=gamma)
        objective = ABSLDObjective(model, THREAT, config, FrozenModel(TinyBatchNormNet()), 3).train()
        batch = batch_of(*color_blobs(6))
        one_step(RUNTIME, objective, torch.optim.SGD(model.parameters(), 0.1), batch, services=config)
        sums.append(objective.class_losses.clone())
    torch.testing.assert_close(*sums, rtol=1e-3, atol=1e-3)
