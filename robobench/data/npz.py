"""Data sets of plain arrays: .npz, a folder of .npy files, one .npy file of images, or .pt. No code is unpickled."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robobench.data.split import Dataset, dataset_from_arrays
from robobench.errors import RequestError

IMAGE_WORDS = ("x", "images", "image", "imgs", "img", "data", "inputs", "samples")
LABEL_WORDS = ("y", "labels", "label", "targets", "target", "lbls", "lbl")
TRAIN_PARTS = ("train", "training")
TEST_PARTS = ("test", "val", "valid", "validation", "")  # "": arrays without the name of a split
EXPECTED = "x_{part} and y_{part} (or {part}_images and {part}_labels, images and labels, data and targets)"


def load_npz(name: str, path: Path, *, need_train: bool, **options: Any) -> Dataset:
    """Load the test images and labels, and with `need_train` the training images and labels.

    Training images are shuffled once, in a fixed order. Test images keep the order of the file, because `transfer:FILE`
    needs it.

    Args:
        path: an .npz file; a folder of .npy files; or an .npy file of images, with labels beside it, as in CIFAR-10-C.
        options: resolution and device, as in `load_dataset`.

    Raises:
        RequestError: the file is missing or damaged, lacks an array, or holds arrays that are not images with labels.
    """
    notes = list[str]()
    with _Arrays(name, path) as arrays:
        pairs = [
            arrays.read_pair(TEST_PARTS, "test"),
            *([arrays.read_pair(TRAIN_PARTS, "train")] if need_train else []),
        ]
        if arrays.find(("test", "")) is None:
            used = arrays.find(TEST_PARTS) or arrays.find_by_shape()
            notes.append(f"'{path}' has no test arrays of a known name: {' and '.join(used or ())} are used")
    train = pairs[1] if need_train else None
    data = dataset_from_arrays(name, train, pairs[0], need_train=need_train, notes=tuple(notes), **options)
    return replace(data, train=data.train.shuffled("npz")) if data.train else data


class _Arrays:
    """The arrays of a file or folder, by name. A context manager that closes the file."""

    def __init__(self, name: str, path: Path) -> None:
        self.path, self._stack = path, ExitStack()
        self._files: dict[str, Path] = {}
        self._archive: Any = {}
        try:
            self._open(name, path)
        except RequestError:
            self._stack.close()
            raise
        self.names = list(self._files or self._archive)

    def _open(self, name: str, path: Path) -> None:
        if path.is_dir():
            self._files = {file.stem: file for file in sorted(path.glob("*.npy"))}
        elif path.suffix == ".npy" and path.is_file():
            labels = _labels_beside(path)
            self._files = {"x_test": path, **({"y_test": labels} if labels else {})}
        elif path.suffix in (".pt", ".pth") and path.is_file():
            self._archive = self._try(lambda: _read_tensors(path))
        elif path.is_file():
            stream = self._stack.enter_context(path.open("rb"))
            loaded = self._try(lambda: np.load(stream, allow_pickle=False))
            # An .npy file under another name is one array.
            self._archive = {"array": loaded} if isinstance(loaded, np.ndarray) else self._stack.enter_context(loaded)
        else:
            raise RequestError(f"no file '{path}' for data set '{name}'; write npz:FILE")

    def __enter__(self) -> _Arrays:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __str__(self) -> str:
        shapes = []
        for name in self.names[:6]:
            array = self.read(name)
            shapes.append(f"{name} ({' x '.join(map(str, array.shape)) or 'one value'} {array.dtype})")
        return ", ".join(shapes) + (", ..." if len(self.names) > 6 else "") or "no arrays"

    def find(self, parts: tuple[str, ...]) -> tuple[str, str] | None:
        """Return the names of the images and labels of the first split in `parts` that has both, or None."""
        plain = {name.lower().replace("-", "_"): name for name in self.names}
        for part in parts:
            pair = [_find(plain, words, part) for words in (IMAGE_WORDS, LABEL_WORDS)]
            if pair[0] and pair[1]:
                return pair[0], pair[1]
        if "" in parts and sorted(plain) == ["arr_0", "arr_1"]:  # numpy.savez(file, images, labels)
            return plain["arr_0"], plain["arr_1"]
        return None

    def find_by_shape(self) -> tuple[str, str] | None:
        """Return the names of the only images and of the only whole numbers in the file, one per image; else None."""
        shapes = {name: (array.shape, array.dtype.kind) for name in self.names for array in [self.read(name)]}
        images = [name for name, (shape, kind) in shapes.items() if len(shape) in (3, 4) and kind in "uif"]
        labels = [name for name, (shape, kind) in shapes.items() if len(shape) in (1, 2) and kind in "uif"]
        if len(images) == len(labels) == 1 and shapes[images[0]][0][0] == shapes[labels[0]][0][0]:
            return images[0], labels[0]
        return None

    def read_pair(self, parts: tuple[str, ...], part: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return images and labels of the first split in `parts`; raises RequestError if there are none."""
        pair = self.find(parts) or (self.find_by_shape() if "" in parts else None)
        if pair is None:
            missing = [name for name in (f"x_{part}", f"y_{part}") if name not in self.names]
            several = len(self._files) > 1 and part == "test"
            hint = f"; or name one file: npz:{next(iter(self._files.values()))}" if several else ""
            why = " to train" if part == "train" else ""
            raise RequestError(
                f"'{self.path}' lacks {', '.join(missing)}{why}; it holds {self}; expected "
                f"{EXPECTED.format(part=part)}{hint}"
            )
        return self.read(pair[0]), self.read(pair[1])

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """Read an array; raises RequestError if it is damaged or pickled."""
        if self._files:
            array = self._try(lambda: np.load(self._files[name], mmap_mode="r", allow_pickle=False))
        else:
            array = self._try(lambda: self._archive[name])
        if not isinstance(array, np.ndarray):
            raise RequestError(f"'{self.path}' holds '{name}', which is no array; give an .npz saved by numpy.savez")
        return array

    def _try(self, read: Any) -> Any:
        try:
            return read()
        except Exception as err:  # damage raises many types: zip, zlib, header, CRC
            why = f"{type(err).__name__}: {' '.join(str(err).split())[:100]}"
            why = "no array, or one of Python objects" if "pickle" in why else why
            raise RequestError(
                f"cannot read '{self.path}' ({why}); give an .npz of plain arrays saved by numpy.savez"
            ) from err


