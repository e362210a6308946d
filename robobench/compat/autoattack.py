"""AutoAttack with the interface of github.com/fra31/auto-attack: same arguments, return values and printed lines.

Differs: `seed=None` is 0, not the clock, so two runs agree. FAB is targeted only, so version "plus" is refused. Images
and labels are checked, and so is every adversarial image. Random numbers belong to an image, not to a batch: `bs`
changes no result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from robobench.attack_engine.base import Attack
from robobench.attack_engine.randomized import adapt_model
from robobench.core.module_state import attack_mode
from robobench.core.numbers import canonical_norm, parse_eps
from robobench.core.randomness import Randomness
from robobench.core.registry import unknown_name
from robobench.core.threat import ThreatModel
from robobench.errors import RequestError
from robobench.evaluation.accuracy import batch_indices, clean_outcomes
from robobench.evaluation.tensors import TensorImages, as_module, attack_tensors, device_of
from robobench.plugins.discovery import load_attack

STANDARD = ["apgd-ce", "apgd-t", "fab-t", "square"]
KNOWN = (*STANDARD, "apgd-dlr")
VERSIONS = ("standard", "rand", "custom")


@dataclass(slots=True)
class APGDSettings:
    """Settings of `apgd`: steps, restarts, and passes over which gradients are averaged (EoT)."""

    n_iter: int = 100
    n_restarts: int = 1
    eot_iter: int = 1


@dataclass(slots=True)
class TargetedSettings:
    """Settings of `apgd_targeted` and of `fab`: steps, restarts and number of target classes."""

    n_iter: int = 100
    n_restarts: int = 1
    n_target_classes: int = 9


@dataclass(slots=True)
class SquareSettings:
    """Settings of `square`: number of queries."""

    n_queries: int = 5000


class AutoAttack:
    """AutoAttack on a model of images in [0, 1], with auto-attack's arguments.

    The settings `apgd`, `apgd_targeted`, `fab` and `square` and the list `attacks_to_run` can be changed before a run,
    as in auto-attack. `attacks` is another name of `attacks_to_run`, as in pyautoattack.

    Args:
        model: images (B, C, H, W) -> logits (B, K); a module or a function.
        eps: radius on the [0, 1] scale, as a number or '8/255'.
        version: "standard", "rand" for models with random outputs, or "custom" for the attacks in `attacks_to_run`.
        device: where to compute; default: where the model is.
        log_path: file to which printed lines are appended too.

    Raises:
        RequestError: a wrong norm, radius, version or attack.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        norm: str = "Linf",
        eps: str | float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Sequence[str] = (),
        version: str = "standard",
        is_tf_model: bool = False,
        device: str | torch.device | None = None,
        log_path: str | Path | None = None,
        *,
        attacks: Sequence[str] = (),
    ) -> None:
        if is_tf_model:
            raise RequestError("is_tf_model=True is not supported; give a torch model")
        self.model, self.norm = as_module(model), canonical_norm(norm)
        self.epsilon = parse_eps(eps, self.norm)
        self.seed, self.verbose, self.log_path = seed, verbose, log_path
        self.device = torch.device(device) if device is not None else device_of(self.model, torch.empty(0))
        self.attacks_to_run = list(attacks_to_run or attacks or ())
        if version != "custom" and self.attacks_to_run:
            raise RequestError("attacks_to_run is used with version='custom' only; add it, or leave attacks_to_run out")
        self.apgd, self.apgd_targeted, self.fab = APGDSettings(n_restarts=5), TargetedSettings(), TargetedSettings()
        self.square = SquareSettings()
        self.set_version(version)

    def set_version(self, version: str = "standard") -> None:
        """Choose the attacks of a version and reset their settings."""
        if version == "plus":
            raise RequestError("version 'plus' is not supported; pyautoattack.AutoAttack has it")
        if version not in VERSIONS:
            raise unknown_name("version", version, VERSIONS)
        self.version = version
        if version == "standard":
            self._print("setting parameters for standard version")
            self.attacks_to_run = list(STANDARD)
            self.apgd, self.apgd_targeted, self.fab = APGDSettings(), TargetedSettings(), TargetedSettings()
            self.square = SquareSettings()
        if version == "rand":
            self._print("setting parameters for rand version")
            self.attacks_to_run, self.apgd = ["apgd-ce", "apgd-dlr"], APGDSettings(eot_iter=20)

    def get_logits(self, x: Tensor) -> Tensor:
        """Return the model's logits."""
        logits: Tensor = self.model(x)
        return logits

    @overload
    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: Literal[False] = False,
        state_path: None = None,
    ) -> Tensor: ...

    @overload
    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        *,
        return_labels: Literal[True],
        state_path: None = None,
    ) -> tuple[Tensor, Tensor]: ...

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: str | Path | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attack every image that is classified correctly with one attack after the other until one succeeds.

        Args:
            x_orig: (N, C, H, W) float in [0, 1].
            y_orig: (N,) int64.
            bs: batch size.
            state_path: refused unless None; `robobench evaluate` resumes by itself.

        Returns:
            Images (N, C, H, W), unchanged where no attack succeeded; with `return_labels`, their predictions (N,) too.
        """
        if state_path is not None:
            raise RequestError(f"state_path='{state_path}' is not supported; robobench evaluate resumes by itself")
        self._print(f"using {self.version} version including {', '.join(self.attacks_to_run)}")
        adv, robust = self._run(x_orig, y_orig, bs, self.attacks_to_run, self._log)
        distance = ThreatModel(self.norm, self.epsilon).distance(adv, x_orig).max()
        self._log(
            f"max {self.norm} perturbation: {distance:.5f}, nan in tensor: {int(adv.isnan().sum())}, "
            f"max: {adv.max():.5f}, min: {adv.min():.5f}"
        )
        self._log(f"robust accuracy: {robust:.2%}")
        return (adv, self._predictions(adv, bs).to(y_orig.device)) if return_labels else adv

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Any]:
        """Run every attack on all images; return its images, or (images, predictions), by its name."""
        self._print(f"using {self.version} version including {', '.join(self.attacks_to_run)}")
        out: dict[str, Any] = {}
        for name in self.attacks_to_run:
            begun = time.perf_counter()
            adv, robust = self._run(x_orig, y_orig, bs, [name], lambda text: None)
            out[name] = (adv, self._predictions(adv, bs).to(y_orig.device)) if return_labels else adv
            self._print(f"clean accuracy: {robust:.2%}")
            seconds = time.perf_counter() - begun
            self._log(f"robust accuracy by {name.upper()} \t {robust:.2%} \t (time attack: {seconds:.1f} s)")
        return out

    def clean_accuracy(self, x_orig: Tensor, y_orig: Tensor, bs: int = 250) -> float:
        """Return the fraction of images that are classified correctly."""
        accuracy = float(self._correct(TensorImages(x_orig, y_orig, self.device), bs).double().mean())
        self._print(f"clean accuracy: {accuracy:.2%}")
        return accuracy

    def _run(
        self, images: Tensor, labels: Tensor, bs: int, names: Sequence[str], log: Callable[[str], None]
    ) -> tuple[Tensor, float]:
        """Return adversarial images and robust accuracy of some attacks in their order."""
        data = TensorImages(images, labels, self.device)
        robust = self._correct(data, bs).to(labels.device)
        log(f"initial accuracy: {robust.double().mean():.2%}")
        out, begun = images.detach().clone(), time.perf_counter()
        with torch.no_grad(), attack_mode(self.model):
            classes = self.model(data.images(torch.arange(1))).shape[1]
        for name in names:
            if not bool(robust.any()):
                break

            def on_batch(number: int, batches: int, succeeded: int, attacked: int, name: str = name) -> None:
                log(f"{name} - {number}/{batches} - {succeeded} out of {attacked} successfully perturbed")

            attack = self._attack(name, classes)
            eot = self.apgd.eot_iter if name in ("apgd-ce", "apgd-dlr") else 1
            model = adapt_model(self.model, None, Randomness(eot) if eot > 1 else None)  # one pass decides, as there
            adv, left = attack_tensors(model, attack, data, robust, bs, self.seed, on_batch)
            found = (robust & ~left).to(out.device)
            out[found], robust = adv.to(out.device)[found], left
            accuracy = robust.double().mean()
            seconds = time.perf_counter() - begun
            log(f"robust accuracy after {name.upper()}: {accuracy:.2%} (total time {seconds:.1f} s)")
        return out, float(robust.double().mean())

    def _attack(self, name: str, classes: int) -> Attack:
        """Return an attack with the current settings, with at most as many targets as there are wrong classes."""
        if name not in KNOWN:
            raise unknown_name("attack in attacks_to_run", name, KNOWN)
        targeted = self.apgd_targeted if name == "apgd-t" else self.fab
        values: dict[str, Any] = {"steps": self.apgd.n_iter, "restarts": self.apgd.n_restarts}
        if name in ("apgd-t", "fab-t"):
            values = {"steps": targeted.n_iter, "targets": min(targeted.n_target_classes, classes - 1)}
        if name == "square":
            values = {"queries": self.square.n_queries, "rescale_schedule": False}
        cls = load_attack(name)
        attack: Attack = cls(cls.Config(**values), ThreatModel(self.norm, self.epsilon))
        return attack

    def _correct(self, data: TensorImages, bs: int) -> Tensor:
        batches = batch_indices(len(data), bs)
        return torch.cat([clean_outcomes(self.model, data, index, str(self.device)) for index in batches])

    def _predictions(self, images: Tensor, bs: int) -> Tensor:
        with torch.no_grad(), attack_mode(self.model):
            return torch.cat([self.model(part.to(self.device)).argmax(1) for part in torch.split(images, bs)])

    def _print(self, text: str) -> None:
        if self.verbose:
            print(text)

    def _log(self, text: str) -> None:
        self._print(text)
        if self.verbose and self.log_path is not None:
            with Path(self.log_path).open("a", encoding="utf-8") as file:
                file.write(text + "\n")
