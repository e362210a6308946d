"""Records of trainings and of evaluated cells: the keys of timing.json and record.json."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

Protocol = Literal["white-box", "transfer"]
Status = Literal["ok", "failed", "refused"]


class StageTiming(TypedDict):
    """One stage of a training."""

    name: str
    seconds: float  # wall time
    cpu_seconds: float  # of all threads and processes
    peak_memory_bytes: int
    warmup_seconds: float  # one-off costs before the clock started; not part of `seconds`
    epochs: int
    images: int  # images seen, over all epochs
    passes: dict[str, float] | None  # fields of PassCounts, per image and epoch; None if not declared
    metrics: dict[str, float]  # final metrics of the stage
    flags: list[str]
    seconds_per_epoch: float
    images_per_second: float


class TeacherTiming(TypedDict):
    """Accuracy of a teacher on training images, measured before it was used."""

    network: str  # its defense, or external:NAME
    key: str
    pgd: float  # fraction of `images` correct under PGD-10
    clean: float  # fraction correct when clean
    images: int


class TrainingTiming(TypedDict):
    """timing.json of a trained model. Seconds are None for a model that was trained elsewhere."""

    stages: list[StageTiming]
    train_seconds: float | None  # of the defense's own stages
    total_train_seconds: float | None  # with those of the models it required
    warmup_seconds: float | None
    peak_memory_bytes: int | None
    required: dict[str, float | None]  # folder of a required model -> its train_seconds
    teachers: dict[str, TeacherTiming]  # by role
    selection: dict[str, float] | None  # of the best epoch; None if no images were held out
    selection_average: NotRequired[dict[str, float]]  # the same for averaged weights
    flags: list[str]
    forward_flops: NotRequired[int | None]  # of a forward pass of one image; None if it could not be counted
    extra: NotRequired[str]  # extra images: their fraction of every batch, and how many there are
    hardware: str
    devices: int
    commit: str
    finished: str  # UTC
    # Added when records are read, from the stages:
    train_forwards: NotRequired[float | None]
    total_train_forwards: NotRequired[float | None]
    train_flops: NotRequired[float | None]
    total_train_flops: NotRequired[float | None]
    train_cpu_seconds: NotRequired[float | None]
    total_train_cpu_seconds: NotRequired[float | None]


class FindingRecord(TypedDict):
    """Result of a quick model check, before any attack."""

    flag: str
    raised: bool | None  # None: the check could not be made
    measured: str


class SourceRecord(TypedDict):
    """One of several transfer sources."""

    training: str  # folder of the model in the store
    weights_digest: str | None  # None: its training failed


class EvaluationRecord(TypedDict):
    """record.json of a cell: one model under one attack at one radius and protocol."""

    key: str  # of the cell
    training: str  # folder of the model
    dataset: str
    data_digest: str  # of the test images
    model: str
    image_size: int  # side of the model's input, px; 0: the data set's size
    resolution: NotRequired[int]  # side of the images that are attacked, px; missing in older records
    stem: str
    interpolation: str
    preset: str
    config_digest: str  # of the training's settings, the same for every seed
    defense: str
    defense_version: int
    train_norm: str | None
    train_eps: float | None
    attack: str
    attack_version: int
    threat_norm: str
    threat_eps: float
    relative_step: float | None  # step size as a fraction of eps
    steps: int | None
    gradient_free: bool | None  # None: not stated
    early_stop: bool  # an image left the attack at its first success
    attack_budget: str  # for tables
    budget_reduced: bool  # weaker than the attack's reference settings
    budget_standard: bool  # the version that the literature reports
    search_precision: str  # of the attack's gradient steps: fp32 | bf16
    protocol: Protocol
    source_digest: str | None  # weights of the transfer source, or of all of several
    weights_digest: str | None
    seed: int
    selection: str  # which weights: last | best | average | best-average
    examples: int  # number of test images
    precision: str
    compiled: bool
    threads: int
    hardware: str
    torch_version: str
    commit: str
    is_control: bool  # undefended baseline of another seed
    status: Status
    reason: str  # why status is not "ok"
    clean_bits: str | None  # one '0' or '1' per image: correct when clean
    robust_bits: str | None  # correct when clean and under the attack
    seconds: float | None  # of the attack
    population: NotRequired[int]  # with --until: number of images of which `examples` are a random sample
    eot: NotRequired[int]  # passes over which the attack averaged, of a model with random outputs
    verdict: NotRequired[str]  # K/N: misclassified if K of N fresh passes are wrong; missing: one pass
    bpda: NotRequired[str]  # model that gave the gradients
    compiled_search: NotRequired[bool]  # gradient steps ran compiled
    traces: NotRequired[dict[str, dict[str, Any]]]  # by attack: loss and success rate per step
    black_box_found: NotRequired[int]  # images found by the gradient-free components of an ensemble
    findings: NotRequired[list[FindingRecord]]
    own_source: NotRequired[bool]  # the model is itself the transfer source
    sources: NotRequired[list[SourceRecord]]  # the transfer sources, if there are several
    source_findings: NotRequired[list[FindingRecord]]  # one of each transfer source
    timing: NotRequired[TrainingTiming]  # of the model, added when records are read


def source_keys(recipe: dict[str, Any]) -> list[str]:
    """Return the keys of an evaluation's transfer sources; of a white-box evaluation none."""
    keys = recipe["transfer_source"]
    return [keys] if isinstance(keys, str) else keys or []
