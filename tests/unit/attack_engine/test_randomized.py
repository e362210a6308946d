"""Models with random outputs: averages, votes and replaced gradients, against closed forms."""

from typing import Any

import pytest
import torch
from torch import nn

import robobench
from robobench.attack_engine.bpda import BpdaModel
from robobench.attack_engine.gradient import input_gradient, loss_and_input_grad
from robobench.attack_engine.randomized import RandomizedModel, predicts_wrong
from robobench.core.randomness import Randomness
from robobench.errors import RequestError
from tests.helpers.attacks import pixels


class Sign(nn.Module):
    """Logits (-g, g) with g = s (x - 0.5), where the sign s runs through a list of passes."""

    def __init__(self, *signs):
        super().__init__()
        self.signs, self.count = signs, 0

    def forward(self, images):
        sign = self.signs[self.count % len(self.signs)]
        self.count += 1
        gap = sign * (images.flatten(1).sum(1) - 0.5)
        return torch.stack((-gap, gap), 1)


class Noisy(nn.Module):
    """Noise of standard deviation 0.6 on every image."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net(images + 0.6 * torch.randn_like(images))


class Rounded(nn.Module):
    """Pixels are rounded to multiples of 1/4; the gradient is zero, or straight-through."""

    def __init__(self, net, smooth):
        super().__init__()
        self.net, self.smooth = net, smooth

    def forward(self, images):
        rounded = (4 * images).round() / 4
        return self.net(images + (rounded - images).detach() if self.smooth else rounded)


def margin_of_class_1(logits, _):
    return logits[:, 1] - logits[:, 0]


def test_gradient_is_mean_over_passes():
    """Signs 1, 1, 1, -1 have mean 1/2: the gradient of 2 s (x - 0.5) is 2 s."""
    model = RandomizedModel(Sign(1, 1, 1, -1), Randomness(eot=4))
    logits, loss, grad = loss_and_input_grad("test", model, pixels(0.9), torch.tensor([0]), margin_of_class_1)
    assert grad.item() == pytest.approx(1.0) and loss.item() == pytest.approx(0.4)
    assert logits[0].tolist() == pytest.approx([-0.2, 0.2])
    assert model(pixels(0.9))[0].tolist() == pytest.approx([-0.2, 0.2])


@pytest.mark.parametrize(("wrong", "verdict"), [(1, True), (3, True), (4, False)])
def test_verdict_counts_wrong_passes(wrong, verdict):
    """Three of four passes predict class 1."""
    model = RandomizedModel(Sign(1, 1, 1, -1), Randomness(1, wrong, 4))
    assert predicts_wrong(model, pixels(0.9), torch.tensor([0])).item() is verdict


def test_default_verdict_is_the_majority():
    assert Randomness.parse(20, None) == Randomness(20, 11, 20)
    assert Randomness.parse(None, "1/1") == Randomness(1, 1, 1)
    assert Randomness.parse(None, None) is None
    for eot, verdict in ((0, None), (5, "6/5"), (5, "0/5"), (5, "3"), (5, "a/b")):
        with pytest.raises(RequestError):
            Randomness.parse(eot, verdict)


def test_deterministic_model_keeps_its_outcomes(digits_net, digits):
    """EoT, votes and BPDA change nothing where passes are equal and the replacement is the model."""
    flags: Any = {"model": digits_net, "images": digits[0][1000:1020], "labels": digits[1][1000:1020], "eps": 0.15}
    flags |= {"attacks": "pgd,square,apgd-ce", "sets": ("pgd.steps=4", "square.queries=30", "apgd-ce.steps=4")}
    plain = robobench.evaluate(**flags).outcomes
    adaptive = robobench.evaluate(eot=2, verdict="2/2", bpda=digits_net, **flags)
    assert all(torch.equal(plain[key], adaptive.outcomes[key]) for key in plain)
    assert adaptive.rows["attack_budget"].str.endswith("eot 2, wrong in 2 of 2 passes; bpda Sequential").all()


def test_eot_finds_what_one_pass_misses(digits_net, digits):
    """Noise at inference: under the same vote, FGSM with the mean gradient succeeds on more images. Runs repeat."""
    flags: Any = {
        "model": Noisy(digits_net),
        "images": digits[0][1000:1100],
        "labels": digits[1][1000:1100],
        "eps": 0.12,
    }
    flags |= {"attacks": "fgsm", "verdict": "11/20"}
    one, many, again = (robobench.evaluate(eot=eot, **flags) for eot in (1, 20, 20))
    left = [int(result.outcomes["fgsm", 0.12, "white-box"].sum()) for result in (one, many, again)]
    assert left[1] == left[2] < left[0] - 5
    assert torch.equal(many.clean, one.clean)


def test_bpda_breaks_rounded_inputs(digits_net, digits):
    images, labels = digits[0][1000:1020], digits[1][1000:1020]
    flags: Any = {"images": images, "labels": labels, "eps": 0.25, "attacks": "pgd", "sets": ("pgd.steps=5",)}
    model, smooth = Rounded(digits_net, False), Rounded(digits_net, True)
    masked = robobench.evaluate(model=model, **flags)
    broken = robobench.evaluate(model=model, bpda=smooth, **flags)
    key = ("pgd", 0.25, "white-box")
    assert torch.equal(masked.outcomes[key], masked.clean)
    assert broken.outcomes[key].sum() < 0.3 * broken.clean.sum()


def test_bpda_verdict_is_the_models_own():
    """The replacement predicts the opposite; outputs and verdicts do not change, the gradient does."""
    model, images = BpdaModel(Sign(1), Sign(-1)), pixels(0.3, 0.9)
    assert torch.equal(model(images), Sign(1)(images))
    assert torch.equal(model(images.requires_grad_(True)).detach(), Sign(1)(images).detach())
    grad = input_gradient(lambda adv: margin_of_class_1(model(adv), None), images)
    assert grad.flatten().tolist() == [-2, -2]
    with pytest.raises(RequestError, match="same classes"):
        BpdaModel(Sign(1), nn.Flatten())(images)
