"""Data sets as float images in [0, 1], (B, 3, H, W); no normalization, no augmentation, never one for another.

Nothing heavy is imported before `load`.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robobench.errors import RequestError
from robobench.registry import unknown

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

DATASETS = {
    "digits": "1,797 scanned digits of scikit-learn, 32 px; embedded, no download; the default",
    "cifar10": "60,000 photographs in 10 classes, 32 px; downloaded, or parquet files in --data-dir",
    "cifar100": "60,000 photographs in 100 classes, 32 px; downloaded, or parquet files in --data-dir",
    "imagefolder:PATH": "your own: PATH/train/CLASS/*, PATH/test/CLASS/* (or val/), read as needed",
    "npz:FILE": "your own: x_test uint8 N x H x W x 3, y_test, and x_train, y_train where training needs them",
}

# Per norm: radii of the test, radius of training; on the [0, 1] scale. Any other data set takes CIFAR's.
_CIFAR = {"Linf": (("8/255", "16/255"), "8/255"), "L2": (("0.5", "1.0"), "0.5")}
RADII = {
    "digits": {"Linf": (("0.05", "0.1"), "0.1"), "L2": (("1.0", "2.0"), "2.0")},
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
}
_CIFAR_SIZE = {"cifar10": 10, "cifar100": 100}
DIGITS_TRAIN = 1437


def radii(dataset: str, norm: str) -> tuple[tuple[str, ...], str]:
    """Return a data set's test radii and training radius in a norm."""
    return RADII.get(dataset, _CIFAR)[norm]


# --- splits -------------------------------------------------------------------------------------


class Split:
    """Images and labels, aligned. `read` maps (B,) numbers to (B, H, W, 3) uint8 or float32 in [0, 1].

    `labels` (N,) int64 stay on the CPU; `images` come as float32 on `device`, `resolution` px a side.
    """

    def __init__(
        self,
        labels: Tensor,
        read: Callable[[Tensor], Tensor],
        *,
        resolution: int,
        device: str = "cpu",
        on_grid: bool = False,
        digest: str = "",
    ) -> None:
        self.labels, self._read, self.resolution, self.device = labels, read, resolution, device
        self.on_grid = on_grid  # every value is a multiple of 1/255
        self.digest = digest

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index: Tensor) -> Tensor:
        """Return the images of (B,) int64 numbers: (B, 3, R, R) float32 in [0, 1]."""
        import torch
        import torch.nn.functional as F

        pixels = self._read(index).to(self.device)
        scale = 1 / 255 if pixels.dtype == torch.uint8 else 1.0
        images = pixels.permute(0, 3, 1, 2).float().mul_(scale) if scale != 1 else pixels.permute(0, 3, 1, 2)
        if images.shape[2] != self.resolution:
            side = (self.resolution, self.resolution)
            images = F.interpolate(images, side, mode="bilinear", antialias=True).clamp_(0, 1)
        return images.contiguous()

    def first(self, count: int) -> Split:
        """Return the first `count` images as a split of their own."""
        return Split(
            self.labels[:count],
            self._read,
            resolution=self.resolution,
            device=self.device,
            on_grid=self.on_grid,
            digest=f"{self.digest}:{count}",
        )


@dataclass(frozen=True)
class Dataset:
    """A training split (None where only evaluation was asked for) and a test split."""

    name: str
    train: Split | None
    test: Split
    num_classes: int
    digest: str  # of every pixel and label, 16 hex digits


