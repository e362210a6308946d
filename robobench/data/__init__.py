"""Load data sets by name: float images in [0, 1], not normalized. A missing data set is an error."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from robobench.data.info import DatasetInfo, Resize, dataset_info
from robobench.errors import RequestError

if TYPE_CHECKING:
    from robobench.data.split import Dataset


def load_dataset(
    name: str,
    *,
    data_dir: Path | str | None = None,
    resolution: int | None = None,
    need_train: bool = True,
    device: Any = "cpu",
    download: bool = True,
    published: Resize | None = None,
) -> Dataset:
    """Load a data set by name.

    Args:
        name: digits, cifar10, cifar100, svhn, gtsrb, stl10, tiny-imagenet, imagenet, imagefolder:PATH, npz:FILE or
            hf:OWNER/NAME.
        data_dir: folder to search and to download to; default: ROBOBENCH_DATA, then the platform's cache folder.
        resolution: side in pixels to which images are resized, after the central square is cropped; None keeps their
            size, and refuses images that are not square (gtsrb and imagenet get 32 and 224 px).
        need_train: False skips the training split.
        device: where images are returned.
        download: False never uses the internet.
        published: how the model's published weights expect the images of an image folder to be resized; used if
            `resolution` is its side, or if it is None and the images are not square or differ in size.

    Raises:
        RequestError: the data set is unknown, missing, damaged, empty, or does not hold images with labels.
    """
    info = dataset_info(name)
    if resolution is not None and resolution < 1:
        raise RequestError(f"resolution must be 1 or more, got {resolution}")
    options: dict[str, Any] = {"resolution": resolution, "need_train": need_train, "device": device}
    kind, _, path = name.partition(":")
    if kind == "imagefolder":
        from robobench.data.image_folder import load_image_folder

        return load_image_folder(name, Path(path).expanduser(), published=published, **options)
    if kind == "npz":
        from robobench.data.npz import load_npz

        return load_npz(name, Path(path).expanduser(), **options)
    if kind == "hf":
        from robobench.data.hub import load_hub

        return load_hub(name, published=published, download=download, **options)
    if name == "digits":
        from robobench.data.digits import load_digits

        return load_digits(**options)
    from robobench.core.paths import data_root

    return _load_named(name, data_root(data_dir), info, download, options)


def _load_named(name: str, root: Path, info: DatasetInfo, download: bool, options: dict[str, Any]) -> Dataset:
    """Load a data set that is searched for in the folder of data sets."""
    if name in ("cifar10", "cifar100"):
        from robobench.data.cifar import load_cifar
        from robobench.data.split import dataset_from_arrays

        train, test = load_cifar(name, root, options["need_train"], download)
        options |= {"num_classes": info.num_classes, "class_names": info.class_names}
        return dataset_from_arrays(name, train, test, **options)
    if name in ("imagenet", "tiny-imagenet"):
        from robobench.data.imagenet import load_imagenet, load_tiny_imagenet

        return (
            load_imagenet(root, **options)
            if name == "imagenet"
            else load_tiny_imagenet(root, download=download, **options)
        )
    from robobench.data.torchvision_sets import load_torchvision_set

    return load_torchvision_set(name, root, download=download, **options)


def placeholder_dataset(name: str, resolution: int | None = None) -> Dataset | None:
    """Return black images in the number and size of a data set, for dry runs; None for the user's own data."""
    import torch

    from robobench.data.split import Dataset, Split

    info = dataset_info(name)
    classes, side = info.num_classes, resolution or info.resolution
    if classes is None or side is None or info.train_size is None or info.test_size is None:
        return None

    def black(count: int) -> Split:
        labels = torch.arange(count) % classes
        return Split(lambda index: torch.zeros(len(index), 3, side, side), labels, "placeholder", is_uint8_exact=False)

    return Dataset(name, black(info.train_size), black(info.test_size), classes, side)
