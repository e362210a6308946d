"""scikit-learn's digits: 1,797 scans of 8 x 8 pixels. The package contains them, so no download is needed.

Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test split).
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
    """Load the digits, enlarged 4 times (nearest) to three equal channels of 32 px, with a fixed stratified split.

    Args:
        options: resolution, need_train and device, as in `load_dataset`.
    """
    info = DATASETS["digits"]
    pixels, labels = _read_scans()
    images = (pixels / 16).astype(np.float32).repeat(4, 1).repeat(4, 2)[..., None].repeat(3, 3)
    order = permutation(len(labels), "digits").numpy()
    # Sort by (i + 1/2) / n, where i numbers the n images of a class. Then every part of the order is nearly balanced.
    position = np.empty(len(labels))
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        position[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    order = order[np.argsort(position[order], kind="stable")]
    train, test = order[: info.train_size], order[info.train_size :]
    splits = (images[train], labels[train]), (images[test], labels[test])
    return dataset_from_arrays("digits", *splits, num_classes=info.num_classes, **options)


def _read_scans() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Read scikit-learn's file: pixels (1797, 8, 8) in 0..16 and labels (1797,) int64.

    The file is read directly, because importing scikit-learn takes as long as importing torch. If the file is not at
    the known path, scikit-learn loads it.
    """
    found = importlib.util.find_spec("sklearn")
    folders = found.submodule_search_locations if found else None
    file = Path(next(iter(folders))) / "datasets" / "data" / "digits.csv.gz" if folders else None
    if file is not None and file.is_file():
        table = np.loadtxt(file, delimiter=",")
        return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    from sklearn import datasets

    bunch = datasets.load_digits()
    return bunch.images, bunch.target.astype(np.int64)