def _in_memory(pixels: Any, labels: Any, what: str, resolution: int | None, device: str) -> Split:
    """Make a split of arrays (N, H, W, 3) uint8 or float in [0, 1] and (N,) integers, checked."""
    import numpy as np
    import torch

    if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.shape[1] != pixels.shape[2]:
        raise RequestError(f"{what}: images must be square, N x H x W x 3, got {'x'.join(map(str, pixels.shape))}")
    if len(pixels) == 0:
        raise RequestError(f"{what}: the data set is empty; give at least one image")
    if len(pixels) != len(labels) or labels.ndim != 1:
        raise RequestError(f"{what}: {len(pixels)} images and labels of shape {labels.shape}; give one label an image")
    if pixels.dtype != np.uint8:
        if not np.issubdtype(pixels.dtype, np.floating):
            raise RequestError(f"{what}: images must be uint8 or float in [0, 1], got {pixels.dtype}")
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):
            raise RequestError(
                f"{what}: float images must lie in [0, 1], got [{low:.3g}, {high:.3g}]; save them as uint8"
            )
        pixels = pixels.astype(np.float32)
    if not np.issubdtype(labels.dtype, np.integer):
        raise RequestError(f"{what}: labels must be integers, got {labels.dtype}")
    if labels.min() < 0:
        raise RequestError(f"{what}: label {labels.min()} is negative; labels count from 0")
    digest = hashlib.sha256(repr((pixels.shape, str(pixels.dtype))).encode())
    digest.update(np.ascontiguousarray(pixels))
    digest.update(labels.astype(np.int64).tobytes())
    held = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    return Split(
        torch.from_numpy(labels.astype(np.int64)),
        lambda index: held[index.to(held.device)],
        resolution=resolution or pixels.shape[1],
        device=device,
        on_grid=pixels.dtype == np.uint8 and resolution in (None, pixels.shape[1]),
        digest=digest.hexdigest()[:16],
    )


def _dataset(name: str, train: Split | None, test: Split, num_classes: int) -> Dataset:
    """Join two splits under one digest; labels beyond the classes are refused."""
    for split, which in ((train, "training"), (test, "test")):
        if split is not None and int(split.labels.max()) >= num_classes:
            raise RequestError(
                f"{name}: {which} label {int(split.labels.max())} is out of range; there are {num_classes} classes"
            )
    joined = f"{train.digest if train else ''}+{test.digest}+{test.resolution}"
    return Dataset(name, train, test, num_classes, hashlib.sha256(joined.encode()).hexdigest()[:16])


def require_classes(split: Split, count: int = 2) -> None:
    """Raise RequestError unless the split shows at least `count` classes."""
    seen = len(split.labels.unique())
    if seen < count:
        raise RequestError(
            f"the training images show {seen} class; training needs at least {count}: give more images or classes"
        )


# --- loading ------------------------------------------------------------------------------------


def load(
    name: str,
    *,
    data_dir: Path | None = None,
    resolution: int | None = None,
    need_train: bool = True,
    device: str = "cpu",
    download: bool = True,
) -> Dataset:
    """Load a data set by name.

    Args:
        resolution: side of the images delivered; another side than the native one is resized (bilinear,
            antialiased) batch by batch.
        need_train: False where only the test split is wanted.
        download: False never asks the network.

    Raises:
        RequestError: unknown, missing, damaged or unusable data, in one line with the next move.
    """
    kind, colon, place = name.partition(":")
    if name == "digits":
        return _digits(resolution, device)
    if name in _CIFAR_SIZE:
        return _cifar(name, _root(data_dir), resolution, device, download)
    if colon and kind == "npz":
        return _npz(name, Path(place), resolution, need_train, device)
    if colon and kind == "imagefolder":
        return _imagefolder(name, Path(place), resolution or 224, need_train, device)
    raise unknown("data set", name, DATASETS)


def blank(name: str, resolution: int) -> Dataset | None:
    """Return a CIFAR's shape without its images, to plan a run where it is not at hand; None for others."""
    if name not in _CIFAR_SIZE:
        return None
    import torch

    def nothing(index: Tensor) -> Tensor:
        raise RequestError(f"'{name}' is not here; give --data-dir")

    train, test = (
        Split(torch.arange(count) % _CIFAR_SIZE[name], nothing, resolution=resolution, digest="absent")
        for count in (50_000, 10_000)
    )
    return Dataset(name, train, test, _CIFAR_SIZE[name], "absent")


def _root(data_dir: Path | None) -> Path:
    """Return where data sets are: --data-dir, else $ROBOBENCH_DATA, else the platform's cache."""
    if data_dir is not None:
        if not data_dir.is_dir():
            raise RequestError(f"--data-dir '{data_dir}' is no folder; create it or name another")
        return data_dir
    if os.environ.get("ROBOBENCH_DATA"):
        return Path(os.environ["ROBOBENCH_DATA"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home()))) / "robobench"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "robobench"
    return Path(os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))) / "robobench"


