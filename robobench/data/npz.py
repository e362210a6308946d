"""Data sets in an .npz file of plain arrays. Nothing is unpickled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robobench.data.split import Dataset, dataset_from_arrays
from robobench.errors import RequestError


def load_npz(name: str, file: Path, *, need_train: bool, **options: Any) -> Dataset:
    """Load x_test and y_test, and with `need_train` x_train and y_train.

    Training images are shuffled once, in a fixed order. Test images keep the order of the file, because `transfer:FILE`
    needs it.

    Args:
        options: resolution and device, as in `load_dataset`.

    Raises:
        RequestError: the file is missing or damaged, lacks an array, or holds arrays that are not images with labels.
    """
    if not file.is_file():
        raise RequestError(f"no file '{file}' for data set '{name}'; write npz:FILE")
    wanted = ("x_test", "y_test", *(("x_train", "y_train") if need_train else ()))
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            missing = [key for key in wanted if key not in archive]
            arrays = {key: archive[key] for key in wanted if key not in missing}
    except Exception as err:  # damage raises many types: zip, zlib, header, CRC
        raise RequestError(
            f"cannot read '{file}' ({type(err).__name__}: {' '.join(str(err).split())[:100]}); give an .npz of plain "
            "arrays saved by numpy.savez"
        ) from err
    if missing:
        why = " to train" if missing[0].endswith("train") else ""
        raise RequestError(f"'{file}' lacks {', '.join(missing)}{why}; it needs {', '.join(wanted)}")
    train = (arrays["x_train"], arrays["y_train"]) if need_train else None
    data = dataset_from_arrays(name, train, (arrays["x_test"], arrays["y_test"]), need_train=need_train, **options)
    return replace(data, train=data.train.shuffled("npz")) if data.train else data
