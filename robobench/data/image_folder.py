"""Image folders with one subfolder per class. Images are read from disk when they are needed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robobench.data.split import Dataset, Split
from robobench.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm")


def load_image_folder(name: str, folder: Path, *, resolution: int, need_train: bool, device: Any) -> Dataset:
    """Open PATH/train/<class>/* and PATH/test/<class>/* (or val). Without `need_train`, no train folder is needed.

    Classes are numbered in the order of their names in the train folder; in the test folder if there is no other.

    Args:
        resolution: side of the images in pixels.
        need_train, device: as in `load_dataset`.

    Raises:
        RequestError: a folder is missing or has no images, or a test class is not in the train folder.
    """
    test = next((folder / part for part in ("test", "val") if (folder / part).is_dir()), None)
    if test is None:
        raise RequestError(f"no folder '{folder / 'test'}' (or val) for data set '{name}'; write imagefolder:PATH")
    train = folder / "train"
    if need_train and not train.is_dir():
        raise RequestError(f"no folder '{train}' for data set '{name}'; training needs PATH/train/<class>/*")
    names = _classes(train if train.is_dir() else test)
    unknown = [c for c in _classes(test) if c not in names]
    if unknown:
        raise RequestError(f"'{test}' has the class '{unknown[0]}', which '{train}' lacks; both need the same names")
    return Dataset(
        name,
        _split(train, names, resolution, device) if need_train else None,
        _split(test, names, resolution, device),
        max(len(names), 2),
        resolution,
    )


def _classes(folder: Path) -> list[str]:
    """Return the sorted names of the class folders."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _split(folder: Path, names: list[str], resolution: int, device: Any) -> Split:
    """Return the images of a folder as a split, in a fixed random order, so that the first images show all classes.

    The digest covers the content of every file.
    """
    import torch

    from robobench.core.rng import permutation

    found = [
        (path, names.index(path.parent.name))
        for path in sorted(folder.glob("*/*"))
        if path.suffix.lower() in SUFFIXES and path.parent.name in names and not path.name.startswith(".")
    ]
    if not found:
        raise RequestError(f"no images in '{folder}/<class>/'; known types: {', '.join(SUFFIXES)}")
    digest = hashlib.sha256(str(resolution).encode())
    for path, label in found:
        digest.update(f"{label} {path.relative_to(folder).as_posix()} ".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    found = [found[i] for i in permutation(len(found), "imagefolder").tolist()]

    def read(index: Tensor) -> Tensor:
        return torch.stack([_read(found[i][0], resolution) for i in index.tolist()])

    labels = torch.tensor([label for _, label in found])
    return Split(read, labels, digest.hexdigest()[:16], is_uint8_exact=True, device=device)


def _read(path: Path, side: int) -> Tensor:
    """Decode an image, crop the largest central square and resize it: (3, side, side) uint8."""
    import numpy as np
    import torch
    from PIL import Image

    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise RequestError(f"cannot read the image '{path}' ({err}); replace or remove it") from err
    width, height = rgb.size
    edge = min(width, height)
    left, top = (width - edge) // 2, (height - edge) // 2
    if rgb.size != (side, side):
        rgb = rgb.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + edge, top + edge))
    return torch.from_numpy(np.array(rgb).transpose(2, 0, 1).copy())
