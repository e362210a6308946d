"""Data sets by name, as float images in [0, 1] without normalization; nothing is ever swapped for another.

Nothing heavy is imported before `load`, so `list datasets` needs no torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robobench.errors import RequestError
from robobench.registry import unknown

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

DATASETS = {
    "digits": "1,797 scanned digits inside scikit-learn, enlarged to 32 px: no download; 1,437 train, 360 test",
    "cifar10": "60,000 color images of 32 px in 10 classes: torchvision's archive or Hugging Face parquet files",
    "cifar100": "the same in 100 classes",
    "imagefolder:PATH": "PATH/train/<class>/* and PATH/test/<class>/* (or val), streamed from disk",
    "npz:FILE": "arrays x_test (uint8, N x H x W x 3) and y_test; x_train and y_train where training needs them",
}
CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100}
SIZES = {"digits": (1437, 360), "cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000)}
STREAM_RESOLUTION = 224  # of an image folder when nothing else is asked
ON_DEVICE_BYTES = 2**30  # splits up to this size are kept on the device

# (data set, norm) -> radii tested, radius trained against. CIFAR's are the field's; those of digits were chosen so that
# a standard network falls and an adversarially trained one does not.
RADII = {
    ("cifar", "Linf"): ((8 / 255, 16 / 255), 8 / 255),
    ("cifar", "L2"): ((0.5, 1.0), 0.5),
    ("digits", "Linf"): ((0.05, 0.1), 0.1),
    ("digits", "L2"): ((1.0, 2.0), 2.0),
}


def radii(dataset: str, norm: str) -> tuple[tuple[float, ...], float]:
    """Return the radii tested and the radius trained against; a data set of the user's gets CIFAR's."""
    family = "digits" if dataset == "digits" else "cifar"
    if (family, norm) not in RADII:
        raise unknown("norm", norm, ("Linf", "L2"))
    return RADII[family, norm]


def check_name(name: str) -> None:
    """Raise RequestError with a suggestion unless the name is a data set's, or has the form of one."""
    kind, colon, place = name.partition(":")
    if name not in CLASSES and not (colon and place and kind in ("npz", "imagefolder")):
        raise unknown("data set", name, DATASETS)


# --- splits -------------------------------------------------------------------------------------


class Split:
    """Images and labels, read by index.

    Attributes:
        labels: (N,) int64, where the pixels are kept: `read` gets an index that lies there or on the CPU.
        digest: of pixels, shapes and labels: two splits with one digest hold the same data.
        on_grid: every value delivered is a multiple of 1/255.
    """

    def __init__(
        self,
        read: Callable[[Tensor], Tensor],
        labels: Tensor,
        digest: str,
        *,
        on_grid: bool,
        resolution: int | None = None,
        device: Any = "cpu",
    ) -> None:
        """`read` maps (B,) int64 to (B, 3, H, W), uint8 or float in [0, 1]; `resolution` resizes what it gives."""
        self._read, self.labels, self.device = read, labels, device
        self.digest = _short(digest, "resized to", resolution) if resolution else digest
        self.on_grid, self.resolution = on_grid and resolution is None, resolution

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index: Tensor) -> Tensor:
        """Return (B, 3, H, W) float32 in [0, 1] on the split's device for (B,) int64."""
        import torch
        import torch.nn.functional as F

        images = self._read(index).to(self.device)
        images = images.float().div_(255) if images.dtype == torch.uint8 else images.float()
        if self.resolution is not None:
            size = (self.resolution, self.resolution)
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True).clamp_(0, 1)
        return images

    def first(self, count: int) -> Split:
        """Return the first `count` images as a split of their own (all, where there are fewer)."""
        if count >= len(self):
            return self
        part = copy(self)
        part.labels, part.digest = self.labels[:count], _short(self.digest, "first", count)
        return part

    def last(self, count: int) -> Split:
        """Return the last `count` images as a split of their own."""
        part, skipped = copy(self), len(self) - count
        part._read = lambda index: self._read(index + skipped)
        part.labels, part.digest = self.labels[skipped:], _short(self.digest, "last", count)
        return part

    def shuffled(self, name: str) -> Split:
        """Return the same images in an order keyed by a name, so that the first and the last show all classes."""
        from robobench.randomness import permutation

        part, order = copy(self), permutation(len(self), name).to(self.labels.device)
        part._read = lambda index: self._read(order[index])
        part.labels, part.digest = self.labels[order], _short(self.digest, "shuffled", name)
        return part


@dataclass(frozen=True)
class Dataset:
    """A training split (None where only testing was asked), a test split, and what they have in common."""

    name: str
    train: Split | None
    test: Split
    num_classes: int
    resolution: int  # side of the images delivered

    @property
    def digest(self) -> str:
        """Digest over the splits loaded; where tables of other runs are compared, `test.digest` is the one to use."""
        return _short(self.train.digest if self.train else "no train", self.test.digest)


