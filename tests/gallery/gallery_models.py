"""Models that look robust and are not, broken ones, and honest ones: factories for `robobench evaluate --model`.

Most hide an undefended network from attacks by gradient: their forward pass gives its predictions, so its adversarial
examples are theirs too. Images may have any size; the networks see 8 px.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from gallery_certified import interval_net, lipschitz_net  # type: ignore[import-not-found]
from gallery_nets import adversarially_trained, convolutional, linear, undefended  # type: ignore[import-not-found]
from torch import Tensor, nn

SIDE = 8
GRID = 16  # gray levels of the digits


def shrink(images: Tensor) -> Tensor:
    """Average images to 8 px."""
    return F.adaptive_avg_pool2d(images, SIDE)


class Masked(nn.Module):
    """A network with functions before and after it."""

    def __init__(
        self,
        net: nn.Module | None = None,
        before: Callable[[Tensor], Tensor] = lambda images: images,
        after: Callable[[Tensor], Tensor] = lambda logits: logits,
    ) -> None:
        super().__init__()
        self.net, self.before, self.after = net or undefended(), before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.net(shrink(self.before(images))))


class ReplaceGradient(torch.autograd.Function):
    """Identity whose backward pass applies a function to the gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(images)
        ctx.change = change
        return images.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.change(grad, ctx.saved_tensors[0]), None


def with_gradient(change: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    """Return the undefended network with `change(gradient, images)` as its gradient."""
    return Masked(before=lambda images: ReplaceGradient.apply(images, change))


class Decoy(nn.Module):
    """The predictions of one network, the gradient of another one."""

    def __init__(self, net: nn.Module, decoy: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.net, self.decoy, self.scale = net, decoy, scale

    def forward(self, images: Tensor) -> Tensor:
        images = shrink(images)
        other = self.scale * self.decoy(images)
        return self.net(images).detach() + other - other.detach()


class Switch(nn.Module):
    """One of two networks, by a condition on the images and the number of earlier calls."""

    def __init__(self, condition: Callable[[Tensor, int], bool], one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.condition, self.one, self.other, self.calls = condition, one, other, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        chosen = self.one if self.condition(images, self.calls - 1) else self.other
        return chosen(shrink(images))


def straight_through(exact: Tensor, images: Tensor) -> Tensor:
    """Return `exact` with the gradient of `images`."""
    return exact.detach() + images - images.detach()


def hash_signs(images: Tensor) -> Tensor:
    """Return signs that change with every bit of the images."""
    return torch.sin(1e5 * images + 17 * images.flatten(1).sum(1).view(-1, 1, 1, 1)).sign()


# --- masked: the gradient is not that of the predictions ----------------------------------------


def wrong_sign(k: int) -> nn.Module:
    """The gradient has the wrong sign."""
    return with_gradient(lambda grad, _: -grad)


def random_gradient(k: int) -> nn.Module:
    """The gradient is Gaussian noise."""
    return with_gradient(lambda grad, _: torch.randn_like(grad))


def small_random_gradient(k: int) -> nn.Module:
    """The gradient is noise of size 1e-12."""
    return with_gradient(lambda grad, _: 1e-12 * torch.randn_like(grad))


def hashed_gradient(k: int) -> nn.Module:
    """The gradient has the right size, and its signs are a hash of the image."""
    return with_gradient(lambda grad, images: grad.abs() * hash_signs(images))


def hashed_but_uphill(k: int) -> nn.Module:
    """A hashed gradient to which a tenth of the true one is added."""
    return with_gradient(lambda grad, images: grad.abs().amax() * hash_signs(images) + 0.1 * grad)


def border_gradient(k: int) -> nn.Module:
    """Only the two outermost pixels have a gradient."""

    def change(grad: Tensor, _: Tensor) -> Tensor:
        inner = torch.zeros_like(grad)
        inner[..., 2:-2, 2:-2] = 1
        return grad * (1 - inner)

    return with_gradient(change)


def shuffled_gradient(k: int) -> nn.Module:
    """The gradient belongs to mirrored images."""
    return with_gradient(lambda grad, _: grad.flip(3))


def underflowing_gradient(k: int) -> nn.Module:
    """The gradient is multiplied by 1e-44."""
    return with_gradient(lambda grad, _: grad * 1e-30 * 1e-14)


def nan_gradient(k: int) -> nn.Module:
    """The gradient is NaN."""
    return with_gradient(lambda grad, _: grad * math.nan)


def cut_graph(k: int) -> nn.Module:
    """forward() detaches the images."""
    return Masked(before=lambda images: images.detach())


def new_leaf(k: int) -> nn.Module:
    """forward() makes a new leaf of the images."""
    return Masked(before=lambda images: images.detach().requires_grad_())


def no_grad(k: int) -> nn.Module:
    """forward() runs without autograd."""

    class NoGrad(Masked):
        @torch.no_grad()
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images)

    return NoGrad()


def constant_decoy(k: int) -> nn.Module:
    """Straight-through gradient of a random linear map."""
    torch.manual_seed(0)
    decoy = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).requires_grad_(False)
    return Decoy(undefended(), decoy)


def other_decoy(k: int) -> nn.Module:
    """Straight-through gradient of another undefended network."""
    return Decoy(undefended(), undefended(1))


def robust_decoy(k: int) -> nn.Module:
    """Straight-through gradient of an adversarially trained network."""
    return Decoy(undefended(), adversarially_trained())


def scaled_decoy(k: int) -> nn.Module:
    """Straight-through gradient of another network, scaled so that a signed step changes the logits as predicted."""
    return Decoy(undefended(), undefended(1), 0.3)


def grad_mode(k: int) -> nn.Module:
    """Another network answers when autograd is on."""
    return Switch(lambda images, _: torch.is_grad_enabled(), adversarially_trained(), undefended())


def requires_grad(k: int) -> nn.Module:
    """Another network answers when the images require a gradient."""
    return Switch(lambda images, _: images.requires_grad, adversarially_trained(), undefended())


def one_class_gradient(k: int) -> nn.Module:
    """Only the logit of class 0 has a gradient."""
    return Masked(after=lambda z: torch.cat((z[:, :1], z[:, 1:].detach()), 1))


def predicted_class_gradient(k: int) -> nn.Module:
    """Only the largest logit has a gradient, and it is that of class 0."""
    return Masked(after=lambda z: z.detach() + z[:, :1] - z[:, :1].detach())


def gradient_off_grid(k: int) -> nn.Module:
    """The gradient is right at images on the grid of gray levels, and has the wrong sign elsewhere."""

    def change(grad: Tensor, images: Tensor) -> Tensor:
        on_grid = ((images * GRID * 4).frac().abs() < 1e-4).flatten(1).float().mean(1) > 0.9
        return torch.where(on_grid.view(-1, 1, 1, 1), grad, -grad)

    return with_gradient(change)


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
