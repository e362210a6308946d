"""Examples made elsewhere: `transfer:FILE` looks what they do to this network.

The file holds images aligned with the test images, row i for test image i, (N, C, H, W), float in [0, 1] or uint8:
`.npz` (an array named adv or x_adv, or the only one), `.safetensors` (likewise) or `.pt` (a tensor, or a dictionary of
tensors, likewise; loaded without running code). Images outside the ball are an error.
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

NAMES = ("adv", "x_adv")


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    file: str
    digest: str = field(default="", init=False)  # of the file, so that results are not reused for another

    def __post_init__(self) -> None:
        path = Path(self.file)
        if not path.is_file() or path.suffix not in (".npz", ".safetensors", ".pt"):
            raise ValueError(f"no examples at '{self.file}'; give an .npz, .safetensors or .pt file")
        with path.open("rb") as file:
            object.__setattr__(self, "digest", hashlib.file_digest(file, "sha256").hexdigest()[:16])


@ATTACKS.register("transfer")
class Transfer(Attack):
    """Examples made elsewhere, as transfer:FILE (.npz, .safetensors or .pt)."""

    Config = TransferConfig
    gradient_free = True
    spec_field: ClassVar[str] = "file"

    def __init__(self, config: Any, threat: ThreatModel) -> None:
        super().__init__(config, threat)
        self.name = f"transfer:{config.file}"  # type: ignore[misc]  # two files are two columns
        self._examples: Tensor | None = None

    @property
    def budget(self) -> AttackBudget:
        """The digest of the file."""
        return AttackBudget(f"file {self.config.digest}")

    @property
    def cost(self) -> float:
        """One look."""
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
            RequestError: the file holds no such images, or too few of them.
        """
        if self._examples is None:
            self._examples = read(Path(self.config.file))
        index, rows = rng.index.to("cpu"), len(self._examples)
        if len(index) and int(index.max()) >= rows:
            raise RequestError(
                f"'{self.config.file}' holds {rows} images, test image {int(index.max())} has none there"
            )
        return self._examples[index].to(images)


def read(path: Path) -> Tensor:
    """Read (N, C, H, W) float32 images in [0, 1]; raises RequestError."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                held: Any = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        elif path.suffix == ".safetensors":
            held = load_file(path)
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # each library has its own errors for a damaged file
        raise RequestError(f"cannot read '{path}': {' '.join(str(err).split())[:200]}") from None
    if isinstance(held, Mapping):
        named = [held[name] for name in NAMES if name in held] or list(held.values())
        if len(named) != 1:
            raise RequestError(f"'{path}' holds {', '.join(held) or 'nothing'}; name the images 'adv'")
        held = named[0]
    if not isinstance(held, Tensor) or held.dim() != 4:
        shape = f"shape {tuple(held.shape)}" if isinstance(held, Tensor) else type(held).__name__
        raise RequestError(f"'{path}' must hold images (N, C, H, W), got {shape}")
    images = held.float() / 255 if held.dtype == torch.uint8 else held.float()
    check_unit_range(images)
    return images
