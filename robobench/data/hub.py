"""Data sets of the Hugging Face Hub, `hf:OWNER/NAME`, through the package datasets (an extra of robobench)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robobench.core.imports import install_hint
from robobench.data.encoded import EncodedImages, choose_size
from robobench.data.image_folder import TEST_FOLDERS, TRAIN_FOLDERS
from robobench.data.info import Resize
from robobench.data.split import Dataset
from robobench.errors import RequestError

LABELS = ("label", "labels", "fine_label", "target")  # columns; the first that is there is read
WRITE = "write hf:OWNER/NAME, hf:OWNER/NAME:CONFIG, or hf:FOLDER for a folder of parquet files"


def load_hub(
    name: str, *, resolution: int | None, published: Resize | None, need_train: bool, device: Any, download: bool
) -> Dataset:
    """Open a data set of the Hub or a local folder of parquet files; images are decoded as needed.

    Args:
        name: hf:OWNER/NAME, hf:OWNER/NAME:CONFIG or hf:FOLDER.
        resolution, published, need_train, device, download: as in `load_dataset`.

    Raises:
        RequestError: the package or the data set is missing, it has no split or columns of images and labels, or its
            images are not square or differ in size and no size is given.
    """
    splits, notes = _open(name, download), list[str]()
    test = _choose_split(name, splits, TEST_FOLDERS, notes)
    parts = {"test": test}
    if need_train:
        parts["train"] = _choose_split(name, splits, TRAIN_FOLDERS, notes)
    images, classes = {}, None
    for part, split in parts.items():
        images[part], classes = _read(name, split, splits[split])
    resize = choose_size(images, name, resolution, published, notes)
    loaded = {part: found.split(resize, device) for part, found in images.items()}
    count = len(classes) if classes else 1 + max(max(found.labels) for found in images.values())
    return Dataset(
        name, loaded.get("train"), loaded["test"], max(count, 2), resize.side, class_names=classes, notes=tuple(notes)
    )


def _open(name: str, download: bool) -> dict[str, Any]:
    """Return the splits of a data set; raises RequestError."""
    try:
        import datasets
    except ImportError as err:
        raise RequestError(f"data set '{name}' needs the package datasets; {install_hint('datasets')}") from err
    path, _, config = name.removeprefix("hf:").partition(":")
    path = str(Path(path).expanduser()) if Path(path).expanduser().is_dir() else path
    with _offline(datasets.config, not download):
        try:
            return dict(datasets.load_dataset(path, config or None))
        except Exception as err:  # no network, no such data set, a gated one, several configs, damaged files
            why = f"{type(err).__name__}: {' '.join(str(err).split())[:150]}"
            raise RequestError(f"data set '{name}' cannot be loaded ({why}); {WRITE}") from err


@contextmanager
def _offline(config: Any, offline: bool) -> Iterator[None]:
    """Let datasets use its cache only, within the block."""
    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _choose_split(name: str, splits: dict[str, Any], names: tuple[str, ...], notes: list[str]) -> str:
    """Return the first split called by one of `names` that has labels; note it if it is not the first of them."""
    there = [split for split in names if split in splits]
    labelled = [split for split in there if min(_labels(name, split, splits[split])[1], default=-1) >= 0]
    if not labelled:
        why = f"no labels in its split '{there[0]}'" if there else f"the splits {', '.join(splits)}"
        raise RequestError(
            f"data set '{name}' has {why}; robobench needs a split called {names[0]} (or {', '.join(names[1:])}) with "
            "labels: save your own split with numpy.savez and use npz:FILE"
        )
    if labelled[0] != names[0]:
        why = f", because '{there[0]}' has no labels" if there[0] != labelled[0] else ""
        notes.append(f"'{name}': the split '{labelled[0]}' is used as {names[0]} split{why}")
    return labelled[0]


def _labels(name: str, split: str, table: Any) -> tuple[str, list[int]]:
    """Return the name of the column of labels and the labels; raises RequestError if there is none."""
    from datasets import ClassLabel

    features = table.features
    numbers = [c for c, f in features.items() if isinstance(f, ClassLabel) or str(getattr(f, "dtype", "")) in _INTEGERS]
    classes = [column for column in numbers if isinstance(features[column], ClassLabel)]
    column = next((column for column in LABELS if column in numbers), classes[0] if len(classes) == 1 else None)
    if column is None:
        raise RequestError(
            f"data set '{name}', split '{split}', has the columns {', '.join(features)}; labels must be whole numbers "
            f"in a column called {' or '.join(LABELS)}"
        )
    return column, [-1 if label is None else int(label) for label in table[column]]


_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


def _read(name: str, split: str, table: Any) -> tuple[EncodedImages, tuple[str, ...] | None]:
    """Return the images of a split, and the names of the classes if it has them."""
    from datasets import ClassLabel, Image

    columns = [column for column, feature in table.features.items() if isinstance(feature, Image)]
    if len(columns) != 1:
        raise RequestError(
            f"data set '{name}', split '{split}', has {len(columns)} columns of images among "
            f"{', '.join(table.features)}; robobench needs one"
        )
    label, labels = _labels(name, split, table)
    if min(labels) < 0:
        raise RequestError(f"data set '{name}', split '{split}': {sum(n < 0 for n in labels)} images have no label")
    feature = table.features[label]
    cells = table.select_columns(columns).cast_column(columns[0], Image(decode=False))

    def load(number: int) -> bytes:
        cell = cells[number][columns[0]]
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()

    names = [str(number) for number in range(len(labels))]
    places = [f"{name}, {split}, row {number}" for number in names]
    classes = tuple(feature.names) if isinstance(feature, ClassLabel) else None
    return EncodedImages.read(names, places, labels, load), classes
