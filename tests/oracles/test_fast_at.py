"""Fast adversarial training: the loss and the one step by hand, the check against catastrophic overfitting."""

import copy

import pytest
import torch

from robobench.core.threat import ThreatModel
from robobench.defenses.fast_at import FastAT, FastATConfig, FastATObjective
from tests.helpers.defenses import THREAT, batch_of, setup_of
from tests.helpers.toys import LinearTwoClass, TinyBatchNormNet, color_blobs


def linear_batch(count=10, wrong=0):
    """Ten gray images of class 0 on a linear model with a gap of 1; `wrong` of them have the other label."""
    model = LinearTwoClass((3, 4, 4))
    model.bias.data.fill_(1.0)
    labels = (torch.arange(count) < wrong).long()
    return model, batch_of(torch.full((count, 3, 4, 4), 0.5), labels)


def test_attack_is_one_step_of_1_25_eps():
    model, batch = linear_batch(40)
    adv = FastATObjective(model, THREAT, FastATConfig()).inner_maximization(batch)
    start = THREAT.random_start(batch.images, batch.rng.child("start")) - batch.images
    uphill = -model.w.detach().sign().view(3, 4, 4)  # lowers the gap of class 0
    by_hand = (start + 1.25 * 0.1 * uphill).clamp(-0.1, 0.1)
    torch.testing.assert_close(adv - batch.images, by_hand, rtol=0, atol=1e-6)
    # from a uniform start 5/8 of the pixels reach the surface: those at most 1.25 eps away from it
    reached = ((adv - batch.images) * uphill > 0.1 - 1e-6).float().mean().item()
    assert reached == pytest.approx(0.625, abs=0.04)


def test_attack_stays_in_pixel_range():
    model, batch = linear_batch()
    for value in (0.0, 1.0):
        adv = FastATObjective(model, THREAT, FastATConfig()).inner_maximization(
            batch_of(torch.full_like(batch.images, value), batch.labels)
        )
        assert adv.min() >= 0 and adv.max() <= 1 and not adv.requires_grad


@pytest.mark.parametrize(("wrong", "ends"), [(2, False), (3, True)])
def test_training_ends_after_drop_above_20_points(wrong, ends):
    model, all_right = linear_batch()
    objective = FastATObjective(model, ThreatModel("Linf", 1e-6), FastATConfig())
    assert objective.check_overfitting(all_right) == ({"batch_pgd": 1.0}, False)
    metrics, ended = objective.check_overfitting(linear_batch(wrong=wrong)[1])
    assert metrics["batch_pgd"] == pytest.approx(1 - wrong / 10) and ended is ends


def test_overfitting_restores_previous_weights_and_sets_flag():
    model, batch = linear_batch()
    model.w.data *= 0.1
    objective = FastATObjective(model, THREAT, FastATConfig())
    objective.check_overfitting(batch)
    kept = copy.deepcopy(model.state_dict())
    model.w.data *= 1000  # a gap of 1 now falls by 0.1 times the weight's length: PGD-5 turns every image
    assert 0.1 * model.w.abs().sum() > 1
    assert objective.check_overfitting(batch) == ({"batch_pgd": 0.0}, True)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert objective.final_metrics() == ({"batch_pgd": 1.0}, ["catastrophic-overfitting"])


def test_last_good_weights_are_state_but_not_trained():
    model, batch = linear_batch()
    config = FastATConfig()
    (stage,) = FastAT(config).stages(setup_of(model, num_classes=2, image_shape=(3, 4, 4)))
    stage.on_epoch_end(batch)
    again = FastATObjective(LinearTwoClass((3, 4, 4), seed=1), THREAT, config)
    again.load_state_dict(stage.objective.state_dict())
    assert again.pgd_accuracy == 1 and torch.equal(again.last_good.w, model.w)
    trained = {id(p) for group in stage.optimizer(stage.objective).param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters()}


def test_check_without_overfitting_changes_nothing():
    images, labels = color_blobs(12)
    model = TinyBatchNormNet().train()
    before = copy.deepcopy(model.state_dict())
    objective = FastATObjective(model, THREAT, FastATConfig())
    assert not objective.check_overfitting(batch_of(images, labels))[1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_published_values_and_invalid_step():
    config = FastATConfig()
    assert (config.epochs, config.lr, config.relative_step, config.batch_size) == (15, 0.2, 1.25, 128)
    with pytest.raises(ValueError, match=r"relative_step must be > 0, got 0\.0"):
        FastATConfig(relative_step=0.0)
