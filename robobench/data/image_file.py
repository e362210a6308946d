"""Adversarial images in a file: one image for each test image, in their order.

A file holds images (N, C, H, W) or (N, H, W, C), float in [0, 1] or in 0 to 255, or uint8. It is an `.npy` file, or an
`.npz`, `.safetensors`, `.pt` or `.pth` file with an array called as in ARRAY_NAMES or with only one array of images, as
AutoAttack's script and torchattacks save. No code of the file is executed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from robobench.errors import RequestError

# Of adversarial images; AutoAttack's evaluation script saves "adv_complete", torchattacks "adv_inputs".
ARRAY_NAMES = ("adv", "x_adv", "adv_complete", "adv_inputs", "adv_images", "x_adversarial", "adversarial")
SUFFIXES = (".npz", ".npy", ".safetensors", ".pt", ".pth")
WRITTEN_SUFFIXES = (".safetensors", ".pt", ".pth")


def check_image_file(file: str | Path) -> Path:
    """Return the path of a file of adversarial images; raises RequestError if there is none."""
    path = Path(file)
    if not path.is_file() or path.suffix not in SUFFIXES:
        raise RequestError(f"no adversarial examples at '{file}'; give an {', '.join(SUFFIXES)} file")
    return path


def check_output_file(file: Path) -> None:
    """Raise RequestError unless `write_image_file` can write this kind of file."""
    if file.suffix not in WRITTEN_SUFFIXES:
        raise RequestError(
            f"adversarial images are written to {', '.join(WRITTEN_SUFFIXES)}, got '{file}'; .pt is AutoAttack's form"
        )


def write_image_file(file: Path, adv: Tensor, labels: Tensor, threat: str) -> None:
    """Write adversarial images (N, C, H, W) and labels (N,), atomically.

    Args:
        file: `.safetensors` gets "adv" and "labels", and `threat` as metadata; `.pt` and `.pth` get "adv_complete", as
            AutoAttack's script writes it.
    """
    check_output_file(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    try:
        if file.suffix == ".safetensors":
            tensors = {"adv": adv.cpu().contiguous(), "labels": labels.cpu().contiguous()}
            save_file(tensors, part, metadata={"threat": threat})
        else:
            torch.save({"adv_complete": adv.cpu()}, part)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


@dataclass(frozen=True)
class Submission:
    """Submitted images.

    Attributes:
        images: (N, C, H, W) float32 on the [0, 1] scale.
        notes: what was converted.
        labels: (N,), if the file has labels.
        path: of the file.
    """

    images: Tensor
    notes: Sequence[str] = ()
    labels: Tensor | None = None
    path: Path | None = None

    def check_labels(self, labels: Tensor) -> None:
        """Raise RequestError if the file has labels other than the test labels (N,) of the same images."""
        if self.labels is None:
            return
        count = min(len(self.labels), len(labels))
        wrong = (self.labels[:count].long().cpu() != labels[:count].long().cpu()).nonzero()
        if len(wrong):
            raise RequestError(
                f"'{self.path}': label {int(wrong[0])} and {len(wrong) - 1} others are not those of the test images; "
                "image i must belong to test image i"
            )


def read_submission(path: Path) -> Submission:
    """Read the images of a file and its labels; raises RequestError."""
    held = _read(path)
    labels = held.get("labels") if isinstance(held, Mapping) else None
    return Submission(*_convert(path, held), labels if isinstance(labels, Tensor) and labels.dim() == 1 else None, path)


def read_image_file(path: Path) -> tuple[Tensor, list[str]]:
    """Read images (N, C, H, W) float32 on the [0, 1] scale, and say what was converted; raises RequestError."""
    return _convert(path, _read(path))


def _read(path: Path) -> Any:
    """Return the content of a file, as tensors; raises RequestError."""
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
    return held


def _convert(path: Path, held: Any) -> tuple[Tensor, list[str]]:
    """Return the images in a file's content on the [0, 1] scale, and what was converted."""
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
