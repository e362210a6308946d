"""What the user asked for: the command line's flags, and the run settings of a preset. No torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from robobench.core.paths import expand_user

MIN_HELD_OUT = 1000  # with fewer images, differences between epochs are chance
SELECTIONS = ("last", "best", "average", "best-average", "both", "all")
EVAL_BATCH_SIZE = 256  # images evaluated together by default; also the unit of resume and of sharing work


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The "run" section of a preset; `--set run.FIELD=VALUE` changes one value."""

    # For the user's own data, both sizes are those of the data unless they are set:
    image_size: int = 32  # side of the images the network sees, px
    attack_resolution: int = 32  # side of the images that are attacked; the model resizes them if it differs
    stem: str = "cifar"  # of timm's ResNets: cifar (3x3, stride 1), imagenet (7x7, pooling), native
    interpolation: str = "bilinear"  # bilinear | bicubic | nearest: how the model resizes images
    pretrained: bool = False  # start from timm's ImageNet weights
    train_images: int = 0  # first N training images; 0: all that are not held out
    held_out: int = 0  # last N training images, not trained on: PGD accuracy on them selects the best epoch
    selection: str = "last"  # weights that are attacked: last | best | average | best-average | both (last, best) | all
    extra_fraction: float = 0.7  # of each training batch, with --extra; an epoch is as long as without
    examples: int = 0  # first N test images; 0: all
    attacks: tuple[str, ...] = ("pgd", "fgsm")
    linf_eps: tuple[str, ...] = ()  # radii of Linf attacks, where the preset has its own; the first for training too
    all_radii: bool = False  # attack every radius of the data set, not only the first, RobustBench's
    all_norms: bool = False  # also run default attacks that are defined in another norm than --norm
    l2_eps: tuple[str, ...] = ()  # radii of L2 attacks, where the preset has its own
    transfer_source: str = "standard"  # defense whose seed-0 model the transfer examples are made on
    transfer_seeds: int = 1  # models of that defense, seeds 0, 1, ...: made on the mean of their logits
    baseline_control: bool = True  # evaluate an undefended model of another seed too
    eval_batch_size: int = EVAL_BATCH_SIZE  # images evaluated together
    sync_batchnorm: bool = False  # BatchNorm over the images of all GPUs

    def __post_init__(self) -> None:
        for name, least in (("eval_batch_size", 1), ("examples", 0), ("train_images", 0), ("transfer_seeds", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.extra_fraction <= 1:
            raise ValueError(f"extra_fraction must be above 0 and at most 1, got {self.extra_fraction}")
        if self.held_out and self.held_out < MIN_HELD_OUT:
            raise ValueError(f"held_out must be 0 or at least {MIN_HELD_OUT}, got {self.held_out}")
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, got '{self.selection}'")
        if self.selection in ("best", "best-average", "both") and not self.held_out:
            raise ValueError(
                f"selection '{self.selection}' needs images to select on; set run.held_out={MIN_HELD_OUT} or more"
            )


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """The flags of the command line, as typed."""

    defenses: tuple[str, ...] = ()
    dataset: str = "digits"
    model: str = "cnn"
    preset: str | None = None
    seeds: tuple[int, ...] = (0,)
    device: str = "auto"
    precision: str = "auto"
    compile: str = "auto"  # auto | on | off
    threads: int | None = None
    devices: int = 1
    attacks: tuple[str, ...] | None = None
    norm: str = "Linf"
    eps: tuple[str, ...] = ()
    all_radii: bool = False
    train_norm: str | None = None
    train_eps: str | None = None
    protocol: str = "both"
    examples: int | None = None
    until: float | None = None  # percentage points: stop once the accuracy is known within as much on either side
    epochs: int | None = None
    batch_size: int | None = None
    sets: tuple[str, ...] = ()
    study: Path | None = None  # experiment file of this request; its settings of methods that do not run are ignored
    teachers: tuple[str, ...] = ()  # ROLE=FILE, ROLE=MODEL=FILE or ROLE=FOLDER of a trained model
    extra: Path | None = None  # extra training images: an .npz, or a folder of .npy files
    init: str | None = None  # weights that trainings start from
    plugins: tuple[str, ...] = ()
    image_size: int | None = None  # side of the images in px, of the data and of the model
    data_dir: Path | None = None
    out: Path = Path("runs")
    checkpoint_minutes: float = 5.0
    overwrite: bool = False  # quarantine earlier results of this run instead of reusing them
    executor: str = "serial"  # serial | ray | slurm: one task per artifact, over cores, GPUs and machines
    slurm: tuple[str, ...] = ()  # options of sbatch: NAME=VALUE[,NAME=VALUE]
    address: str | None = None  # of a running Ray, auto or HOST:PORT; None starts a local one
    gpus_per_task: float | None = None  # None: 1 if the device is a GPU
    track: tuple[str, ...] = ()  # names of trackers, such as tensorboard
    # of `evaluate`, for a model that was trained elsewhere:
    external: bool = False
    weights: Path | None = None
    weights_key: str | None = None  # which of several models in the file
    transfer_source: tuple[str, ...] = ()  # MODEL or MODEL=WEIGHTS; several: made on the mean of their logits
    mean: str | None = None
    std: str | None = None
    name: str | None = None  # in tables; default: the stem of the weights file
    eot: int | None = None  # passes over which an attack on a random model averages
    verdict: str | None = None  # K/N: misclassified if K of N fresh passes are wrong
    bpda: str | None = None  # MODEL or MODEL=WEIGHTS: differentiable replacement for gradients
    save_adversarial: Path | None = None  # file for one adversarial image per test image

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            expanded = tuple(map(expand_user, value)) if isinstance(value, tuple) else expand_user(value)
            object.__setattr__(self, field.name, expanded)
