"""Adversarial examples from a file: `transfer:FILE` evaluates them on this model.

Row i of the file belongs to test image i; `read_image_file` lists the forms of files. Images outside the ball are an
error; `robobench score` counts them instead.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

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
    check_image_file,
    check_unit_range,
    read_image_file,
)


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    file: str
    digest: str = field(default="", init=False)  # SHA-256 of the file; part of the result's key

    def __post_init__(self) -> None:
        with check_image_file(self.file).open("rb") as file:
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
            path = Path(self.config.file)
            examples, self._notes = read_image_file(path)
            try:
                check_unit_range(examples)
            except RequestError as err:
                raise RequestError(f"'{path}': {err}") from None
            self._examples = examples
        return self._examples