def _read_tensors(path: Path) -> dict[str, Any]:
    """Read a dictionary or a pair of tensors that torch.save wrote, as arrays."""
    import torch

    held = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(held, (tuple, list)) and len(held) == 2:
        held = {"images": held[0], "labels": held[1]}
    if not isinstance(held, dict):
        raise ValueError(f"it holds a {type(held).__name__}, not a dictionary of tensors")
    return {str(name): torch.as_tensor(value).numpy() for name, value in held.items()}


def _find(plain: dict[str, str], words: tuple[str, ...], part: str) -> str | None:
    """Return the array called by one of `words` and the name of a split, in either order."""
    for word in words:
        for name in (f"{word}_{part}", f"{part}_{word}", word + part, part + word) if part else (word,):
            if name in plain:
                return plain[name]
    return None


def _labels_beside(images: Path) -> Path | None:
    """Return the file of labels in the folder of a file of images: y_test.npy for x_test.npy, else labels.npy."""
    names = [f"{word}.npy" for word in ("labels", "y", "targets")]
    for word in IMAGE_WORDS:
        if word in images.stem.lower().split("_"):
            parts = images.stem.split("_")
            place = images.stem.lower().split("_").index(word)
            names = ["_".join([*parts[:place], label, *parts[place + 1 :]]) + ".npy" for label in LABEL_WORDS] + names
    return next((images.with_name(name) for name in names if images.with_name(name).is_file()), None)
