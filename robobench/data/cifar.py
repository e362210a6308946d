"""CIFAR-10 and CIFAR-100 from torchvision's archives, else from Hugging Face parquet files, else from a download.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from robobench.core.paths import cache_root
from robobench.data.arrays import Arrays
from robobench.data.info import DATASETS
from robobench.errors import RequestError

FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}  # in torchvision's layout
ARCHIVES = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}
IMAGE_COLUMNS = ("img", "image")  # of parquet files
LABEL_COLUMNS = {"cifar10": ("label", "labels"), "cifar100": ("fine_label", "label", "labels")}
PARQUET_FOLDERS = ("", "data", "plain_text", "default")  # of Hugging Face repositories, in which parquet files lie


def load_cifar(name: str, root: Path, need_train: bool, download: bool) -> tuple[Arrays | None, Arrays]:
    """Find, read or download CIFAR-10 or CIFAR-100.

    Args:
        name: "cifar10" or "cifar100".
        root: folder to search and to download to.
        need_train: False skips the training split.
        download: False never uses the internet.

    Returns:
        (train or None, test), each (images (N, 32, 32, 3) uint8, labels (N,) int64).

    Raises:
        RequestError: the data are not found and not downloaded, or are damaged.
    """
    place = find_cifar(name, root)
    if place is not None and _has_archive(name, place):
        return _read_archive(name, place, need_train)
    if place is not None:
        test = _read_parquet(name, place, "test")
        return (_read_parquet(name, place, "train") if need_train else None), test
    looked_for = f"{FOLDERS[name]}/ and test-*.parquet, also in {name}/, data/ and plain_text/"
    problem = f"no {name} in '{root}' (looked for {looked_for})"
    if not download:
        raise RequestError(f"{problem}; name its folder with --data-dir, or connect to the internet to download it")
    try:
        root.mkdir(parents=True, exist_ok=True)
        _open_torchvision(name, root, train=False, download=True)
    except (OSError, RuntimeError) as err:
        why = " ".join(str(err).split())[:100]
        raise RequestError(f"{problem}, and it cannot be downloaded ({why}); name its folder with --data-dir") from err
    return _read_archive(name, root, need_train)


def find_cifar(name: str, root: Path) -> Path | None:
    """Return the folder below `root` with torchvision's archive or with parquet files; None if there is none."""
    folders = [root, root / name]
    places = [folder / part for folder in (*folders, root / name / name) for part in PARQUET_FOLDERS]
    found = [folder for folder in folders if _has_archive(name, folder)]
    return next(iter([*found, *(place for place in places if _parquet_files(place, "test"))]), None)


def _has_archive(name: str, folder: Path) -> bool:
    return (folder / FOLDERS[name]).is_dir() or (folder / ARCHIVES[name]).is_file()


def _parquet_files(folder: Path, part: str) -> list[Path]:
    """Return a split's files: test-00000-of-00001.parquet, also with a hash in its name, or test/0000.parquet."""
    return sorted(folder.glob(f"{part}*.parquet")) or sorted((folder / part).glob("*.parquet"))


def _torchvision_class(name: str) -> Any:
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


def _open_torchvision(name: str, root: Path, *, train: bool, download: bool) -> Any:
    """Open torchvision's data set. It verifies the checksum of every file before unpickling it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns about the pickle format of 2009
        return _torchvision_class(name)(str(root), train=train, download=download)


def _read_archive(name: str, root: Path, need_train: bool) -> tuple[Arrays | None, Arrays]:
    """Read torchvision's layout; unpack the archive first if its folder does not exist."""
    from torchvision.datasets.utils import check_integrity

    folder, archive = root / FOLDERS[name], root / ARCHIVES[name]
    unpack = not folder.is_dir()
    if unpack and not check_integrity(str(archive), _torchvision_class(name).tgz_md5):
        raise RequestError(f"'{archive}' is damaged (its checksum differs); delete it and download it again")
    parts = (False, True) if need_train else (False,)
    try:
        splits = [_open_torchvision(name, root, train=train, download=unpack) for train in parts]
    except RuntimeError as err:
        raise RequestError(
            f"'{folder}' is damaged or incomplete (checksums differ); delete it and download it again"
        ) from err
    except OSError as err:
        raise RequestError(
            f"cannot unpack '{archive}' ({err}); unpack it by hand or copy it to a writable folder"
        ) from err
    arrays = [(split.data, np.asarray(split.targets, dtype=np.int64)) for split in splits]
    return (arrays[1] if need_train else None), arrays[0]


