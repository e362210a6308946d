"""Attacks of torchattacks that robobench has too, with torchattacks' names, arguments and defaults.

An object is called with images (B, C, H, W) in [0, 1] and labels (B,) and returns adversarial images, each after the
full budget of the attack.

Differs: random numbers come from `seed`, an argument of every class, and not from torch's global generator, so two
calls agree. APGD, APGDT and Square return the image with the largest loss where they do not succeed; torchattacks
returns the clean image. Images and labels are checked.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from robobench.core.numbers import parse_eps
from robobench.errors import RequestError
from robobench.evaluation.tensors import device_of
from robobench.interface import attack as run_attack


class Attack:
    """An attack of robobench on a model, called with images and labels."""

    def __init__(self, model: nn.Module, eps: str | float, norm: str, seed: int, *, name: str, **config: Any) -> None:
        self.model, self.name, self.norm, self.seed, self.config = model, name, norm, seed, config
        self.eps = parse_eps(eps, norm)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return adversarial images (B, C, H, W)."""
        device = device_of(self.model, images)
        images, labels = images.detach().to(device), labels.to(device)
        return run_attack(
            self.name, self.model, images, labels, eps=self.eps, norm=self.norm, seed=self.seed, **self.config
        )


def _relative_step(alpha: float, eps: str | float, norm: str) -> float:
    """Return a step size as a fraction of the radius; any at radius 0, where nothing moves."""
    return alpha / (parse_eps(eps, norm) or alpha)


def _pgd(random_start: bool) -> dict[str, Any]:
    """Return the attack that is PGD from a random start or from the clean image, and its own config values.

    MI-FGSM without memory of earlier gradients is PGD from the clean image.
    """
    return {"name": "pgd"} if random_start else {"name": "mifgsm", "decay": 0.0}


def _refuse(**values: tuple[Any, Any]) -> None:
    """Raise RequestError for an argument that has another value than the only supported one: name=(given, only)."""
    for name, (given, only) in values.items():
        if given != only:
            raise RequestError(f"{name}={given} is not supported here; leave it at {only}, or use torchattacks")


class FGSM(Attack):
    """One step of size eps, Linf."""

    def __init__(self, model: nn.Module, eps: str | float = 8 / 255, *, seed: int = 0) -> None:
        super().__init__(model, eps, "Linf", seed, name="fgsm")


class PGD(Attack):
    """PGD on the cross-entropy, Linf."""

    def __init__(
        self,
        model: nn.Module,
        eps: str | float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        random_start: bool = True,
        *,
        seed: int = 0,
    ) -> None:
        step = _relative_step(alpha, eps, "Linf")
        super().__init__(model, eps, "Linf", seed, steps=steps, relative_step=step, **_pgd(random_start))


class BIM(PGD):
    """PGD from the clean image, Linf."""

    def __init__(
        self, model: nn.Module, eps: str | float = 8 / 255, alpha: float = 2 / 255, steps: int = 10, *, seed: int = 0
    ) -> None:
        super().__init__(model, eps, alpha, steps, random_start=False, seed=seed)


class PGDL2(Attack):
    """PGD on the cross-entropy, L2. `eps_for_division` is accepted and not needed."""

    def __init__(
        self,
        model: nn.Module,
        eps: str | float = 1.0,
        alpha: float = 0.2,
        steps: int = 10,
        random_start: bool = True,
        eps_for_division: float = 1e-10,
        *,
        seed: int = 0,
    ) -> None:
        step = _relative_step(alpha, eps, "L2")
        super().__init__(model, eps, "L2", seed, steps=steps, relative_step=step, **_pgd(random_start))


class MIFGSM(Attack):
    """Iterative FGSM with momentum, Linf."""

    def __init__(
        self,
        model: nn.Module,
        eps: str | float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 1.0,
        *,
        seed: int = 0,
    ) -> None:
        step = _relative_step(alpha, eps, "Linf")
        super().__init__(model, eps, "Linf", seed, name="mifgsm", steps=steps, relative_step=step, decay=decay)


