"""Ensembles of attacks: each component attacks the images that are still classified correctly."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robobench.attack_engine.base import Attack
from robobench.attack_engine.options import DEFAULT_OPTIONS, AttackOptions
from robobench.attack_engine.state import AttackResult
from robobench.core.losses import is_misclassified
from robobench.core.memory import split_on_oom
from robobench.core.rng import KeyedRng
from robobench.plugins.discovery import load_attack


class Ensemble(Attack):
    """Base class of ensembles of registered attacks.

    A subclass lists all names it may use in `component_names` and returns those it uses from `component_configs`.
    """

    early_stop = True

    @abstractmethod
    def component_configs(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Return name and config values of each component, for a model of `num_classes` (None: many)."""

    @property
    def components(self) -> tuple[Attack, ...]:
        """The attacks of the ensemble, in order; raises RequestError for an unknown name."""
        classes = [(load_attack(name), values) for name, values in self.component_configs()]
        made = tuple(cls(cls.Config(**values), self.threat) for cls, values in classes)
        for component in made:
            component.num_classes, component.masking_suspected = self.num_classes, self.masking_suspected
        return made

    @property
    def cost(self) -> float | None:
        """Cost of the components, and one forward on the clean image."""
        costs = [component.cost for component in self.components]
        return None if None in costs else 1.0 + sum(cost for cost in costs if cost is not None)

    def attack_early_stop(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: KeyedRng,
        options: AttackOptions = DEFAULT_OPTIONS,
    ) -> AttackResult:
        """Return the first success on each image. Other images come back unchanged."""
        adv = images.clone()
        if len(images) == 0:
            return AttackResult(adv, torch.zeros(0, dtype=torch.bool, device=images.device))
        logits = self._logits(model, images, options)
        self.num_classes, success = logits.shape[1], is_misclassified(logits, labels)
        for number, component in enumerate(self.components if self.threat.eps > 0 else ()):
            left = (~success).nonzero().flatten()
            if len(left) == 0:
                break
            component_rng = rng[left].child("part", number)
            if options.on_component is not None:
                options.on_component(component.name)
            result = component.attack_early_stop(model, images[left], labels[left], component_rng, options)
            succeeded = left[result.success]
            adv[succeeded], success[succeeded] = result.adv[result.success], True
        return AttackResult(adv, success)

    def attack_full_budget(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: KeyedRng,
        options: AttackOptions = DEFAULT_OPTIONS,
    ) -> Tensor:
        """Spend the first component's full budget on every image, then each next one's on those still correct.

        If no component succeeds on an image, the first one's result is returned. The early-stopped examples of
        `attack_early_stop` transfer poorly, and it does not attack images that are misclassified when clean.
        """
        adv, left = images.clone(), torch.arange(len(images), device=images.device)
        if len(images) and self.threat.eps > 0:
            with torch.no_grad():
                self.num_classes = model(images[:1]).shape[1]
            for number, component in enumerate(self.components):
                component_rng = rng[left].child("part", number)
                if options.on_component is not None:
                    options.on_component(component.name)
                result = component.attack_full_budget(
                    model, images[left], labels[left], component_rng, options
                ).detach()
                success = is_misclassified(self._logits(model, result, options), labels[left])
                keep = success if number else torch.ones_like(success)
                adv[left[keep]], left = result[keep], left[~success]
                if len(left) == 0:
                    break
        return adv

    def _logits(self, model: nn.Module, images: Tensor, options: AttackOptions) -> Tensor:
        with torch.no_grad():
            return torch.cat(split_on_oom(f"attack '{self.name}'", model, images, on_split=options.on_oom_split))
