"""Adversarial examples from a file: `transfer:FILE` evaluates them on this model.

The file holds images (N, C, H, W) or (N, H, W, C), float in [0, 1] or in 0 to 255, or uint8; row i belongs to test
image i. It is an `.npy` file, or an `.npz`, `.safetensors`, `.pt` or `.pth` file with an array called as in ARRAY_NAMES
or with only one array of images, as AutoAttack's script and torchattacks save. No code of the file is executed. Images
outside the ball are an error.
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

# Of adversarial images; AutoAttack's evaluation script saves "adv_complete", torchattacks "adv_inputs".
ARRAY_NAMES = ("adv", "x_adv", "adv_complete", "adv_inputs", "adv_images", "x_adversarial", "adversarial")
SUFFIXES = (".npz", ".npy", ".safetensors", ".pt", ".pth")


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    file: str
    digest: str = field(default="", init=False)  # SHA-256 of the file; part of the result's key

    def __post_init__(self) -> None:
        path = Path(self.file)
        if not path.is_file() or path.suffix not in SUFFIXES:
            raise ValueError(f"no adversarial examples at '{self.file}'; give an {', '.join(SUFFIXES)} file")
        with path.open("rb") as file:
            object.__setattr__(self, "digest", hashlib.file_digest(file, "sha256").hexdigest()[:16])


@ATTACKS.register("transfer")
class Transfer(Attack):
    """Adversarial examples from a file, as transfer:FILE (.npz, .npy, .safetensors, .pt or .pth)."""

    Config = TransferConfig
    gradient_free = True
    norms = ("Linf", "L2", "L1")
    spec_field: ClassVar[str] = "file"

    def __init__(self, config: Any, threat: ThreatModel) -> None:
        super().__init__(config, threat)
        self.name = f"transfer:{config.file}"  # type: ignore[misc]  # one table column per file
        self._examples: Tensor | None = None
        self._notes: list[str] = []

    @property
    def budget(self) -> AttackBudget:
        """The digest of the file."""
        return AttackBudget(f"file {self.config.digest}")

    @property
    def cost(self) -> float:
        """One forward."""
        return 1.0

    def warnings(self) -> list[str]:
        """Say what is converted; raises RequestError for a file without images."""
        self._read()
        return self._notes

    def check_images(self, count: int, shape: tuple[int, ...]) -> None:
        """Raise RequestError unless the file has an image of this shape for every test image."""
        examples = self._read()
        if len(examples) < count:
            raise RequestError(
                f"'{self.config.file}' holds {len(examples)} images, and none for test image {len(examples)}; use the "
                f"first ones with --examples {len(examples)}"
            )
        if tuple(examples.shape[1:]) != shape:
            raise RequestError(
                f"'{self.config.file}' holds images of {tuple(examples.shape[1:])}, the test images are {shape}; make "
                "them at the size of the data (--image-size)"
            )

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
        index = rng.index.to("cpu")
        examples = self._read()
        self.check_images(int(index.max()) + 1 if len(index) else 0, tuple(images.shape[1:]))
        return examples[index].to(images)

    def _read(self) -> Tensor:
        if self._examples is None:
            self._examples, self._notes = read_images(Path(self.config.file))
        return self._examples


def read_images(path: Path) -> tuple[Tensor, list[str]]:
    """Read images (N, C, H, W) float32 in [0, 1], and say what was converted; raises RequestError."""
    try:
        if path.suffix == ".npy":
            held: Any = torch.from_numpy(np.load(path, allow_pickle=False))
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                held = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        elif path.suffix == ".safetensors":
            held = load_file(path)
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # every library raises other errors for a damaged file
        raise RequestError(f"cannot read '{path}': {' '.join(str(err).split())[:200]}") from None
    name, images = _find_images(path, held)
    notes = [f"'{path}': the images are '{name}'"] if name not in ("", *ARRAY_NAMES[:2]) else []
    shape = " x ".join(map(str, images.shape))
    if images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)
        notes.append(f"'{path}': images of {shape} are read as N x height x width x channels")
    most = images.max().item() if images.numel() else 0
    if images.dtype == torch.uint8:
        images = images.float() / 255
    elif 10 <= most <= 255 and images.min() >= 0:
        images = images.float() / 255
        notes.append(f"'{path}': values up to {most:g} are divided by 255")
    images = images.float().contiguous()
    try:
        check_unit_range(images)
    except RequestError as err:
        raise RequestError(f"'{path}': {err}") from None
    return images, notes


def _find_images(path: Path, held: Any) -> tuple[str, Tensor]:
    """Return the adversarial images in a file's content and their name: the named ones, else the only images."""
    if isinstance(held, (tuple, list)):
        held = {str(number): value for number, value in enumerate(held)}
    if not isinstance(held, Mapping):
        held = {"": held}
    found = {str(name): v for name, v in held.items() if isinstance(v, Tensor) and v.dim() == 4}
    known = [name for name in ARRAY_NAMES if name in found]
    if known or len(found) == 1:
        name = known[0] if known else next(iter(found))
        return name, found[name]
    shapes = [f"{name} {tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__}" for name, v in held.items()]
    raise RequestError(
        f"'{path}' must hold images (N, C, H, W), got {', '.join(shapes)[:200].strip() or 'nothing'}; name the "
        "adversarial ones 'adv'"
    )
