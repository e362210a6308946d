"""Image folders with one subfolder per class. Images are read from disk when they are needed."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robobench.data.info import Resize
from robobench.data.split import Dataset, Split, short_digest
from robobench.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
TRAIN_FOLDERS = ("train", "training")  # in any case
TEST_FOLDERS = ("test", "val", "valid", "validation", "testing", "eval")  # the first one with class folders is read
TINY_IMAGENET_LABELS = "val_annotations.txt"  # file name, class, box
DEEP_GRAY = ("I;16", "I;16B", "I;16L", "I")  # Pillow's modes of gray images with 16 bits
NAMED = 3  # names in a note


@dataclass(frozen=True)
class Layout:
    """Where the images of a folder are. Classes are numbered in the order of `classes`."""

    test: Path
    train: Path | None
    classes: list[str]
    notes: list[str] = field(default_factory=list)


def load_image_folder(
    name: str, folder: Path, *, resolution: int | None, published: Resize | None, need_train: bool, device: Any
) -> Dataset:
    """Open a folder of images; see `find_layout` for its subfolders.

    Args:
        resolution, published, need_train, device: as in `load_dataset`.

    Raises:
        RequestError: a folder is missing or has no images, a test class is not in the train folder, or the images are
            not square or differ in size and no size is given.
    """
    layout = find_layout(name, folder)
    if need_train and layout.train is None:
        raise RequestError(f"no folder '{folder / 'train'}' for data set '{name}'; training needs PATH/train/<class>/*")
    parts = {"test": layout.test} | ({"train": layout.train} if need_train and layout.train else {})
    notes = list(layout.notes)
    found = {part: _Images.find(place, layout.classes, notes) for part, place in parts.items()}
    resize = _choose_size(found, name, resolution, published, notes)
    splits = {part: images.split(resize, device) for part, images in found.items()}
    return Dataset(
        name,
        splits.get("train"),
        splits["test"],
        max(len(layout.classes), 2),
        resize.side,
        class_names=tuple(layout.classes),
        notes=tuple(notes),
    )


def find_layout(name: str, folder: Path) -> Layout:
    """Find the train and test folders and the classes.

    Accepted are PATH/train/<class>/* with PATH/test/<class>/* (or val, valid, validation), PATH/val itself, a folder of
    class folders, and Tiny ImageNet as downloaded. Classes are numbered in the order of their names in the train
    folder, in the test folder if there is no other; whole numbers are sorted as numbers.

    Raises:
        RequestError: there is no such folder, or a test class is not in the train folder.
    """
    if not folder.is_dir():
        raise RequestError(f"no folder '{folder}' for data set '{name}'; write imagefolder:PATH")
    if folder.name.lower() in TEST_FOLDERS and _subfolders(folder.parent, TRAIN_FOLDERS):
        candidates, train = [folder], _subfolders(folder.parent, TRAIN_FOLDERS)[0]
    else:
        candidates = _subfolders(folder, TEST_FOLDERS)
        train = next(iter(_subfolders(folder, TRAIN_FOLDERS)), folder / "train")
    if not candidates and not train.is_dir() and _class_folders(folder):
        candidates = [folder]  # a folder of class folders
    if not candidates:
        raise RequestError(
            f"no folder '{folder / 'test'}' (or {', '.join(TEST_FOLDERS[1:])}) for data set '{name}', and no class "
            "folders with images; write imagefolder:PATH"
        )
    classes = _class_folders(train) if train.is_dir() else None
    usable = [
        test for test in candidates if (names := _classes_of(test)) and (not classes or set(names) <= set(classes))
    ]
    test, notes = (usable or candidates)[0], list[str]()
    unknown = [c for c in _classes_of(test) if classes is not None and c not in classes]
    if unknown:
        raise RequestError(f"'{test}' has the class '{unknown[0]}', which '{train}' lacks; both need the same names")
    classes = _classes_of(test) if classes is None else classes
    if classes and all(c.isdecimal() for c in classes):
        in_order = sorted(classes, key=int)
        if in_order != classes:
            first = ", ".join(in_order[:NAMED])
            notes.append(f"the class folders of '{test}' are whole numbers, and sorted as numbers: {first}, ...")
        classes = in_order
    return Layout(test, train if train.is_dir() else None, classes, notes)


def _subfolders(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Return the subfolders called by one of `names`, in any case, in the order of the names."""
    found = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    return [found[name] for name in names if name in found]


def _class_folders(folder: Path) -> list[str]:
    """Return the sorted names of the class folders."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _listed_labels(folder: Path) -> dict[str, str]:
    """Return the class of every file name that Tiny ImageNet's validation labels list; empty without that file."""
    file = folder / TINY_IMAGENET_LABELS
    lines = file.read_text().splitlines() if file.is_file() else []
    return {name: of_class for name, of_class, *_ in (line.split("\t") for line in lines if "\t" in line)}


def _classes_of(folder: Path) -> list[str]:
    """Return the sorted names of a split's classes."""
    return sorted(set(_listed_labels(folder).values())) or _class_folders(folder)


@dataclass(frozen=True)
class _Images:
    """The images of a folder in the order of their paths, with digests of their content and their sizes."""

    folder: Path
    files: list[tuple[Path, int]]  # with labels
    digests: list[bytes]
    sizes: Counter[tuple[int, int]]  # (width, height)

    @classmethod
    def find(cls, folder: Path, classes: list[str], notes: list[str]) -> _Images:
        """Find and read all images below the class folders; add to `notes` what is skipped and which class is empty."""
        labels = {name: number for number, name in enumerate(classes)}
        listed, files, skipped = _listed_labels(folder), list[tuple[Path, int]](), list[str]()
        for path in sorted(folder.rglob("*")):
            parts = path.relative_to(folder).parts
            if (
                any(part.startswith((".", "__")) for part in parts)
                or path.is_dir()
                or path.name == TINY_IMAGENET_LABELS
            ):
                continue
            of_class = listed.get(path.name) if listed else parts[0] if len(parts) > 1 else None
            if path.suffix.lower() in SUFFIXES and of_class in labels:
                files.append((path, labels[of_class]))
            else:
                skipped.append(path.relative_to(folder).as_posix())
        if not files:
            raise RequestError(f"no images in '{folder}/<class>/'; known types: {', '.join(SUFFIXES)}")
        if skipped:
            names = ", ".join(skipped[:NAMED]) + (", ..." if len(skipped) > NAMED else "")
            what = "1 file that is no image of a class" if len(skipped) == 1 else f"{len(skipped)} files, no images"
            notes.append(f"skipped in '{folder}': {what}: {names}")
        empty = [name for name in classes if labels[name] not in {label for _, label in files}]
        if empty:
            names = ", ".join(f"'{name}'" for name in empty[:NAMED]) + (", ..." if len(empty) > NAMED else "")
            notes.append(f"{len(empty)} of {len(classes)} classes have no image in '{folder}': {names}")
        digests, sizes = [], Counter[tuple[int, int]]()
        for path, _ in files:
            content = path.read_bytes()
            digests.append(hashlib.sha256(content).digest())
            sizes[_size(path, content)] += 1
        return cls(folder, files, digests, sizes)

    def split(self, resize: Resize, device: Any) -> Split:
        """Return the images in a fixed random order, so that the first images show all classes.

        The digest covers the content of every file.
        """
        import torch

        from robobench.core.rng import permutation

        digest = hashlib.sha256(str(resize.side).encode())
        for (path, label), content in zip(self.files, self.digests, strict=True):
            digest.update(f"{label} {path.relative_to(self.folder).as_posix()} ".encode())
            digest.update(content)
        files = [self.files[i] for i in permutation(len(self.files), "imagefolder").tolist()]

        def read(index: Tensor) -> Tensor:
            return torch.stack([_read(files[i][0], resize) for i in index.tolist()])

        labels = torch.tensor([label for _, label in files])
        text = digest.hexdigest()[:16]
        if resize != Resize(resize.side):
            text = short_digest(text, resize.kept, resize.interpolation)
        return Split(read, labels, text, is_uint8_exact=True, device=device)


def _choose_size(
    found: dict[str, _Images], name: str, resolution: int | None, published: Resize | None, notes: list[str]
) -> Resize:
    """Return how the images are resized: as asked for, else not at all, else as the published weights expect."""
    sizes = sum((images.sizes for images in found.values()), Counter[tuple[int, int]]())
    (width, height), _ = sizes.most_common(1)[0]
    square = len(sizes) == 1 and width == height
    if square and resolution in (None, width):
        return Resize(width)
    if published is not None and resolution in (None, published.side):
        chosen, why = published, ", as the model's published weights expect"
    elif resolution is not None:
        chosen, why = Resize(resolution), ""
    else:
        chosen, why = None, ""
    seen = f"{width}x{height}" + (f" and {len(sizes) - 1} other sizes" if len(sizes) > 1 else "")
    if chosen is None:
        raise RequestError(
            f"data set '{name}' has images of {seen}; they must be square and of one size: add --image-size "
            f"{min(min(size) for size in sizes)} (or another number of pixels), which crops the central square and "
            "resizes it"
        )
    notes.append(f"'{name}' has images of {seen}: {chosen}{why}")
    return chosen


def _size(path: Path, content: bytes) -> tuple[int, int]:
    """Return width and height of an image from its header."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise RequestError(f"cannot read the image '{path}' ({err}); replace or remove it") from err


def _read(path: Path, resize: Resize) -> Tensor:
    """Decode an image, crop its central square and resize it: (3, side, side) uint8.

    As in torchvision, an EXIF rotation and an alpha channel are ignored. Gray images of 16 bits are scaled to 8.
    """
    import numpy as np
    import torch
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode == "F":
                raise ValueError("its pixels are floats of no known range; save 8 or 16 bits")
            rgb = _scale_to_8_bits(image) if image.mode in DEEP_GRAY else image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise RequestError(f"cannot read the image '{path}' ({err}); replace or remove it") from err
    (width, height), shorter = rgb.size, min(rgb.size)
    edge = shorter * resize.kept
    left, top = (width - shorter) // 2 + (shorter - edge) / 2, (height - shorter) // 2 + (shorter - edge) / 2
    if rgb.size != (resize.side, resize.side) or resize.kept != 1:
        side, resample = (resize.side, resize.side), Image.Resampling[resize.interpolation.upper()]
        rgb = rgb.resize(side, resample, box=(left, top, left + edge, top + edge))
    return torch.from_numpy(np.array(rgb).transpose(2, 0, 1).copy())


def _scale_to_8_bits(image: Any) -> Any:
    """Scale a gray image of 16 bits to three equal channels of 8; raises ValueError for larger values."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its values are {values.min()} to {values.max()}, outside 16 bits")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
