"""Image folders with one subfolder per class. Images are read from disk when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robobench.data.encoded import EncodedImages, choose_size
from robobench.data.info import Resize
from robobench.data.split import Dataset
from robobench.errors import RequestError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
TRAIN_FOLDERS = ("train", "training")  # in any case
TEST_FOLDERS = ("test", "val", "valid", "validation", "testing", "eval")  # the first one with class folders is read
TINY_IMAGENET_LABELS = "val_annotations.txt"  # file name, class, box
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
    found = {part: find_images(place, layout.classes, notes) for part, place in parts.items()}
    resize = choose_size(found, name, resolution, published, notes)
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


def open_files(folder: Path, files: Sequence[tuple[Path, int]]) -> EncodedImages:
    """Return image files (path, label) below a folder; raises RequestError for a damaged header."""
    paths = [path for path, _ in files]
    names = [path.relative_to(folder).as_posix() for path in paths]
    return EncodedImages.read(names, paths, [label for _, label in files], lambda number: paths[number].read_bytes())


def find_images(folder: Path, classes: list[str], notes: list[str]) -> EncodedImages:
    """Find and read all images below the class folders; add to `notes` what is skipped and which class is empty."""
    labels = {name: number for number, name in enumerate(classes)}
    listed, files, skipped = _listed_labels(folder), list[tuple[Path, int]](), list[str]()
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith((".", "__")) for part in parts)
        if hidden or path.is_dir() or path.name == TINY_IMAGENET_LABELS:
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
    return open_files(folder, files)
