"""The cross-entropy that attacks maximize."""

import torch
import torch.nn.functional as F

from robobench.core.losses import attack_cross_entropy


def value_and_gradient(loss, logits, labels):
    leaf = logits.clone().requires_grad_()
    values = loss(leaf, labels)
    return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]


def cross_entropy(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")


def test_attack_loss_equals_cross_entropy():
    """Bit for bit, where the log odds of the wrong classes are at least -12."""
    logits, labels = 3 * torch.randn(200, 10, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 10
    pairs = [value_and_gradient(f, logits, labels) for f in (attack_cross_entropy, cross_entropy)]
    for ours, torchs in zip(*pairs, strict=True):
        assert torch.equal(ours, torchs)


def test_attack_loss_keeps_direction_of_confident_images():
    """In float64 the cross-entropy has its direction; in float32 its gradient is zero."""
    logits, labels = torch.tensor([[130.0, 1.0, -2.0, 0.5], [30.0, 10.0, 9.0, -5.0]]), torch.zeros(2, dtype=torch.long)
    ours = value_and_gradient(attack_cross_entropy, logits, labels)[1]
    exact = value_and_gradient(cross_entropy, logits.double(), labels)[1].float()
    exact[1] /= exact[1].norm()  # the first row underflows in float32
    torch.testing.assert_close(ours[1] / ours[1].norm(), exact[1])
    assert not value_and_gradient(cross_entropy, logits, labels)[1][0].any()
    weights = logits[0, 1:].softmax(0)
    torch.testing.assert_close(ours[0] / -ours[0, 0], torch.cat((torch.tensor([-1.0]), weights)))


def test_attack_loss_orders_logits_of_any_scale():
    gaps = torch.tensor([0.0, 5.0, 11.9, 12.1, 50.0, 1e5, 1e37])
    losses = attack_cross_entropy(torch.stack((gaps, -gaps * 0), 1), torch.zeros(7, dtype=torch.long))
    assert bool((losses.diff() < 0).all()) and bool(losses.isfinite().all())
