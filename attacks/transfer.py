"""Adversarial examples from a file: `transfer:FILE` evaluates them on this model.

The file holds images (N, C, H, W), float in [0, 1] or uint8; row i belongs to test image i. It is an `.npz` or
`.safetensors` file with an array named adv or x_adv, or with a single array, or a `.pt` file with a tensor or such a
dictionary of tensors. No code of the file is executed. Images outside the ball are an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from robobench.api import (
    ATTACKS,
    DEFAULT_OPTIONS,
    Attack,
    AttackBudget,
    AttackOptions,
    KeyedRng,
    RequestError,
    ThreatModel,
    check_unit_range,
)

ARRAY_NAMES = ("adv", "x_adv")


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    file: str
    digest: str = field(default="", init=False)  # SHA-256 of the file; part of the result's key

    def __post_init__(self) -> None:
        path = Path(self.file)
        if not path.is_file() or path.suffix not in (".npz", ".safetensors", ".pt"):
            raise ValueError(f"no adversarial examples at '{self.file}'; give an .npz, .safetensors or .pt file")
        with path.open("rb") as file:
            object.__setattr__(self, "digest", hashlib.file_digest(file, "sha256").hexdigest()[:16])


@ATTACKS.register("transfer")
class Transfer(Attack):
    """Adversarial examples from a file, as transfer:FILE (.npz, .safetensors or .pt)."""

    Config = TransferConfig
    gradient_free = True
    spec_field: ClassVar[str] = "file"

    def __init__(self, config: Any, threat: ThreatModel) -> None:
        super().__init__(config, threat)
        self.name = f"transfer:{config.file}"  # type: ignore[misc]  # one table column per file
        self._examples: Tensor | None = None

    @property
    def budget(self) -> AttackBudget:
        """The digest of the file."""
        return AttackBudget(f"file {self.config.digest}")

    @property
    def cost(self) -> float:
        """One forward."""
        return 1.0

    def attack_full_budget(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: KeyedRng,
        options: AttackOptions = DEFAULT_OPTIONS,
    ) -> Tensor:
        """Return the file's images for these test images.

        Raises:
            RequestError: the file cannot be read, or holds too few images.
        """
        if self._examples is None:
            self._examples = read_images(Path(self.config.file))
        index, rows = rng.index.to("cpu"), len(self._examples)
        if len(index) and int(index.max()) >= rows:
            raise RequestError(f"'{self.config.file}' holds {rows} images, and none for test image {int(index.max())}")
        return self._examples[index].to(images)


def read_images(path: Path) -> Tensor:
    """Read images (N, C, H, W) float32 in [0, 1]; raises RequestError."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                held: Any = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        elif path.suffix == ".safetensors":
            held = load_file(path)
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # every library raises other errors for a damaged file
        raise RequestError(f"cannot read '{path}': {' '.join(str(err).split())[:200]}") from None
    if isinstance(held, Mapping):
        named = [held[name] for name in ARRAY_NAMES if name in held] or list(held.values())
        if len(named) != 1:
            raise RequestError(f"'{path}' holds {', '.join(held) or 'nothing'}; name the images 'adv'")
        held = named[0]
    if not isinstance(held, Tensor) or held.dim() != 4:
        shape = f"shape {tuple(held.shape)}" if isinstance(held, Tensor) else type(held).__name__
        raise RequestError(f"'{path}' must hold images (N, C, H, W), got {shape}")
    images = held.float() / 255 if held.dtype == torch.uint8 else held.float()
    check_unit_range(images)
    return images
