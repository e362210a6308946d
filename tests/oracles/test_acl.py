"""ACL: NT-Xent of pairs, clean and attacked views with BatchNorm layers of their own, then TRADES."""

import math

import pytest
import torch
import torch.nn.functional as F

from robobench.core.module_state import eval_mode
from robobench.defenses.acl import ACL, ACLConfig, ACLObjective, TuneObjective, nt_xent
from robobench.defenses.trades import TradesConfig, TradesObjective
from tests.helpers.defenses import THREAT, batch_of, setup_of
from tests.helpers.toys import TinyBatchNormNet, color_blobs

IMAGES, LABELS = color_blobs(6)


def pretraining(**changes):
    objective = ACL(ACLConfig(inner_steps=2, **changes)).stages(setup_of())[0].objective()
    assert isinstance(objective, ACLObjective)
    return objective.train()


def test_nt_xent_of_two_orthogonal_pairs():
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 3.0]])  # A0 A1 B0 B1
    share = math.exp(2) / (math.exp(2) + 2)  # the positive against two at right angles; not against itself
    torch.testing.assert_close(nt_xent(embeddings, 0.5), torch.full((4,), -math.log(share)))


def test_nt_xent_and_gradient_equal_double_loop():
    embeddings = torch.randn(8, 5, requires_grad=True)
    unit, losses = F.normalize(embeddings), []
    for i in range(8):
        exps = [(unit[i] @ unit[k] / 0.5).exp() for k in range(8) if k != i]
        losses.append(-((unit[i] @ unit[(i + 4) % 8] / 0.5).exp() / torch.stack(exps).sum()).log())
    ours, written = nt_xent(embeddings, 0.5), torch.stack(losses)
    torch.testing.assert_close(ours, written)
    grads = [torch.autograd.grad(value.mean(), embeddings)[0] for value in (ours, written)]
    torch.testing.assert_close(*grads)  # both sides of a similarity get a gradient


def test_clean_and_attacked_views_have_own_batchnorm():
    objective, batch = pretraining(), batch_of(IMAGES, LABELS)
    views = torch.cat((IMAGES, IMAGES.flip(3)))
    norm = objective.embedder.model.body[1]
    clean = objective.norms_of_clean[0]
    assert objective.norm_names[0] == "model.body.1" and torch.equal(norm.weight, clean.weight)
    before = norm.running_mean.clone()
    objective.embed_clean(views)
    assert torch.equal(norm.running_mean, before)
    mean = objective.embedder.model.body[0](views).mean((0, 2, 3))
    torch.testing.assert_close(clean.running_mean, 0.1 * mean)
    objective(batch).total.backward()
    assert norm.weight.grad.norm() > 0 and clean.weight.grad.norm() > 0
    assert not torch.equal(norm.running_mean, before) and not torch.equal(norm.running_mean, clean.running_mean)


def test_attack_increases_contrast_of_both_views_in_ball():
    objective, batch = pretraining(), batch_of(IMAGES, LABELS)
    views = torch.cat((IMAGES, IMAGES.flip(3)))
    adv = objective.attack_views(views, batch)
    THREAT.check(adv, views, "acl")
    with eval_mode(objective), torch.no_grad():
        calm, attacked = (nt_xent(objective.embedder(x), 0.5) for x in (views, adv))
    assert attacked[:6].mean() > calm[:6].mean() and attacked[6:].mean() > calm[6:].mean()


def test_loss_is_mean_of_both_contrasts():
    loss = pretraining()(batch_of(IMAGES, LABELS))
    expected = (loss.metrics["contrast"] + loss.metrics["adv_contrast"]) / 2
    assert loss.total.item() == pytest.approx(expected.item())


def test_pretraining_uses_neither_head_nor_labels():
    objective = pretraining()
    loss = objective(batch_of(IMAGES, LABELS))
    other = pretraining()(batch_of(IMAGES, LABELS.flip(0)))
    assert loss.total.item() == other.total.item()
    loss.total.backward()
    assert objective.embedder.model.head.weight.grad is None


def test_fine_tuning_is_trades():
    config = ACLConfig(tune_inner_steps=3, beta=4.0)
    torch.manual_seed(0)
    model, batch = TinyBatchNormNet().eval(), batch_of(IMAGES, LABELS)
    model.head.requires_grad_(False)
    ours = TuneObjective(model, THREAT, config)(batch).total
    trades = TradesObjective(model, THREAT, TradesConfig(inner_steps=3, beta=4.0))(batch).total
    torch.testing.assert_close(ours, trades, rtol=0, atol=0)
    assert model.head.weight.requires_grad
