"""PGD adversarial training: the loss by hand, the attack's start, BatchNorm, schedule and radius ramp-up."""

import math

import pytest
import torch
import torch.nn.functional as F

from robobench.core.threat import ThreatModel
from robobench.defenses.at import AT, ATConfig, ATObjective
from robobench.defenses.fast_at import FastATConfig, FastATObjective
from robobench.training.optimizer import lr_schedule
from tests.helpers.defenses import THREAT, batch_of, setup_of, skip_attack
from tests.helpers.toys import LinearTwoClass, TinyBatchNormNet, color_blobs


def buffers(model):
    return {name: value.clone() for name, value in model.named_buffers()}


@pytest.mark.parametrize(("kind", "config"), [(ATObjective, ATConfig()), (FastATObjective, FastATConfig())])
def test_loss_is_adversarial_cross_entropy(kind, config):
    objective = kind(torch.nn.Flatten(), THREAT, config)  # the images are the logits
    adv = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]]).log().view(2, 3, 1, 1)
    objective.inner_maximization = lambda batch: adv
    loss = objective(batch_of(torch.rand(2, 3, 1, 1), torch.tensor([1, 2])))
    assert loss.total.item() == pytest.approx(-(math.log(0.2) + math.log(0.8)) / 2, rel=1e-6)


@pytest.mark.parametrize(("norm", "dual"), [("Linf", 1), ("L2", 2)])
def test_attack_reaches_linear_worst_case(norm, dual):
    model, threat = LinearTwoClass((3, 4, 4)), ThreatModel(norm, 0.05)
    images, labels = torch.full((5, 3, 4, 4), 0.5), torch.zeros(5, dtype=torch.long)
    objective = ATObjective(model, threat, ATConfig(inner_steps=40))
    adv = objective.inner_maximization(batch_of(images, labels))
    drop = (model.gap(images) - model.gap(adv)).detach()
    torch.testing.assert_close(drop, (0.05 * model.w.detach().norm(dual)).expand(5), rtol=1e-3, atol=1e-6)
    assert model.w.grad is None


def test_start_is_uniform_and_clamped(monkeypatch):
    skip_attack(monkeypatch)
    objective = ATObjective(TinyBatchNormNet(), THREAT, ATConfig())
    labels = torch.zeros(16, dtype=torch.long)
    for value in (0.0, 0.5, 1.0):
        images = torch.full((16, 3, 8, 8), value)
        start = objective.inner_maximization(batch_of(images, labels))
        assert start.min() >= 0 and start.max() <= 1
        delta = start - images
        assert delta.abs().max() <= 0.1 + 1e-6
        if value == 0.5:  # 3,072 draws: the mean of |U(-0.1, 0.1)| is 0.05, its deviation 0.0005
            assert delta.abs().mean().item() == pytest.approx(0.05, abs=0.003)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_attack_updates_batchnorm_only_in_train_mode(mode):
    images, labels = color_blobs(12)
    model = TinyBatchNormNet().train()
    objective = ATObjective(model, THREAT, ATConfig(inner_steps=3, attack_bn_mode=mode))
    before = buffers(model)
    objective.inner_maximization(batch_of(images, labels))
    same = [torch.equal(value, before[name]) for name, value in model.named_buffers()]
    assert all(same) if mode == "eval" else not any(same)
    assert all(m.training for m in model.modules())
    moved = int(model.body[1].num_batches_tracked)
    assert moved == (0 if mode == "eval" else 3)


def test_attack_increases_loss():
    images, labels = color_blobs(24)
    model = TinyBatchNormNet().eval()
    adv = ATObjective(model, THREAT, ATConfig()).inner_maximization(batch_of(images, labels))
    with torch.no_grad():
        clean, attacked = (F.cross_entropy(model(x), labels) for x in (images, adv))
    assert attacked > clean + 0.01


def test_radius_grows_during_rampup():
    images, labels = color_blobs(6)
    config = ATConfig(epochs=12, eps_rampup=1 / 3)
    objective = ATObjective(TinyBatchNormNet(), THREAT, config)
    reach = []
    for epoch in range(6):
        adv = objective.inner_maximization(batch_of(images, labels, epoch))
        reach.append(THREAT.distance(adv, images).max().item())
    assert reach == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1], abs=1e-6)


def test_lr_drops_at_epochs_100_and_150():
    factor = lr_schedule(ATConfig())
    assert [factor(e) for e in (0, 99.9, 100, 149.9, 150, 199)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_single_stage_trains_given_model():
    model = TinyBatchNormNet()
    (stage,) = AT(ATConfig()).stages(setup_of(model))
    assert stage.epochs == 200 and stage.augment == "crop-flip"
    assert {id(p) for p in stage.objective.parameters()} == {id(p) for p in model.parameters()}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("inner_steps", 0, "inner_steps must be >= 1, got 0"),
        ("relative_step", 0.0, "relative_step must be > 0, got 0.0"),
        ("attack_bn_mode", "both", "attack_bn_mode must be one of eval, train, got both"),
    ],
)
def test_invalid_value_error_names_allowed_values(field, value, message):
    with pytest.raises(ValueError) as error:
        ATConfig(**{field: value})
    assert str(error.value) == message
