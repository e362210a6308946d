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
    """Facts about a data set. User data (`npz:`, `imagefolder:`) get CIFAR's radii and ImageNet's statistics."""

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
    "imagefolder:PATH": DatasetInfo(
        summary="PATH/train/<class>/* and PATH/test/<class>/* (or val), streamed from disk",
    ),
    "npz:FILE": DatasetInfo(
        summary="arrays x_test (uint8, N x H x W x 3) and y_test; x_train and y_train for training; also .npy files"
    ),
}


def dataset_info(name: str) -> DatasetInfo:
    """Return the facts about a data set.

    Args:
        name: digits, cifar10, cifar100, imagefolder:PATH or npz:FILE.

    Raises:
        RequestError: the name is unknown, or has no path after the colon.
    """
    kind, colon, path = name.partition(":")
    pattern = next((key for key in DATASETS if key.startswith(f"{kind}:") and colon), None)
    if pattern is not None:
        if not path:
            raise RequestError(f"data set '{name}' has no path; write {pattern}")
        return DATASETS[pattern]
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return DATASETS[name]
