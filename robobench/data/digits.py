"""scikit-learn's digits: 1,797 scans of 8 x 8 pixels, inside the package, so that no download is needed.

Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from robobench.core.rng import permutation
from robobench.data.info import DATASETS
from robobench.data.split import Dataset, dataset_from_arrays


def load_digits(**options: Any) -> Dataset:
    """Load the digits: enlarged 4 times to 32 px (nearest), three equal channels, one fixed stratified split.

    Args:
        options: resolution, need_train and device, as in `load_dataset`.
    """
    info = DATASETS["digits"]
    pixels, labels = _read_scans()
    images = (pixels / 16).astype(np.float32).repeat(4, 1).repeat(4, 2)[..., None].repeat(3, 3)
    order = permutation(len(labels), "digits").numpy()
    # Place the i-th of a class's n images at (i + 1/2) / n, so that every part of the order is near class-balanced.
    place = np.empty(len(labels))
    for label in range(10):
        mine = order[labels[order] == label]
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    order = order[np.argsort(place[order], kind="stable")]
    train, test = order[: info.train_size], order[info.train_size :]
    splits = (images[train], labels[train]), (images[test], labels[test])
    return dataset_from_arrays("digits", *splits, num_classes=info.num_classes, **options)


def _read_scans() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Read scikit-learn's file: pixels (1797, 8, 8) in 0..16 and labels (1797,) int64.

    The file is read without importing scikit-learn, which takes as long as importing torch. If a version keeps the
    file elsewhere, scikit-learn loads it.
    """
    found = importlib.util.find_spec("sklearn")
    places = found.submodule_search_locations if found else None
    file = Path(next(iter(places))) / "datasets" / "data" / "digits.csv.gz" if places else None
    if file is not None and file.is_file():
        table = np.loadtxt(file, delimiter=",")
        return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    from sklearn import datasets

    bunch = datasets.load_digits()
    return bunch.images, bunch.target.astype(np.int64)
