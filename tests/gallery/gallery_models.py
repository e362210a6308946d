"""Models that look robust and are not, broken ones, and honest ones: factories for `robobench evaluate --model`.

Most hide an undefended network from attacks by gradient: their forward pass gives its predictions, so its adversarial
examples are theirs too. Images may have any size; the networks see 8 px.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from gallery_certified import interval_net, lipschitz_net  # type: ignore[import-not-found]
from gallery_gradients import (  # type: ignore[import-not-found]  # noqa: F401
    border_gradient,
    constant_decoy,
    cut_graph,
    grad_mode,
    gradient_off_grid,
    hashed_but_uphill,
    hashed_gradient,
    nan_gradient,
    new_leaf,
    no_grad,
    one_class_gradient,
    other_decoy,
    predicted_class_gradient,
    random_gradient,
    requires_grad,
    robust_decoy,
    scaled_decoy,
    shuffled_gradient,
    small_random_gradient,
    underflowing_gradient,
    wrong_sign,
)
from gallery_nets import adversarially_trained, convolutional, linear, undefended  # type: ignore[import-not-found]
from gallery_parts import GRID, SIDE, Masked, Switch, shrink, straight_through  # type: ignore[import-not-found]
from torch import Tensor, nn

# --- masked: the images are rounded or hashed ---------------------------------------------------


def rounded(k: int) -> nn.Module:
    """Images are rounded to 8 gray levels."""
    return Masked(before=lambda images: (7 * images).round() / 7)


def rounded_to_grid(k: int) -> nn.Module:
    """Images are rounded to the digits' 17 gray levels."""
    return Masked(before=lambda images: (GRID * images).round() / GRID)


def thermometer(k: int) -> nn.Module:
    """Images are a sum of thresholds."""
    return Masked(before=lambda images: sum((images > t / 8).float() for t in range(8)) / 8 + 0 * images)


def ripple(k: int) -> nn.Module:
    """A fast sine of small amplitude is added to the logits."""

    class Ripple(Masked):
        def forward(self, images: Tensor) -> Tensor:
            small = shrink(images)
            wave = torch.sin(3e3 * small).flatten(1)[:, :100].unflatten(1, (10, 10)).sum(2)
            return self.net(small) + 0.05 * wave

    return Ripple()


def rough_images(k: int) -> nn.Module:
    """A fast sine of small amplitude is added to the images."""
    return Masked(before=lambda images: images + 0.004 * torch.sin(5e3 * images))


def staircase(k: int) -> nn.Module:
    """The images go through a smooth staircase."""
    return Masked(before=lambda images: images - torch.sin(2 * math.pi * GRID * images) / (2 * math.pi * GRID) * 0.999)


# --- masked: the logits are squashed or scaled --------------------------------------------------


def tanh(k: int) -> nn.Module:
    """tanh of the logits."""
    return Masked(after=torch.tanh)


def sharp_tanh(k: int) -> nn.Module:
    """tanh of 5 times the logits."""
    return Masked(after=lambda z: torch.tanh(5 * z))


def sigmoid(k: int) -> nn.Module:
    """Sigmoid of the logits."""
    return Masked(after=torch.sigmoid)


def softmax(k: int) -> nn.Module:
    """Probabilities instead of logits."""
    return Masked(after=lambda z: z.softmax(1))


def shifted_softmax(k: int) -> nn.Module:
    """Twice the probabilities minus 1."""
    return Masked(after=lambda z: 2 * z.softmax(1) - 1)


def hot_softmax(k: int) -> nn.Module:
    """Probabilities at temperature 1/10."""
    return Masked(after=lambda z: (10 * z).softmax(1))


def huge_logits(k: int) -> nn.Module:
    """Logits times 1e4."""
    return Masked(after=lambda z: 1e4 * z)


def astronomical_logits(k: int) -> nn.Module:
    """Logits of 1e37."""
    return Masked(after=lambda z: z / z.abs().amax(1, keepdim=True).clamp_min(1) * 1e37)


def tiny_logits(k: int) -> nn.Module:
    """Logits times 1e-20."""
    return Masked(after=lambda z: 1e-20 * z)


def rounded_logits(k: int) -> nn.Module:
    """Logits are rounded to whole numbers."""
    return Masked(after=torch.round)


def one_hot(k: int) -> nn.Module:
    """The prediction as a one-hot vector."""
    return Masked(after=lambda z: F.one_hot(z.argmax(1), z.shape[1]).float())


def integers(k: int) -> nn.Module:
    """Logits as int64."""
    return Masked(after=lambda z: (10 * z).long())


def cut_off(k: int) -> nn.Module:
    """Every logit below the largest one is -100."""
    return Masked(after=lambda z: torch.where(z == z.amax(1, keepdim=True), z, -100.0))


def clamped(k: int) -> nn.Module:
    """Logits are clamped to [-3, 3]."""
    return Masked(after=lambda z: z.clamp(-3, 3))


def flat_power(k: int) -> nn.Module:
    """The 40th root of the logits, with their sign."""
    return Masked(after=lambda z: z.sign() * (z.abs() + 1e-6) ** 0.025)


def steep_power(k: int) -> nn.Module:
    """exp of the logits."""
    return Masked(after=lambda z: (2 * z).exp())


# --- random, or dependent on the batch or on earlier calls --------------------------------------


def noisy(k: int) -> nn.Module:
    """Gaussian noise of 0.2 is added to the images."""
    return Masked(before=lambda images: images + 0.2 * torch.randn_like(images))


