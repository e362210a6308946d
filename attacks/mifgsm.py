"""MI-FGSM: iterative FGSM with momentum, for transfer attacks, and its variants DI, TI, SI and VMI.

Paper:   Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018, arXiv:1710.06081: Algorithm 1
         and, for L2, eq. 9.
         DI: Xie et al., "Improving Transferability of Adversarial Examples with Input Diversity", CVPR 2019,
         arXiv:1803.06978.
         TI: Dong et al., "Evading Defenses to Transferable Adversarial Examples by Translation-Invariant Attacks",
         CVPR 2019, arXiv:1904.02884.
         SI: Lin et al., "Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks", ICLR 2020,
         arXiv:1908.06281.
         VMI: Wang and He, "Enhancing the Transferability of Adversarial Attacks through Variance Tuning", CVPR 2021,
         arXiv:2103.15571, Algorithm 1.
Code:    torchattacks; tests compare images.
Differs: DI draws size and place for each image, and they need not be whole pixels. SI has no Nesterov step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import (
    ATTACKS,
    AttackState,
    IterativeAttack,
    KeyedRng,
    attack_cross_entropy,
    loss_and_input_grad,
    per_image,
)


@dataclass(frozen=True, kw_only=True)
class MIFGSMConfig:
    steps: int = 10  # T in the paper
    relative_step: float = 0.1  # step size / eps; 1 / T, so that T steps reach the surface of the ball
    decay: float = 1.0  # mu in the paper

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.relative_step > 0 or self.decay < 0:
            raise ValueError(
                f"steps must be >= 1, relative_step > 0 and decay >= 0, got {self.steps}, {self.relative_step}, "
                f"{self.decay}"
            )


@ATTACKS.register("mifgsm")
class MIFGSM(IterativeAttack):
    """Iterative FGSM with momentum, from the clean image."""

    Config = MIFGSMConfig
    version = 2
    supports_bf16_search = supports_compile = True

    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState:
        """Start at the clean image with zero momentum."""
        return AttackState(images, labels, images.clone(), rng, {"momentum": torch.zeros_like(images)})

    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]:
        """Add the gradient, scaled to L1 norm 1, to the momentum, and step along the momentum."""
        logits, grad, memory = self.gradient(model, state)
        tiny = torch.finfo(grad.dtype).tiny
        grad = grad / per_image(grad.flatten(1).abs().amax(1).clamp_min(tiny), grad)  # the sum must not underflow
        grad = grad / per_image(grad.flatten(1).abs().sum(1).clamp_min(tiny), grad)
        momentum = self.config.decay * state.memory["momentum"] + grad
        step_size = self.config.relative_step * self.threat.eps
        adv = self.threat.step(state.adv, momentum, step_size, state.images)
        return state.advance(adv, momentum=momentum, **memory), logits

    def gradient(self, model: nn.Module, state: AttackState) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return logits (B, K) at `state.adv`, the gradient (B, C, H, W) to follow, and what to remember."""
        return *self.loss_gradient(model, state, state.adv), {}

    def loss_gradient(self, model: nn.Module, state: AttackState, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, K) and the gradient of the cross-entropy at images (B, C, H, W)."""

        def loss(logits: Tensor, _: Tensor) -> Tensor:
            return attack_cross_entropy(logits, state.labels)

        logits, _, grad = loss_and_input_grad(self.name, model, images, state.labels, loss)
        return logits, grad


class _Transformed(nn.Module):
    """A model behind a differentiable function of its images."""

    def __init__(self, model: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(self.function(images))
        return logits


@dataclass(frozen=True, kw_only=True)
class DIFGSMConfig(MIFGSMConfig):
    resize_rate: float = 0.9  # smallest side of the resized image, as a fraction
    diversity_prob: float = 0.5  # probability that an image is resized and padded in a step; p in the paper

    def __post_init__(self) -> None:
        MIFGSMConfig.__post_init__(self)
        if not 0 < self.resize_rate <= 1 or not 0 <= self.diversity_prob <= 1:
            raise ValueError(
                f"resize_rate must lie in (0, 1] and diversity_prob in [0, 1], got {self.resize_rate}, "
                f"{self.diversity_prob}"
            )


@ATTACKS.register("difgsm")
class DIFGSM(MIFGSM):
    """MI-FGSM with input diversity: gradients of images that are resized and padded at random."""

    Config = DIFGSMConfig
    supports_bf16_search = supports_compile = False

    @property
    def cost(self) -> float:
        """One more forward per step, of the image itself."""
        return 3.0 * self.steps + 1

    def gradient(self, model: nn.Module, state: AttackState) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Take the gradient through resizing to a random size and padding with zeros to a random place."""
        draws = state.rng.child("diversity", state.iteration).uniform(4).to(state.adv.dtype)
        scale = 1 - (1 - self.config.resize_rate) * draws[:, 0] * (draws[:, 3] < self.config.diversity_prob)
        shift = (2 * draws[:, 1:3] - 1) * (1 - scale)[:, None]  # of the center; the image has the corners -1 and 1
        theta = torch.diag_embed((1 / scale)[:, None].expand(-1, 2))
        theta = torch.cat((theta, (-shift / scale[:, None])[:, :, None]), 2)

        def resize_and_pad(images: Tensor) -> Tensor:
            grid = F.affine_grid(theta, list(images.shape), align_corners=False)
            return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

        with torch.no_grad():
            logits = model(state.adv)
        return logits, self.loss_gradient(_Transformed(model, resize_and_pad), state, state.adv)[1], {}


