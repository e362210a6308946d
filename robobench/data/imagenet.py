"""ImageNet with RobustBench's 5,000 validation images, and Tiny ImageNet. Images are read from disk as needed.

Sources: Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", 2015, arXiv:1409.0575; Croce et al.,
RobustBench, 2021, arXiv:2010.09670 (the list of images is a file of its package); Le and Yang, "Tiny ImageNet Visual
Recognition Challenge", Stanford CS 231N, 2015.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from robobench.core.imports import install_hint
from robobench.data.image_folder import find_images, load_image_folder, open_files
from robobench.data.info import DATASETS, Resize
from robobench.data.split import Dataset
from robobench.errors import RequestError

KEPT = 0.875  # of the shorter side: the central 224 pixels after resizing it to 256, as in RobustBench
TINY_FOLDER = "tiny-imagenet-200"
TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


def load_imagenet(root: Path, *, need_train: bool, resolution: int | None, device: Any) -> Dataset:
    """Open ImageNet: PATH/val/<WordNet ID>/*.JPEG, of which RobustBench's 5,000 are the test images, and PATH/train.

    Args:
        root: folder that has `val`, or has it in `imagenet`.
        need_train, resolution, device: as in `load_dataset`.

    Raises:
        RequestError: robustbench is not installed, or images are missing.
    """
    listed, classes = _robustbench_lists()
    folder = find_imagenet(root)
    if folder is None:
        raise RequestError(
            f"no imagenet in '{root}' (looked for val/<WordNet ID>/, also in imagenet/); register at image-net.org, "
            "unpack the archives with torchvision.datasets.ImageNet, and name the folder with --data-dir"
        )
    missing = [name for name in listed if not (folder / "val" / name).is_file()]
    if missing:
        raise RequestError(
            f"'{folder / 'val'}' lacks {len(missing)} of RobustBench's {len(listed)} images, such as '{missing[0]}'; "
            f"complete it, or evaluate on what is there with --dataset imagefolder:{folder / 'val'}"
        )
    if need_train and not (folder / "train").is_dir():
        raise RequestError(f"no folder '{folder / 'train'}' for data set 'imagenet'; training needs it")
    files = [(folder / "val" / name, classes[name.split("/")[0]]) for name in listed]
    resize, notes = Resize(resolution or DATASETS["imagenet"].resolution or 224, KEPT), list[str]()
    train = find_images(folder / "train", list(classes), notes).split(resize, device) if need_train else None
    test = open_files(folder / "val", files).split(resize, device)
    return Dataset(
        "imagenet", train, test, len(classes), resize.side, tuple(classes), (f"'imagenet': {resize}", *notes)
    )


def find_imagenet(root: Path) -> Path | None:
    """Return the folder, `root` or `root`/imagenet, with validation images in class folders; None if neither has."""
    return next((folder for folder in (root, root / "imagenet") if any((folder / "val").glob("n????????"))), None)


def _robustbench_lists() -> tuple[list[str], dict[str, int]]:
    """Return RobustBench's images, as CLASS/FILE, and the number of every class, in the order of the numbers."""
    found = importlib.util.find_spec("robustbench")
    places = found.submodule_search_locations if found else None
    if not places:
        raise RequestError(
            "data set 'imagenet' needs the package robustbench, which has the list of its images; "
            f"{install_hint('robustbench')}"
        )
    folder = Path(next(iter(places))) / "helper_files"
    numbers = json.loads((folder / "imagenet_class_to_id_map.json").read_text())
    images = (folder / "imagenet_test_image_ids.txt").read_text().split()
    return images, dict(sorted(numbers.items(), key=lambda item: int(item[1])))


def load_tiny_imagenet(root: Path, *, need_train: bool, download: bool, resolution: int | None, device: Any) -> Dataset:
    """Find, open or download Tiny ImageNet. Its validation images are the test images.

    Args:
        root: folder to search and to download to.
        need_train, download, resolution, device: as in `load_dataset`.

    Raises:
        RequestError: the data are not found and not downloaded, or have other classes.
    """
    folder = find_tiny_imagenet(root) or _download_tiny_imagenet(root, download)
    options: dict[str, Any] = {"resolution": resolution, "need_train": need_train, "device": device}
    dataset = load_image_folder("tiny-imagenet", folder, published=None, **options)
    if dataset.num_classes != DATASETS["tiny-imagenet"].num_classes:
        raise RequestError(f"'{folder}' has {dataset.num_classes} classes, Tiny ImageNet has 200; download it again")
    return dataset


def find_tiny_imagenet(root: Path) -> Path | None:
    """Return the folder tiny-imagenet-200 in `root`, or `root` if it is that folder; None if there is none."""
    places = (root / TINY_FOLDER, root / "tiny-imagenet" / TINY_FOLDER, root / "tiny-imagenet")
    own = [root] if root.name in (TINY_FOLDER, "tiny-imagenet") else []
    return next((folder for folder in (*places, *own) if (folder / "val").is_dir()), None)


def _download_tiny_imagenet(root: Path, download: bool) -> Path:
    problem = f"no tiny-imagenet in '{root}' (looked for {TINY_FOLDER}/val, also in tiny-imagenet/)"
    if not download:
        raise RequestError(f"{problem}; name its folder with --data-dir, or connect to the internet to download it")
    from torchvision.datasets.utils import download_and_extract_archive

    try:
        root.mkdir(parents=True, exist_ok=True)
        download_and_extract_archive(TINY_URL, str(root), md5=TINY_MD5)
    except (OSError, RuntimeError) as err:
        why = " ".join(str(err).split())[:100]
        raise RequestError(f"{problem}, and it cannot be downloaded ({why}); name its folder with --data-dir") from err
    return root / TINY_FOLDER
