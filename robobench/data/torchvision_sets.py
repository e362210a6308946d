"""SVHN, STL-10 and GTSRB in torchvision's layout, else from a download by torchvision.

Sources: Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning", 2011; Coates et al., "An
Analysis of Single-Layer Networks in Unsupervised Feature Learning", 2011; Stallkamp et al., "Man vs. Computer", 2012.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from robobench.data.encoded import choose_size
from robobench.data.image_folder import open_files
from robobench.data.info import DATASETS
from robobench.data.split import Dataset, dataset_from_arrays
from robobench.errors import RequestError

# Name -> split -> a file or folder that shows that torchvision's layout of the split is there.
MARKERS = {
    "svhn": {"train": "train_32x32.mat", "test": "test_32x32.mat"},
    "stl10": {"train": "stl10_binary", "test": "stl10_binary"},
    "gtsrb": {"train": "gtsrb/GTSRB/Training", "test": "gtsrb/GTSRB/Final_Test"},
}


def load_torchvision_set(
    name: str, root: Path, *, need_train: bool, download: bool, resolution: int | None, device: Any
) -> Dataset:
    """Find, read or download a data set of torchvision.

    Args:
        name: svhn, stl10 or gtsrb.
        root: folder to search and to download to.
        need_train, download, resolution, device: as in `load_dataset`.

    Raises:
        RequestError: the data are not found and not downloaded, or are damaged.
    """
    parts = {part: _open(name, root, part, download) for part in (("test", "train") if need_train else ("test",))}
    if name == "gtsrb":
        return _stream_gtsrb(parts, root, resolution, device)
    arrays = {part: (opened.data.transpose(0, 2, 3, 1), np.asarray(opened.labels)) for part, opened in parts.items()}
    return dataset_from_arrays(
        name,
        arrays.get("train"),
        arrays["test"],
        num_classes=DATASETS[name].num_classes,
        class_names=DATASETS[name].class_names,
        resolution=resolution,
        need_train=need_train,
        device=device,
    )


def find_torchvision_set(name: str, root: Path, part: str = "test") -> Path | None:
    """Return the folder, `root` or `root`/NAME, in which torchvision would find a split; None if it is in neither."""
    return next((folder for folder in (root, root / name) if (folder / MARKERS[name][part]).exists()), None)


def _open(name: str, root: Path, part: str, download: bool) -> Any:
    """Open a split with torchvision, which verifies checksums except those of GTSRB's images."""
    from torchvision import datasets

    cls = {"svhn": datasets.SVHN, "stl10": datasets.STL10, "gtsrb": datasets.GTSRB}[name]
    place = find_torchvision_set(name, root, part)
    if place is not None:
        try:
            return cls(str(place), split=part, download=False)
        except (OSError, RuntimeError, ValueError, KeyError) as err:
            raise RequestError(
                f"'{place / MARKERS[name][part]}' of {name} is damaged or incomplete ({' '.join(str(err).split())[:60]}"
                "); delete it and download it again"
            ) from err
    problem = f"no {name} in '{root}' (looked for {MARKERS[name][part]}, also in {name}/)"
    if not download:
        raise RequestError(f"{problem}; name its folder with --data-dir, or connect to the internet to download it")
    try:
        root.mkdir(parents=True, exist_ok=True)
        return cls(str(root), split=part, download=True)
    except (OSError, RuntimeError) as err:
        why = " ".join(str(err).split())[:100]
        raise RequestError(f"{problem}, and it cannot be downloaded ({why}); name its folder with --data-dir") from err


def _stream_gtsrb(parts: dict[str, Any], root: Path, resolution: int | None, device: Any) -> Dataset:
    """Make a data set of GTSRB's image files, which differ in size and are cropped and resized."""
    info, notes, images = DATASETS["gtsrb"], list[str](), {}
    for part, opened in parts.items():
        place = find_torchvision_set("gtsrb", root, part)
        assert place is not None
        images[part] = open_files(place / "gtsrb", [(Path(file), label) for file, label in opened._samples])
    resize = choose_size(images, "gtsrb", resolution or info.resolution, None, notes)
    splits = {part: found.split(resize, device) for part, found in images.items()}
    assert info.num_classes is not None
    return Dataset("gtsrb", splits.get("train"), splits["test"], info.num_classes, resize.side, notes=tuple(notes))