def _short(*parts: object) -> str:
    """Hash parts to 16 hexadecimal digits."""
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()[:16]


def require_classes(split: Split, count: int) -> None:
    """Raise RequestError unless a split shows at least `count` classes."""
    have = len(set(split.labels.tolist()))
    if have < count:
        raise RequestError(
            f"the training split has {have} class{'es' if have > 1 else ''} in {len(split)} images, training needs "
            f"{count} or more; use more images or another data set"
        )


# --- loading ------------------------------------------------------------------------------------


def load(
    name: str,
    *,
    data_dir: Path | str | None = None,
    resolution: int | None = None,
    need_train: bool = True,
    device: Any = "cpu",
    download: bool = True,
) -> Dataset:
    """Load a data set by name, or refuse in one line; never another one in its place.

    Args:
        data_dir: where to look and download; without it ROBOBENCH_DATA, then the platform's cache.
        resolution: side of every image delivered; without it the data's own.
        need_train: False leaves the training split out.
        download: False never touches the network.

    Raises:
        RequestError: unknown, missing, damaged, empty, or not images with labels.
    """
    kind, colon, place = name.partition(":")
    if resolution is not None and resolution < 1:
        raise RequestError(f"resolution must be 1 or more, got {resolution}")
    options: dict[str, Any] = {"resolution": resolution, "need_train": need_train, "device": device}
    if name == "digits":
        return _digits(**options)
    if name in ("cifar10", "cifar100"):
        from robobench.cifar import load_cifar

        train, test = load_cifar(name, data_root(data_dir), need_train, download)
        return _in_memory(name, train, test, classes=CLASSES[name], **options)
    if kind == "imagefolder" and place:
        from robobench.folders import load_folder

        return load_folder(name, Path(place), **{**options, "resolution": resolution or STREAM_RESOLUTION})
    if kind == "npz" and place:
        return _npz(name, Path(place), **options)
    if colon and kind in ("imagefolder", "npz"):
        raise RequestError(f"data set '{name}' names no place; write {kind}:{'PATH' if kind[0] == 'i' else 'FILE'}")
    raise unknown("data set", name, DATASETS)


def blank(name: str, resolution: int | None = None) -> Dataset | None:
    """Return black images in the shape of a named data set, to plan with; None where its shape is not known."""
    import torch

    if name not in SIZES:
        return None
    side = resolution or 32

    def split(count: int) -> Split:
        labels = torch.arange(count) % CLASSES[name]
        return Split(lambda index: torch.zeros(len(index), 3, side, side), labels, "blank", on_grid=False)

    return Dataset(name, split(SIZES[name][0]), split(SIZES[name][1]), CLASSES[name], side)


def data_root(data_dir: Path | str | None = None) -> Path:
    """Return where data sets are looked for: the argument, ROBOBENCH_DATA, or the platform's cache."""
    if data_dir is not None:
        if not Path(data_dir).is_dir():
            raise RequestError(f"--data-dir '{data_dir}' is no folder; create it or name the one that holds the data")
        return Path(data_dir)
    if os.environ.get("ROBOBENCH_DATA"):
        return Path(os.environ["ROBOBENCH_DATA"])
    return cache_root() / "data"