def _digits(resolution: int | None, device: str) -> Dataset:
    """8x8 scans, each pixel four times each way, three equal channels; the split is fixed and stratified."""
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    pixels = (raw.images / 16).astype(np.float32).repeat(4, axis=1).repeat(4, axis=2)
    pixels = np.broadcast_to(pixels[..., None], (*pixels.shape, 3))
    parts = train_test_split(pixels, raw.target, train_size=DIGITS_TRAIN, random_state=0, stratify=raw.target)
    train = _in_memory(parts[0], parts[2], "digits", resolution, device)
    return _dataset("digits", train, _in_memory(parts[1], parts[3], "digits", resolution, device), 10)


# --- CIFAR --------------------------------------------------------------------------------------


def _cifar(name: str, root: Path, resolution: int | None, device: str, download: bool) -> Dataset:
    """Read torchvision's python archives, else parquet files, else download the archives."""
    archive = _cifar_archive(name, root, download=False)
    parts = archive or _cifar_parquet(name, root)
    if parts is None and download:
        parts = _cifar_archive(name, root, download=True)
    if parts is None:
        raise RequestError(
            f"'{name}' is not in '{root}' (looked for torchvision's archive and for train-*.parquet, "
            "test-*.parquet) and could not be downloaded; give a folder that has it with --data-dir"
        )
    splits = [_in_memory(pixels, labels, name, resolution, device) for pixels, labels in parts]
    return _dataset(name, splits[0], splits[1], _CIFAR_SIZE[name])


Arrays = list[tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]]


def _cifar_archive(name: str, root: Path, *, download: bool) -> Arrays | None:
    """Read the python archives, whose checksums torchvision verifies before it unpickles them."""
    import numpy as np
    from torchvision.datasets import CIFAR10, CIFAR100

    cls = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    if not download and not (root / cls.base_folder).is_dir():
        return None
    try:
        sets = [cls(str(root), train=train, download=download) for train in (True, False)]
    except RuntimeError as err:
        if download:
            raise
        raise RequestError(
            f"the archive of '{name}' in '{root / cls.base_folder}' is damaged ({_line(err)}); remove it to fetch anew"
        ) from err
    except OSError:
        return None  # no network
    return [(s.data, np.asarray(s.targets)) for s in sets]


def _cifar_parquet(name: str, root: Path) -> Arrays | None:
    """Read Hugging Face's layout: {train,test}-*.parquet in the root, its data/ or NAME/ folder."""
    for folder in (root, root / "data", root / name, root / name / "data"):
        files = [sorted(folder.glob(f"{which}-*.parquet")) for which in ("train", "test")]
        if all(files):
            return [_parquet(paths, name) for paths in files]
    return None