@dataclass(frozen=True, kw_only=True)
class TIFGSMConfig(MIFGSMConfig):
    kernel_size: int = 15  # pixels, odd
    kernel_sigmas: float = 3.0  # standard deviations from the middle of the kernel to its edge

    def __post_init__(self) -> None:
        MIFGSMConfig.__post_init__(self)
        if self.kernel_size < 1 or self.kernel_size % 2 == 0 or not self.kernel_sigmas > 0:
            raise ValueError(
                f"kernel_size must be odd and kernel_sigmas > 0, got {self.kernel_size}, {self.kernel_sigmas}"
            )


@ATTACKS.register("tifgsm")
class TIFGSM(MIFGSM):
    """MI-FGSM with gradients smoothed by a Gaussian kernel, which stands for translations of the image."""

    Config = TIFGSMConfig

    def gradient(self, model: nn.Module, state: AttackState) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Convolve the gradient with the kernel."""
        logits, grad = self.loss_gradient(model, state, state.adv)
        size, channels = self.config.kernel_size, grad.shape[1]
        places = torch.linspace(-1, 1, size, device=grad.device, dtype=grad.dtype) if size > 1 else grad.new_zeros(1)
        line = (-(self.config.kernel_sigmas * places).square() / 2).exp()
        kernel = torch.outer(line, line) / line.sum().square()
        largest = per_image(grad.flatten(1).abs().amax(1).clamp_min(torch.finfo(grad.dtype).tiny), grad)
        weight = kernel.expand(channels, 1, size, size)
        return logits, F.conv2d(grad / largest, weight, padding=size // 2, groups=channels), {}


@dataclass(frozen=True, kw_only=True)
class SIFGSMConfig(MIFGSMConfig):
    scales: int = 5  # copies x, x / 2, x / 4, ...; m in the paper

    def __post_init__(self) -> None:
        MIFGSMConfig.__post_init__(self)
        if self.scales < 1:
            raise ValueError(f"scales must be >= 1, got {self.scales}")


@ATTACKS.register("sifgsm")
class SIFGSM(MIFGSM):
    """MI-FGSM with the mean gradient over darker copies of the image."""

    Config = SIFGSMConfig
    supports_bf16_search = supports_compile = False

    @property
    def cost(self) -> float:
        """One forward and one input gradient per copy and step."""
        return 2.0 * int(self.config.scales) * self.steps + 1

    def gradient(self, model: nn.Module, state: AttackState) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum the gradients through the copies. The first copy is the image itself."""
        logits, grad = self.loss_gradient(model, state, state.adv)
        for number in range(1, self.config.scales):
            darker = _Transformed(model, lambda images, factor=0.5**number: factor * images)  # type: ignore[misc]
            grad = grad + self.loss_gradient(darker, state, state.adv)[1]
        return logits, grad, {}


@dataclass(frozen=True, kw_only=True)
class VMIFGSMConfig(MIFGSMConfig):
    neighbors: int = 20  # images around the current one; N in the paper
    radius: float = 1.5  # of the neighborhood, in units of eps; beta in the paper

    def __post_init__(self) -> None:
        MIFGSMConfig.__post_init__(self)
        if self.neighbors < 1 or not self.radius > 0:
            raise ValueError(f"neighbors must be >= 1 and radius > 0, got {self.neighbors}, {self.radius}")


@ATTACKS.register("vmifgsm")
class VMIFGSM(MIFGSM):
    """MI-FGSM with variance tuning: the gradient is corrected by that of 20 neighbors of the last image."""

    Config = VMIFGSMConfig
    norms = ("Linf",)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {"neighbors": 5}}
    supports_bf16_search = supports_compile = False

    @property
    def cost(self) -> float:
        """One forward and one input gradient per step for the image and for each neighbor."""
        return 2.0 * (1 + int(self.config.neighbors)) * self.steps + 1

    def gradient(self, model: nn.Module, state: AttackState) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Add the variance of the last step, and compute that of this step for the next."""
        logits, grad = self.loss_gradient(model, state, state.adv)
        total, reach = torch.zeros_like(grad), self.config.radius * self.threat.eps
        for number in range(self.config.neighbors):
            noise = 2 * state.rng.child("neighbor", state.iteration, number).uniform_like(grad) - 1
            total += self.loss_gradient(model, state, state.adv + reach * noise)[1]
        variance = state.memory.get("variance", torch.zeros_like(grad))
        return logits, grad + variance, {"variance": total / self.config.neighbors - grad}