def shifted(k: int) -> nn.Module:
    """Images are shifted by up to two pixels of 8 at random."""

    def roll(images: Tensor) -> Tensor:
        unit = images.shape[-1] // SIDE
        steps = (unit * torch.randint(-2, 3, (2,))).tolist()
        return images.roll(steps, (2, 3))

    return Masked(before=roll)


def dropout(k: int) -> nn.Module:
    """Dropout stays on."""
    return Masked(before=lambda images: F.dropout(images, 0.3, training=True))


def rarely_random(k: int) -> nn.Module:
    """One call in three answers with another network."""
    return Switch(lambda images, _: float(torch.rand(())) < 1 / 3, adversarially_trained(), undefended())


def alternating(k: int) -> nn.Module:
    """Every second call answers with another network."""
    return Switch(lambda images, calls: calls % 2 == 1, adversarially_trained(), undefended())


def batch_statistics(k: int) -> nn.Module:
    """BatchNorm uses the statistics of the batch."""
    return Masked(before=nn.BatchNorm2d(3, track_running_stats=False))


def small_batches(k: int) -> nn.Module:
    """Batches below 16 images get the answers of a robust network."""
    return Switch(lambda images, _: len(images) < 16, adversarially_trained(), undefended())


def single_images(k: int) -> nn.Module:
    """Single images get the answers of a robust network."""
    return Switch(lambda images, _: len(images) == 1, adversarially_trained(), undefended())


def mean_image(k: int) -> nn.Module:
    """The mean of the batch is subtracted."""
    return Masked(before=lambda images: images - 0.5 * images.mean(0))


# --- broken -------------------------------------------------------------------------------------


def constant(k: int) -> nn.Module:
    """Always class 3."""

    return Masked(after=lambda z: 0 * z + F.one_hot(torch.tensor(3), z.shape[1]))


def ties(k: int) -> nn.Module:
    """The two largest logits are always equal, the true class first."""

    def tie(z: Tensor) -> Tensor:
        top = z.topk(2, 1)
        return z.scatter(1, top.indices[:, 1:], top.values[:, :1])

    return Masked(after=tie)


def guessing(k: int) -> nn.Module:
    """An untrained network."""
    torch.manual_seed(0)
    return Masked(convolutional())


# --- honest -------------------------------------------------------------------------------------


def plain(k: int) -> nn.Module:
    """An undefended network."""
    return Masked()


def robust(k: int) -> nn.Module:
    """Adversarially trained, PGD-3 at Linf 0.1."""
    return Masked(adversarially_trained())


def plain_gelu(k: int) -> nn.Module:
    """Undefended, with BatchNorm and GELU."""
    return Masked(undefended(2, nn.GELU, True))


def plain_tanh(k: int) -> nn.Module:
    """Undefended, with tanh activations."""
    return Masked(undefended(3, nn.Tanh))


def linear_model(k: int) -> nn.Module:
    """A linear classifier."""
    return Masked(linear())


def interval(k: int) -> nn.Module:
    """Certified in Linf by interval bounds."""
    return Masked(interval_net())


def lipschitz(k: int) -> nn.Module:
    """Certified in L2 by its Lipschitz constant."""
    return Masked(lipschitz_net())


def average(k: int) -> nn.Module:
    """The mean logits of two networks."""

    class Average(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nets = nn.ModuleList([undefended(), adversarially_trained()])

        def forward(self, images: Tensor) -> Tensor:
            small = shrink(images)
            return torch.stack([net(small) for net in self.nets]).mean(0)

    return Average()


def log_probabilities(k: int) -> nn.Module:
    """Log-softmax of the logits."""
    return Masked(after=lambda z: z.log_softmax(1))


def cool_logits(k: int) -> nn.Module:
    """Logits times 0.01."""
    return Masked(after=lambda z: 0.01 * z)


def hot_logits(k: int) -> nn.Module:
    """Logits times 10."""
    return Masked(after=lambda z: 10 * z)


def half_precision(k: int) -> nn.Module:
    """Logits in bfloat16."""
    return Masked(adversarially_trained(), after=lambda z: z.bfloat16())


def rounded_honestly(k: int) -> nn.Module:
    """Images are rounded to 8 bits, with a straight-through gradient (BPDA)."""
    return Masked(before=lambda images: straight_through((255 * images).round() / 255, images))


HONEST = (
    *("plain", "robust", "plain_gelu", "plain_tanh", "linear_model", "interval", "lipschitz", "average"),
    *("log_probabilities", "cool_logits", "hot_logits", "half_precision", "rounded_honestly"),
)
OTHERS = (  # masked, random or broken
    *("wrong_sign", "random_gradient", "small_random_gradient", "hashed_gradient", "hashed_but_uphill"),
    *("border_gradient", "shuffled_gradient", "underflowing_gradient", "nan_gradient", "cut_graph", "new_leaf"),
    *("no_grad", "constant_decoy", "other_decoy", "robust_decoy", "scaled_decoy", "grad_mode", "requires_grad"),
    *("one_class_gradient", "predicted_class_gradient", "gradient_off_grid", "rounded", "rounded_to_grid"),
    *("thermometer", "ripple", "rough_images", "staircase", "tanh", "sharp_tanh", "sigmoid", "softmax"),
    *("shifted_softmax", "hot_softmax", "huge_logits", "astronomical_logits", "tiny_logits", "rounded_logits"),
    *("one_hot", "integers", "cut_off", "clamped", "flat_power", "steep_power", "noisy", "shifted", "dropout"),
    *("rarely_random", "alternating", "batch_statistics", "small_batches", "single_images", "mean_image"),
    *("constant", "ties", "guessing"),
)
