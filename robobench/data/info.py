"""Facts about each data set: classes, sizes, normalization, radii, default preset. No torch is imported here.

Other modules read these values from here and do not repeat them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from robobench.core.registry import unknown_name
from robobench.errors import RequestError

Channels = tuple[float, float, float]
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
CIFAR_EPS = {"Linf": (8 / 255, 16 / 255), "L2": (0.5, 1.0), "L1": (12.0,)}
CIFAR_TRAIN_EPS = {"Linf": 8 / 255, "L2": 0.5, "L1": 12.0}


@dataclass(frozen=True)
class Resize:
    """How an image is made square: crop the central square of `kept` x the shorter side, and resize it to `side` px."""

    side: int
    kept: float = 1.0
    interpolation: str = "bilinear"

    def __str__(self) -> str:
        part = "" if self.kept == 1 else f" of {100 * self.kept:g} % of the shorter side"
        return f"the central square{part} is cropped and resized to {self.side} px ({self.interpolation})"


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Facts about a data set. User data (`npz:`, `hf:`, ...) get CIFAR's radii and ImageNet's statistics."""

    summary: str  # one line for `list datasets`
    num_classes: int | None = None  # None here and below: depends on the user's data
    train_size: int | None = None  # number of images
    test_size: int | None = None
    resolution: int | None = None  # side of the images in pixels
    mean: Channels = IMAGENET_MEAN  # of each channel, on the [0, 1] scale
    std: Channels = IMAGENET_STD
    eps: Mapping[str, tuple[float, ...]] = field(
        default_factory=lambda: CIFAR_EPS
    )  # norm -> radii of attacks, [0, 1] scale
    train_eps: Mapping[str, float] = field(default_factory=lambda: CIFAR_TRAIN_EPS)  # norm -> radius of training
    preset: str = "quick"  # used if the user names none
    flips: bool = True  # a mirrored image still shows its class
    class_names: tuple[str, ...] | None = None  # by label
    robustbench_eps: Mapping[str, str] = field(default_factory=dict)  # norm -> radius of RobustBench's leaderboard


DATASETS = {
    "digits": DatasetInfo(
        summary="1,797 scanned digits inside scikit-learn, enlarged to 32 px: no download; 1,437 train, 360 test",
        num_classes=10,
        train_size=1437,
        test_size=360,
        resolution=32,
        mean=(0.305,) * 3,
        std=(0.376,) * 3,
        # At these radii, standard training has almost no robust accuracy and adversarial training keeps most of it.
        eps={"Linf": (0.05, 0.1), "L2": (1.0, 2.0), "L1": (20.0, 40.0)},
        train_eps={"Linf": 0.1, "L2": 2.0, "L1": 20.0},
        preset="quick",
    ),
    "cifar10": DatasetInfo(
        summary="60,000 color images of 32 px in 10 classes: torchvision's archive or Hugging Face parquet files",
        num_classes=10,
        train_size=50_000,
        test_size=10_000,
        resolution=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        preset="cifar",
        robustbench_eps={"Linf": "8/255", "L2": "0.5"},
        class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "cifar100": DatasetInfo(
        summary="60,000 color images of 32 px in 100 classes, in the same files as cifar10",
        num_classes=100,
        train_size=50_000,
        test_size=10_000,
        resolution=32,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        preset="cifar",
        robustbench_eps={"Linf": "8/255"},
    ),
    "svhn": DatasetInfo(
        summary="99,289 house numbers of 32 px in 10 classes, in torchvision's files; 73,257 train, 26,032 test",
        num_classes=10,
        train_size=73_257,
        test_size=26_032,
        resolution=32,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        preset="cifar",
        flips=False,
    ),
    "gtsrb": DatasetInfo(
        summary="39,270 traffic signs in 43 classes, in torchvision's folder, cropped and resized to 32 px",
        num_classes=43,
        train_size=26_640,
        test_size=12_630,
        resolution=32,
        mean=(0.3337, 0.3064, 0.3171),
        std=(0.2672, 0.2564, 0.2629),
        preset="cifar",
        flips=False,
    ),
    "stl10": DatasetInfo(
        summary="13,000 labeled color images of 96 px in 10 classes, in torchvision's folder; 5,000 train, 8,000 test",
        num_classes=10,
        train_size=5_000,
        test_size=8_000,
        resolution=96,
        mean=(0.4467, 0.4398, 0.4066),
        std=(0.2603, 0.2566, 0.2713),
        preset="cifar",
        class_names=("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
    ),
    "tiny-imagenet": DatasetInfo(
        summary="110,000 color images of 64 px in 200 classes, streamed from tiny-imagenet-200/ as downloaded",
        num_classes=200,
        train_size=100_000,
        test_size=10_000,
        resolution=64,
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
        preset="cifar",
    ),
    "imagenet": DatasetInfo(
        summary="1000 classes at 224 px, streamed from train/ and val/; the test images are RobustBench's 5,000 of val",
        num_classes=1000,
        train_size=1_281_167,
        test_size=5_000,
        resolution=224,
        # L2: Salman et al. 2020, arXiv:2007.08489; L1: Croce and Hein 2022, arXiv:2105.12508.
        eps={"Linf": (4 / 255,), "L2": (3.0,), "L1": (255.0,)},
        train_eps={"Linf": 4 / 255, "L2": 3.0, "L1": 255.0},
        preset="cifar",
        robustbench_eps={"Linf": "4/255"},
    ),
    "imagefolder:PATH": DatasetInfo(
        summary="PATH/train/<class>/* and PATH/test/<class>/* (or val), streamed from disk",
    ),
    "npz:FILE": DatasetInfo(
        summary="arrays x_test (uint8, N x H x W x 3) and y_test; x_train and y_train for training; also .npy files"
    ),
    "hf:OWNER/NAME": DatasetInfo(
        summary="a data set of the Hugging Face Hub with images and labels; also hf:OWNER/NAME:CONFIG and hf:FOLDER"
    ),
}


def dataset_info(name: str) -> DatasetInfo:
    """Return the facts about a data set.

    Args:
        name: a key of DATASETS, with a path or a repository where that has a colon.

    Raises:
        RequestError: the name is unknown, or has no path after the colon.
    """
    kind, colon, path = name.partition(":")
    pattern = next((key for key in DATASETS if key.startswith(f"{kind}:") and colon), None)
    if pattern is not None:
        if not path:
            raise RequestError(f"data set '{name}' has no {'name' if kind == 'hf' else 'path'}; write {pattern}")
        return DATASETS[pattern]
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return DATASETS[name]
