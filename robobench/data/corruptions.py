"""Common corruptions: CIFAR-10-C, CIFAR-100-C and ImageNet-C as published, or generated from a data set.

Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
ICLR 2019, arXiv:1903.12261. The mean is over its 15 kinds; its four extra kinds are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robobench.core.imports import install_hint
from robobench.core.registry import unknown_name
from robobench.core.rng import seed_from
from robobench.data import load_dataset
from robobench.data.split import Split
from robobench.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

KINDS = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
SEVERITIES = (1, 2, 3, 4, 5)
OWN_SEED = ("glass_blur", "impulse_noise")  # imagecorruptions does not draw them from numpy's global generator


@dataclass(frozen=True)
class CorruptedSplit:
    """The same images in the same order as those of every other kind and severity, corrupted."""

    kind: str
    severity: int
    images: Split


def find_corruptions(folder: Path, kinds: Sequence[str] = KINDS) -> dict[str, Path]:
    """Return the file or folder of each kind.

    Args:
        folder: KIND.npy with labels.npy, five severities one after the other (CIFAR-10-C, CIFAR-100-C); or
            KIND/SEVERITY/<class>/*, the kinds also one folder deeper, as in the archives of ImageNet-C.

    Raises:
        RequestError: an unknown kind, or one that the folder lacks.
    """
    _check_kinds(kinds)
    if not folder.is_dir():
        raise RequestError(f"no folder '{folder}' of corrupted images; give CIFAR-10-C, CIFAR-100-C or ImageNet-C")
    arrays = (folder / "labels.npy").is_file()
    places = {kind: folder / f"{kind}.npy" if arrays else _kind_folder(folder, kind) for kind in kinds}
    missing = [kind for kind, place in places.items() if not place.exists()]
    if missing:
        form = "KIND.npy beside labels.npy" if arrays else "KIND.npy and labels.npy, or KIND/SEVERITY/<class>/*"
        raise RequestError(
            f"'{folder}' lacks {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}; it must hold {form}; "
            "--kinds names fewer corruptions"
        )
    return places


def first_dataset(places: dict[str, Path]) -> str:
    """Return the name of the data set of the first corruption, as `load_dataset` takes it."""
    place = next(iter(places.values()))
    return f"npz:{place}" if place.suffix == ".npy" else f"imagefolder:{place / '1'}"


def open_corruptions(
    places: dict[str, Path], *, resolution: int | None = None, device: Any = "cpu"
) -> Iterator[CorruptedSplit]:
    """Open one kind after the other.

    Args:
        places: from `find_corruptions`.
        resolution: side to which images are resized; None keeps their size.

    Raises:
        RequestError: a file is damaged, or the five severities hold other images.
    """
    for kind, place in places.items():
        read = _read_arrays if place.suffix == ".npy" else _read_folders
        yield from read(kind, place, resolution, device)


def _check_kinds(kinds: Sequence[str]) -> None:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise unknown_name("corruption", unknown[0], KINDS)


def _kind_folder(folder: Path, kind: str) -> Path:
    """Return FOLDER/KIND, or FOLDER/*/KIND of an archive such as noise.tar."""
    inside = sorted(path / kind for path in folder.iterdir() if (path / kind).is_dir())
    return next((path for path in (folder / kind, *inside) if path.is_dir()), folder / kind)


def _read_arrays(kind: str, file: Path, resolution: int | None, device: Any) -> list[CorruptedSplit]:
    name = f"npz:{file}"
    whole = load_dataset(name, resolution=resolution, need_train=False, device=device).test
    count, rest = divmod(len(whole), len(SEVERITIES))
    if rest:
        raise RequestError(f"'{file}' has {len(whole)} images; it must hold 5 severities of the same images")
    blocks = whole.labels.view(len(SEVERITIES), count)
    if not bool((blocks == blocks[0]).all()):
        raise RequestError(f"'{file.with_name('labels.npy')}' does not repeat the same labels for the 5 severities")

    def block(severity: int) -> Split:
        part, begin = copy(whole), (severity - 1) * count
        part._read = lambda index: whole._read(index + begin)
        part.labels = blocks[severity - 1]
        return part

    return [CorruptedSplit(kind, severity, block(severity)) for severity in SEVERITIES]


def _read_folders(kind: str, folder: Path, resolution: int | None, device: Any) -> list[CorruptedSplit]:
    out = []
    for severity in SEVERITIES:
        name = f"imagefolder:{folder / str(severity)}"
        data = load_dataset(name, resolution=resolution, need_train=False, device=device)
        out.append(CorruptedSplit(kind, severity, data.test))
    return out


def generate_corruptions(data: Split, *, kinds: Sequence[str] = KINDS) -> Iterator[CorruptedSplit]:
    """Corrupt the images of a split with the package imagecorruptions, at the severities of ImageNet-C.

    An image's draws depend on its position, the kind and the severity only. The severities of CIFAR-10-C are other
    ones, made for 32 px: results are not comparable with those on its published images.

    Raises:
        RequestError: the package is missing, a kind is unknown, or the images have fewer than 32 px.
    """
    _check_kinds(kinds)
    if find_spec("imagecorruptions") is None:
        raise RequestError(
            f"generated corruptions need the package imagecorruptions-imaug; {install_hint('imagecorruptions-imaug')}"
        )
    side = data.images(data.labels[:0].new_zeros(1)).shape[2]
    if side < 32:
        raise RequestError(f"generated corruptions need images of 32 px or more, got {side} px; add --image-size 32")
    return (_generate(data, kind, severity) for kind in kinds for severity in SEVERITIES)


def _generate(data: Split, kind: str, severity: int) -> CorruptedSplit:
    """Return the images of a split, corrupted when they are read."""
    import numpy as np
    import torch
    from imagecorruptions import corrupt

    def read(index: Tensor) -> Tensor:
        pixels = (data.images(index).cpu() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        out, before = [], np.random.get_state()
        try:
            for position, image in zip(index.tolist(), pixels, strict=True):
                seed = seed_from("corruption", kind, severity, position) & 0x7FFFFFFF
                np.random.seed(seed)
                own = {"seed": seed} if kind in OWN_SEED else {}
                out.append(corrupt(np.ascontiguousarray(image), severity=severity, corruption_name=kind, **own))
        finally:
            np.random.set_state(before)
        return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2)

    digest = f"{data.digest} {kind} {severity}"
    return CorruptedSplit(kind, severity, Split(read, data.labels, digest, is_uint8_exact=True, device=data.device))