def _parquet(paths: list[Path], name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Decode the images of parquet files, in order; refuses another class count's labels column."""
    import io

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image, UnidentifiedImageError

    pixels, labels = [], []
    for path in paths:
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as err:
            raise RequestError(f"parquet file '{path}' is damaged ({_line(err)}); fetch it again") from err
        image = next((c for c in ("image", "img") if c in table.column_names), None)
        label = next((c for c in ("label", "fine_label") if c in table.column_names), None)
        if image is None or label is None or (label == "fine_label") != (name == "cifar100"):
            raise RequestError(
                f"parquet file '{path}' has columns {', '.join(table.column_names)}; '{name}' needs image and "
                f"{'fine_label' if name == 'cifar100' else 'label'}"
            )
        labels.append(table[label].to_numpy().astype(np.int64))
        for number, cell in enumerate(table[image].to_pylist()):
            try:
                with Image.open(io.BytesIO(cell["bytes"])) as picture:
                    pixels.append(np.asarray(picture.convert("RGB")))
            except (UnidentifiedImageError, OSError, TypeError, KeyError) as err:
                raise RequestError(f"image {number} of '{path}' cannot be decoded ({_line(err)})") from err
    sides = {p.shape for p in pixels}
    if len(sides) > 1:
        raise RequestError(f"images of '{paths[0]}' differ in size: {sorted(sides)[:2]}; they must be equal")
    if not pixels:
        raise RequestError(f"'{paths[0]}': the data set is empty; give at least one image")
    return np.stack(pixels), np.concatenate(labels)


# --- the user's own -----------------------------------------------------------------------------


def _npz(name: str, file: Path, resolution: int | None, need_train: bool, device: str) -> Dataset:
    """Read arrays from a numpy archive; nothing is unpickled."""
    import numpy as np

    if not file.is_file():
        raise RequestError(f"no file '{file}' for data set '{name}'; write npz:FILE")
    wanted = ("x_train", "y_train", "x_test", "y_test") if need_train else ("x_test", "y_test")
    try:
        with np.load(file, allow_pickle=False) as archive:
            missing = [key for key in wanted if key not in archive.files]
            if missing:
                raise RequestError(
                    f"'{file}' lacks {', '.join(missing)}; it has {', '.join(archive.files) or 'nothing'}"
                )
            arrays = {key: archive[key] for key in wanted}
    except RequestError:
        raise
    except Exception as err:  # a damaged archive fails in many ways
        raise RequestError(
            f"'{file}' is damaged or no numpy archive ({_line(err)}); write it with numpy.savez"
        ) from err
    test = _in_memory(arrays["x_test"], arrays["y_test"], f"'{file}'", resolution, device)
    train = None
    if need_train:
        train = _in_memory(arrays["x_train"], arrays["y_train"], f"'{file}'", resolution, device)
    most = max(int(split.labels.max()) for split in (train, test) if split is not None)
    return _dataset(name, train, test, max(most + 1, 2))


def _imagefolder(name: str, place: Path, resolution: int, need_train: bool, device: str) -> Dataset:
    """List a folder a class; images are read, resized and center-cropped when asked for."""
    if not place.is_dir():
        raise RequestError(f"no folder '{place}' for data set '{name}'; write imagefolder:PATH")
    test_folder = next((place / which for which in ("test", "val") if (place / which).is_dir()), None)
    if test_folder is None:
        raise RequestError(f"'{place}' has neither test/ nor val/; put one folder a class into PATH/test")
    if need_train and not (place / "train").is_dir():
        raise RequestError(f"'{place}' has no train/, which training needs; put one folder a class into PATH/train")
    classes = sorted(p.name for p in (place / "train" if need_train else test_folder).iterdir() if p.is_dir())
    test = _folder_split(test_folder, classes, resolution, device)
    train = _folder_split(place / "train", classes, resolution, device) if need_train else None
    return _dataset(name, train, test, max(len(classes), 2))


def _folder_split(folder: Path, classes: list[str], resolution: int, device: str) -> Split:
    import numpy as np
    import torch
    from PIL import Image, UnidentifiedImageError

    strange = [p.name for p in folder.iterdir() if p.is_dir() and p.name not in classes]
    if strange:
        raise RequestError(f"'{folder}' has class '{strange[0]}', which the training images lack; add or remove it")
    suffixes = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm"}
    files = [
        (p, i) for i, c in enumerate(classes) for p in sorted((folder / c).glob("*")) if p.suffix.lower() in suffixes
    ]
    if not files:
        raise RequestError(
            f"'{folder}': the data set is empty; put images ({', '.join(sorted(suffixes))}) into a folder a class"
        )
    digest = hashlib.sha256()
    for path, label in files:
        with path.open("rb") as file:
            digest.update(f"{label}".encode() + hashlib.file_digest(file, "sha256").digest())

    def read(index: Tensor) -> Tensor:
        out = np.empty((len(index), resolution, resolution, 3), np.uint8)
        for row, number in enumerate(index.tolist()):
            path = files[number][0]
            try:
                with Image.open(path) as picture:
                    out[row] = _square(picture.convert("RGB"), resolution)
            except (UnidentifiedImageError, OSError) as err:
                raise RequestError(f"image '{path}' cannot be decoded ({_line(err)}); remove it") from err
        return torch.from_numpy(out)

    labels = torch.tensor([label for _, label in files])
    return Split(labels, read, resolution=resolution, device=device, on_grid=True, digest=digest.hexdigest()[:16])


def _square(picture: Any, side: int) -> Any:
    """Resize the shorter edge to `side` and cut the middle square."""
    from PIL import Image

    scale = side / min(picture.size)
    width, height = (max(side, round(edge * scale)) for edge in picture.size)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    return picture.resize((width, height), Image.Resampling.BILINEAR).crop(box)


def _line(err: Exception) -> str:
    """Spell an exception's message on one short line."""
    return " ".join(str(err).split())[:120] or type(err).__name__
