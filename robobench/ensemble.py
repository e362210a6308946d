"""Several attacks in turn as one: only images still right go from one to the next."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robobench import plugins
from robobench.api import Attack
from robobench.losses import errs
from robobench.randomness import Noise
from robobench.search import Found, in_halves


class Ensemble(Attack):
    """Registered attacks, run in order. Subclass, list their names in `uses`, return them from `members`."""

    stop = "first"

    @abstractmethod
    def members(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the name and the config values of each part for a model of `num_classes` (None: many)."""

    @property
    def parts(self) -> tuple[Attack, ...]:
        """Build the parts; raises RequestError for a name nobody registered."""
        classes = [(plugins.load_attack(name), values) for name, values in self.members()]
        return tuple(cls(cls.Config(**values), self.threat) for cls, values in classes)

    @property
    def cost(self) -> float | None:
        """What the parts cost together, and a look at the clean image."""
        costs = [part.cost for part in self.parts]
        return None if None in costs else 1.0 + sum(cost for cost in costs if cost is not None)

    def find(self, model: nn.Module, images: Tensor, labels: Tensor, noise: Noise) -> Found:
        """Return the first success of each image; those wrong when clean or never fooled come back unchanged."""
        adv = images.clone()
        if len(images) == 0:
            return Found(adv, torch.zeros(0, dtype=torch.bool, device=images.device))
        with torch.no_grad():
            logits = torch.cat(in_halves(f"attack '{self.name}'", model, images))
        self.num_classes, fooled = logits.shape[1], errs(logits, labels)
        for number, part in enumerate(self.parts if self.threat.eps > 0 else ()):
            left = (~fooled).nonzero().flatten()
            if len(left) == 0:
                break
            found = part.find(model, images[left], labels[left], noise[left].child("part", number))
            hit = left[found.fooled]
            adv[hit], fooled[hit] = found.adv[found.fooled], True
        return Found(adv, fooled)

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, noise: Noise) -> Tensor:
        """Spend the first part's full budget on every image, right or wrong, then each next one's on those still right.

        An image that is right to the end is the first part's result. First successes, which `find` returns, hardly
        transfer, and the reference leaves images that are wrong when clean as they are.
        """
        adv, left = images.clone(), torch.arange(len(images), device=images.device)
        if len(images) and self.threat.eps > 0:
            with torch.no_grad():
                self.num_classes = model(images[:1]).shape[1]
            for number, part in enumerate(self.parts):
                found = part.perturb(model, images[left], labels[left], noise[left].child("part", number)).detach()
                with torch.no_grad():
                    wrong = errs(torch.cat(in_halves(f"attack '{self.name}'", model, found)), labels[left])
                keep = wrong if number else torch.ones_like(wrong)
                adv[left[keep]], left = found[keep], left[~wrong]
                if len(left) == 0:
                    break
        return adv