def _read_parquet(name: str, folder: Path, part: str) -> Arrays:
    """Read the files of a split. Decoded pixels are cached under the digest of the files."""
    import PIL

    files = _parquet_files(folder, part)
    totals = {int(found[1]) for file in files if (found := re.search(r"-of-(\d+)", file.name))}
    if not files or (totals and totals != {len(files)}):
        want = f"{max(totals)} files" if totals else "files"
        raise RequestError(
            f"'{folder}' has {len(files)} of the {want} {part}-*-of-*.parquet of {name}; fetch the missing ones"
        )
    digest = hashlib.sha256(f"{name} PIL {PIL.__version__}".encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    cached = cache_root() / "decoded" / f"{name}-{part}-{digest.hexdigest()[:16]}.npz"
    try:
        with cached.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return arrays["images"], arrays["labels"]  # reading verifies the checksums of the zip file
    except Exception:  # missing or damaged: decode
        pass
    images, labels = _decode_parquet(name, files)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(f".{os.getpid()}.npz")
        np.savez(partial, images=images, labels=labels)
        partial.replace(cached)
    except OSError:
        pass  # the cache cannot be written: the next run decodes again
    return images, labels


def _decode_parquet(name: str, files: list[Path]) -> Arrays:
    """Decode all images of parquet files.

    Raises:
        RequestError: a file is damaged, an image has another size, or the labels are not those of the data set.
    """
    import pyarrow.parquet as pq
    from PIL import Image

    images, labels = [], []
    for file in files:
        try:
            columns = pq.read_schema(file).names
            image = next((c for c in IMAGE_COLUMNS if c in columns), None)
            label = next((c for c in LABEL_COLUMNS[name] if c in columns), None)
            if image is None or label is None:
                raise RequestError(
                    f"'{file}' has the columns {', '.join(columns)}; {name} needs {' or '.join(IMAGE_COLUMNS)} and "
                    f"{' or '.join(LABEL_COLUMNS[name])}"
                )
            table = pq.read_table(file, columns=[image, label])
            for cell in table[image].to_pylist():
                with Image.open(io.BytesIO(cell["bytes"] if isinstance(cell, dict) else cell)) as image_file:
                    images.append(np.asarray(image_file.convert("RGB")))
            labels.append(table[label].to_numpy().astype(np.int64))
        except RequestError:
            raise
        except Exception as err:  # pyarrow and PIL raise many types for damaged files
            raise RequestError(
                f"cannot read '{file}' ({type(err).__name__}: {' '.join(str(err).split())[:100]}); fetch it again"
            ) from err
    sizes, side = {array.shape for array in images}, DATASETS[name].resolution
    if sizes - {(side, side, 3)}:
        raise RequestError(f"'{files[0].parent}' holds images of {sorted(sizes)}; {name} has {side} x {side} x 3")
    found = np.concatenate(labels) if labels else np.empty(0, np.int64)
    classes = DATASETS[name].num_classes or 0
    if sorted(set(found.tolist())) != list(range(classes)):
        seen = f"{len(set(found.tolist()))} classes, {found.min()} to {found.max()}" if len(found) else "no images"
        raise RequestError(f"'{files[0]}' has labels of {seen}; {name} has 0 to {classes - 1}, each of them")
    return np.stack(images), found
