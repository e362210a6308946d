"""CIFAR-10 and CIFAR-100 from what is there: torchvision's archives, else Hugging Face parquet files, else a download.

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
from robobench.data.info import DATASETS
from robobench.data.split import Arrays
from robobench.errors import RequestError

FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}  # in torchvision's layout

ARCHIVES = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}

IMAGE_COLUMNS = ("img", "image")

LABEL_COLUMNS = {"cifar10": ("label",), "cifar100": ("fine_label", "label")}


def load_cifar(name: str, root: Path, need_train: bool, download: bool) -> tuple[Arrays | None, Arrays]:
    """Return (train or None, test), each (images (N, 32, 32, 3) uint8, labels (N,) int64).

    Raises:
        RequestError: nothing found and nothing to be had, or what was found is damaged.
    """
    places = [root, root / name]
    for place in places:
        if (place / FOLDERS[name]).is_dir() or (place / ARCHIVES[name]).is_file():
            return _from_archive(name, place, need_train)
    for place in [*places, root / "data", root / name / "data"]:
        if any(place.glob("test-*.parquet")):
            test = _from_parquet(name, place, "test")
            return (_from_parquet(name, place, "train") if need_train else None), test
    problem = f"no {name} in '{root}' (looked for {FOLDERS[name]}/ and test-*.parquet, also in {name}/ and data/)"
    if not download:
        raise RequestError(f"{problem}; name its folder with --data-dir, or run with a network to download it")
    try:
        root.mkdir(parents=True, exist_ok=True)
        _torchvision(name, root, train=False, download=True)
    except (OSError, RuntimeError) as err:
        why = " ".join(str(err).split())[:100]
        raise RequestError(f"{problem}, and it cannot be downloaded ({why}); name its folder with --data-dir") from err
    return _from_archive(name, root, need_train)


def _torchvision(name: str, place: Path, *, train: bool, download: bool) -> Any:
    """Open torchvision's data set; it verifies every file's checksum before it unpickles one."""
    from torchvision import datasets

    make = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, about how the archives were pickled in 2009
        return make(str(place), train=train, download=download)


def _from_archive(name: str, place: Path, need_train: bool) -> tuple[Arrays | None, Arrays]:
    """Read torchvision's layout, unpacking the archive first where only that is there."""
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    folder, archive = place / FOLDERS[name], place / ARCHIVES[name]
    made = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    unpack = not folder.is_dir()
    if unpack and not check_integrity(str(archive), made.tgz_md5):
        raise RequestError(f"'{archive}' is damaged (its checksum differs); delete it and download it again")
    try:
        splits = [_torchvision(name, place, train=train, download=unpack) for train in (False, True)[: 1 + need_train]]
    except RuntimeError as err:
        raise RequestError(
            f"'{folder}' is damaged or incomplete (checksums differ); delete it and download it again"
        ) from err
    except OSError as err:
        raise RequestError(f"cannot unpack '{archive}' ({err}); unpack it by hand or copy it elsewhere") from err
    arrays = [(split.data, np.asarray(split.targets, dtype=np.int64)) for split in splits]
    return (arrays[1] if need_train else None), arrays[0]


def _from_parquet(name: str, place: Path, part: str) -> Arrays:
    """Read the files of a split; decoded pixels are kept in the cache under the files' digest."""
    import PIL

    files = sorted(place.glob(f"{part}-*-of-*.parquet"))
    total = re.search(r"-of-(\d+)\.parquet$", files[-1].name) if files else None
    if total is None or len(files) != int(total[1]):
        want = f"{int(total[1])} files" if total else "files"
        raise RequestError(
            f"'{place}' has {len(files)} of the {want} {part}-*-of-*.parquet of {name}; fetch the missing ones"
        )
    digest = hashlib.sha256(f"{name} PIL {PIL.__version__}".encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    kept = cache_root() / "decoded" / f"{name}-{part}-{digest.hexdigest()[:16]}.npz"
    try:
        with kept.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return arrays["images"], arrays["labels"]  # the zip's checksums were verified by reading
    except Exception:  # not there yet, or damaged: decode
        pass
    images, labels = _decoded(name, files)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}.npz")
        np.savez(partial, images=images, labels=labels)
        partial.replace(kept)
    except OSError:
        pass  # no place to keep it: the next run decodes again
    return images, labels


def _decoded(name: str, files: list[Path]) -> Arrays:
    """Decode every image of some parquet files and check that every class appears."""
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
            for cell in table[image]:
                with Image.open(io.BytesIO(cell["bytes"].as_py())) as picture:
                    images.append(np.asarray(picture.convert("RGB")))
            labels.append(table[label].to_numpy().astype(np.int64))
        except RequestError:
            raise
        except Exception as err:  # pyarrow and PIL each have their own for damage
            raise RequestError(
                f"cannot read '{file}' ({type(err).__name__}: {' '.join(str(err).split())[:100]}); fetch it again"
            ) from err
    sizes = {picture.shape for picture in images}
    if sizes - {(32, 32, 3)}:
        raise RequestError(f"'{files[0].parent}' holds images of {sorted(sizes)}; {name} has 32 x 32 x 3")
    found = np.concatenate(labels) if labels else np.empty(0, np.int64)
    classes = DATASETS[name].num_classes or 0
    if sorted(set(found.tolist())) != list(range(classes)):
        seen = f"{len(set(found.tolist()))} classes, {found.min()} to {found.max()}" if len(found) else "no images"
        raise RequestError(f"'{files[0]}' has labels of {seen}; {name} has 0 to {classes - 1}, each of them")
    return np.stack(images), found
