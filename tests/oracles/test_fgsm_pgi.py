"""FGSM-PGI: each image starts from its perturbation of the previous epoch, moved along a momentum."""

import pytest
import torch
import torch.nn.functional as F

from robobench.core.threat import ThreatModel
from robobench.defenses.fgsm_pgi import FGSMPGI, FGSMPGIConfig, FGSMPGIObjective
from robobench.training.image_state import ImageState
from tests.helpers.defenses import batch_of, setup_of
from tests.helpers.toys import LinearTwoClass, TinyBatchNormNet, color_blobs

EPS = 0.05
SHAPE = (3, 4, 4)


def objective_of(folder, model=None, **changes):
    state = ImageState((2, *SHAPE))
    state.open(folder)
    model = model or LinearTwoClass(SHAPE)
    return FGSMPGIObjective(model, ThreatModel("Linf", EPS), FGSMPGIConfig(**changes), state)


def batch(epoch=0, count=4):
    return batch_of(torch.full((count, *SHAPE), 0.5), torch.zeros(count).long(), epoch)


def test_first_epoch_starts_in_random_corners(tmp_path):
    delta, momentum = objective_of(tmp_path).prior(batch())
    assert set(delta.abs().unique().tolist()) == {torch.tensor(EPS).item()}
    assert 0.3 < (delta > 0).float().mean() < 0.7 and not momentum.any()


def test_next_epoch_starts_from_moved_perturbation(tmp_path):
    """On a linear model the gradient's sign is that of -w: corners against it end at 0, the others stay."""
    objective = objective_of(tmp_path)
    corner = objective.prior(batch())[0]
    objective(batch())
    ascent = -objective.model.w.detach().sign().view(SHAPE)
    delta, momentum = objective.prior(batch(1))
    torch.testing.assert_close(delta, torch.where(corner.sign() == ascent, corner, 0.0), atol=1e-7, rtol=0)
    assert torch.equal(momentum.sign(), ascent.expand_as(momentum))
    objective(batch(1))
    torch.testing.assert_close(objective.prior(batch(2))[0], (EPS * ascent).expand_as(delta), atol=1e-7, rtol=0)


def test_momentum_is_decayed_sum_of_normalized_gradients(tmp_path):
    """With equal images all gradients are parallel to w, and their L1 norms are 1 on average."""
    objective = objective_of(tmp_path, decay=0.3)
    objective(batch())
    objective(batch(1))
    lengths = objective.prior(batch(2))[1].abs().flatten(1).sum(1)
    assert lengths.mean().item() == pytest.approx(1.3, rel=1e-5)


def test_perturbations_start_anew_after_reset(tmp_path):
    objective = objective_of(tmp_path, epochs=4, reset=0.5)
    for epoch in (0, 1):
        objective(batch(epoch))
    delta, momentum = objective.prior(batch(2))
    assert delta.abs().min() > 0.04 and not momentum.any()


def test_repeated_step_gives_same_loss(tmp_path):
    objective = objective_of(tmp_path)
    objective(batch())
    first, again = (objective(batch(1)).total.item() for _ in range(2))
    assert first == again


def test_loss_is_cross_entropy_plus_squared_logit_difference(tmp_path):
    images, labels = color_blobs(6, size=4)
    model = TinyBatchNormNet().eval()
    objective, data = objective_of(tmp_path, model), batch_of(images, labels)
    start = images + objective.prior(data)[0]
    adv = objective.inner_maximization(data)
    expected = F.cross_entropy(model(adv), labels) + 10 * (model(adv) - model(start)).square().mean()
    loss = objective(data)
    torch.testing.assert_close(loss.total, expected)
    weight = model.body[0].weight
    grads = [torch.autograd.grad(value, weight)[0] for value in (loss.total, expected)]
    torch.testing.assert_close(*grads)  # also through the logits of the start


def test_checkpoint_holds_no_values_per_image():
    (stage,) = FGSMPGI(FGSMPGIConfig()).stages(setup_of())
    assert {name.split(".")[0] for name in stage.objective.state_dict()} == {"model"}
    assert stage.image_state.shape == (2, 3, 8, 8)