def cache_root() -> Path:
    """Return robobench's folder in the platform's cache."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "robobench"


Arrays = tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]  # images (N, H, W, 3) uint8 or float, labels (N,)


def _in_memory(
    name: str,
    train: Arrays | None,
    test: Arrays,
    *,
    classes: int | None = None,
    resolution: int | None,
    need_train: bool,
    device: Any,
) -> Dataset:
    """Check arrays and make a data set of them; without `classes`, the largest label decides."""
    given = {"train": train, "test": test}
    arrays = {part: _checked(name, part, *pair, classes) for part, pair in given.items() if pair is not None}
    sides = {pair[0].shape[1:] for pair in arrays.values()}
    if len(sides) > 1:
        raise RequestError(f"data set '{name}': training and test images differ in size: {sorted(sides)}")
    height, width = next(iter(sides))[:2]
    if height != width and resolution is None:
        raise RequestError(f"data set '{name}' has images of {height}x{width}; they must be square")
    resize = resolution if resolution not in (None, height) or height != width else None

    def split(part: str) -> Split:
        import numpy as np
        import torch

        images, labels = arrays[part]
        header = f"{images.shape} {images.dtype}".encode()
        digest = hashlib.sha256(header + labels.tobytes())
        digest.update(np.ascontiguousarray(images).data)
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        if pixels.nbytes < ON_DEVICE_BYTES:
            pixels = pixels.to(device)
        return Split(
            lambda index: pixels[index.to(pixels.device)],
            torch.from_numpy(labels).to(pixels.device),
            digest.hexdigest()[:16],
            on_grid=images.dtype == np.uint8,
            resolution=resize,
            device=device,
        )

    count = classes or 1 + max(int(labels.max()) for _, labels in arrays.values())
    return Dataset(name, split("train") if need_train else None, split("test"), max(count, 2), resolution or height)


def _checked(name: str, part: str, images: Any, labels: Any, classes: int | None) -> Arrays:
    """Return images as uint8 or float32 and labels as int64, or say what is wrong with them."""
    import numpy as np

    where, images, labels = f"data set '{name}', {part} split", np.asarray(images), np.asarray(labels)
    if images.ndim != 4 or images.shape[3] != 3:
        raise RequestError(f"{where}: images must be N x H x W x 3, got {' x '.join(map(str, images.shape))}")
    if len(images) == 0 or 0 in images.shape:
        raise RequestError(f"{where} is empty; it needs one image or more")
    if labels.shape != (len(images),):
        raise RequestError(f"{where}: {len(images)} images need as many labels, got shape {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise RequestError(f"{where}: labels must be whole numbers, got {labels.dtype}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        allowed = f"0 to {classes - 1}" if classes else "0 or more"
        raise RequestError(f"{where}: labels must be {allowed}, got {low} to {high}")
    if images.dtype.kind == "f":
        least, most = float(images.min()), float(images.max())
        if not (least >= 0 and most <= 1):  # also true for NaN
            raise RequestError(
                f"{where}: float images must lie in [0, 1], got [{least:.3g}, {most:.3g}]; divide by 255, do not "
                "normalize: the model does that"
            )
        images = images.astype(np.float32)
    elif images.dtype != np.uint8:
        raise RequestError(f"{where}: images must be uint8 in 0 to 255 or float in [0, 1], got {images.dtype}")
    return images, labels.astype(np.int64)


def _digits(**options: Any) -> Dataset:
    """Load scikit-learn's digits: x4 nearest to 32 px, three equal channels, one fixed stratified split.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part).
    """
    import numpy as np

    from robobench.randomness import permutation

    pixels, labels = _scans()
    images = (pixels / 16).astype(np.float32).repeat(4, 1).repeat(4, 2)[..., None].repeat(3, 3)
    order = permutation(len(labels), "digits").numpy()
    # Place the i-th of a class's n images at (i + 1/2) / n: then every stretch of the order is near class-balanced.
    place = np.empty(len(labels))
    for label in range(10):
        mine = order[labels[order] == label]
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    order = order[np.argsort(place[order], kind="stable")]
    train, test = order[:1437], order[1437:]
    return _in_memory("digits", (images[train], labels[train]), (images[test], labels[test]), classes=10, **options)


def _scans() -> tuple[np.ndarray, np.ndarray]:
    """Read scikit-learn's file of the digits, (1797, 8, 8) in 0..16 and (1797,) int64, without importing the library.

    Importing it takes as long as importing torch; where a version keeps the file elsewhere, it is asked after all.
    """
    import numpy as np

    found = importlib.util.find_spec("sklearn")
    places = found.submodule_search_locations if found else None
    file = Path(next(iter(places))) / "datasets" / "data" / "digits.csv.gz" if places else None
    if file is not None and file.is_file():
        table = np.loadtxt(file, delimiter=",")
        return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images, bunch.target.astype(np.int64)


def _npz(name: str, file: Path, *, need_train: bool, **options: Any) -> Dataset:
    """Load x_test and y_test, and x_train and y_train where training is asked; nothing is unpickled.

    Training images are shuffled once. Test images stay in the file's order, by which `transfer:FILE` counts them.
    """
    import numpy as np

    if not file.is_file():
        raise RequestError(f"no file '{file}' for data set '{name}'; write npz:FILE")
    wanted = ("x_test", "y_test", *(("x_train", "y_train") if need_train else ()))
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            missing = [key for key in wanted if key not in archive]
            arrays = {key: archive[key] for key in wanted if key not in missing}
    except Exception as err:  # damage shows in many ways: zip, zlib, header, CRC
        raise RequestError(
            f"cannot read '{file}' ({type(err).__name__}: {' '.join(str(err).split())[:100]}); give an .npz of plain "
            "arrays saved by numpy.savez"
        ) from err
    if missing:
        why = " to train" if missing[0].endswith("train") else ""
        raise RequestError(f"'{file}' lacks {', '.join(missing)}{why}; it needs {', '.join(wanted)}")
    train = (arrays["x_train"], arrays["y_train"]) if need_train else None
    made = _in_memory(name, train, (arrays["x_test"], arrays["y_test"]), need_train=need_train, **options)
    return replace(made, train=made.train.shuffled("npz")) if made.train else made