class DIFGSM(Attack):
    """MI-FGSM with input diversity, Linf, from the clean image."""

    def __init__(
        self,
        model: nn.Module,
        eps: str | float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 0.0,
        resize_rate: float = 0.9,
        diversity_prob: float = 0.5,
        random_start: bool = False,
        *,
        seed: int = 0,
    ) -> None:
        _refuse(random_start=(random_start, False))
        values = {"steps": steps, "relative_step": _relative_step(alpha, eps, "Linf"), "decay": decay}
        values |= {"resize_rate": resize_rate, "diversity_prob": diversity_prob}
        super().__init__(model, eps, "Linf", seed, name="difgsm", **values)


class VMIFGSM(Attack):
    """MI-FGSM with variance tuning, Linf."""

    def __init__(
        self,
        model: nn.Module,
        eps: str | float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 1.0,
        N: int = 5,  # noqa: N803
        beta: float = 3 / 2,
        *,
        seed: int = 0,
    ) -> None:
        values = {"steps": steps, "relative_step": _relative_step(alpha, eps, "Linf"), "decay": decay}
        super().__init__(model, eps, "Linf", seed, name="vmifgsm", **values, neighbors=N, radius=beta)


class Jitter(Attack):
    """PGD on the Jitter loss, Linf, from a random start."""

    def __init__(
        self,
        model: nn.Module,
        eps: str | float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        scale: float = 10,
        std: float = 0.1,
        random_start: bool = True,
        *,
        seed: int = 0,
    ) -> None:
        _refuse(random_start=(random_start, True))
        step = _relative_step(alpha, eps, "Linf")
        super().__init__(model, eps, "Linf", seed, name="jitter", steps=steps, relative_step=step, scale=scale, std=std)


class APGD(Attack):
    """APGD on the cross-entropy or the DLR loss; Linf or L2."""

    def __init__(
        self,
        model: nn.Module,
        norm: str = "Linf",
        eps: str | float = 8 / 255,
        steps: int = 10,
        n_restarts: int = 1,
        seed: int = 0,
        loss: str = "ce",
        eot_iter: int = 1,
        rho: float = 0.75,
        verbose: bool = False,
    ) -> None:
        _refuse(eot_iter=(eot_iter, 1), rho=(rho, 0.75))
        if loss not in ("ce", "dlr"):
            raise RequestError(f"loss must be 'ce' or 'dlr', got '{loss}'")
        super().__init__(model, eps, norm, seed, name=f"apgd-{loss}", steps=steps, restarts=n_restarts)


class APGDT(Attack):
    """APGD on the targeted DLR loss; Linf or L2."""

    def __init__(
        self,
        model: nn.Module,
        norm: str = "Linf",
        eps: str | float = 8 / 255,
        steps: int = 10,
        n_restarts: int = 1,
        seed: int = 0,
        eot_iter: int = 1,
        rho: float = 0.75,
        verbose: bool = False,
        n_classes: int = 10,
    ) -> None:
        _refuse(eot_iter=(eot_iter, 1), rho=(rho, 0.75))
        targets = max(n_classes - 1, 1)
        super().__init__(model, eps, norm, seed, name="apgd-t", steps=steps, restarts=n_restarts, targets=targets)


class Square(Attack):
    """Square attack; Linf or L2."""

    def __init__(
        self,
        model: nn.Module,
        norm: str = "Linf",
        eps: str | float = 8 / 255,
        n_queries: int = 5000,
        n_restarts: int = 1,
        p_init: float = 0.8,
        loss: str = "margin",
        resc_schedule: bool = True,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        _refuse(n_restarts=(n_restarts, 1), loss=(loss, "margin"))
        values = {"queries": n_queries, "p_init": p_init, "rescale_schedule": resc_schedule}
        super().__init__(model, eps, norm, seed, name="square", **values)


class AutoAttack(Attack):
    """AutoAttack, standard version with 100 steps. torchattacks runs 10. `n_classes` is read from the model."""

    def __init__(
        self,
        model: nn.Module,
        norm: str = "Linf",
        eps: str | float = 8 / 255,
        version: str = "standard",
        n_classes: int = 10,
        seed: int | None = None,
        verbose: bool = False,
    ) -> None:
        _refuse(version=(version, "standard"))
        super().__init__(model, eps, norm, seed or 0, name="autoattack")
