"""Flags that several commands share, and how they become an ExperimentConfig."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from robobench.errors import RequestError

if TYPE_CHECKING:
    from rich.console import Console

    from robobench.planning.plan import Plan
    from robobench.planning.request import ExperimentConfig
    from robobench.planning.study import Point, Study
    from robobench.results.records import EvaluationRecord

Dataset = Annotated[
    str, typer.Option(help="A name of `list datasets`, such as cifar10, imagefolder:PATH, npz:FILE or hf:OWNER/NAME.")
]
Model = Annotated[
    str,
    typer.Option(
        help="A name of `list models`, timm:NAME, robustbench:ID, FILE.py:FUNCTION or package.module:FUNCTION."
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(help="A name of `list presets`, such as cifar; default: the data set's, for evaluate reference."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[str, typer.Option(help="Of training and of white-box attacks: auto, fp32 or bf16.")]
Compile = Annotated[str, typer.Option(help="Compile models for training with torch.compile: auto, on or off.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads per process.")]
Attacks = Annotated[str | None, typer.Option(help="Comma-separated names; default: those of the preset.")]
Norm = Annotated[str, typer.Option(help="Linf, L2 or L1.")]
Eps = Annotated[
    list[str] | None,
    typer.Option(help="Radii of attacks: 8/255,16/255, or L2:0.5,1.0; default: the first of the data set."),
]
Examples = Annotated[int | None, typer.Option(help="Use only the first N test images.")]
ImageSize = Annotated[
    int | None,
    typer.Option(
        help="Side of the images in px; default: 32 or the preset's, and the own size of npz and imagefolder."
    ),
]
Checkpoint = Annotated[
    str | None,
    typer.Argument(help="Name of a model in the store, or a weights file. Not needed if --model loads weights."),
]
Mean = Annotated[str | None, typer.Option(help="Mean of the model's normalization, such as 0.5,0.5,0.5.")]
Std = Annotated[str | None, typer.Option(help="Standard deviation of the model's normalization.")]
WeightsKey = Annotated[
    str | None, typer.Option(help="Which model of a weights file with several, such as model_ema: its key there.")
]
Epochs = Annotated[int | None, typer.Option(help="Epochs of every defense's main stage.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="NAME.FIELD=VALUE, such as trades.beta=3 or run.train_images=500; '*' is every defense."
    ),
]
Plugins = Annotated[list[str] | None, typer.Option("--plugin", help="A .py file with your own defenses or attacks.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of data sets; default: $ROBOBENCH_DATA, then the cache.")]
Out = Annotated[Path, typer.Option(help="The store.")]
Executor = Annotated[
    str,
    typer.Option(help="serial, or ray or slurm: trainings and evaluations in parallel on cores, GPUs and machines."),
]
Slurm = Annotated[
    list[str] | None,
    typer.Option(help="Options of sbatch for --executor slurm: partition=gpu,cpus-per-task=4,time=120."),
]
Address = Annotated[str | None, typer.Option(help="Of a running Ray: auto or HOST:PORT; default: start a local one.")]
GpusPerTask = Annotated[float | None, typer.Option(help="For --executor ray: 0.5 puts two tasks on each GPU.")]
Track = Annotated[
    str | None,
    typer.Option(help="Comma-separated: tensorboard, wandb, mlflow or trackio get metrics per epoch and results."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan with estimated time and memory; run nothing.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only warnings on stderr.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="More messages on stderr.")]


@dataclass(kw_only=True)
class EvaluateFlags:
    """Flags of every command that attacks models."""

    dataset: Dataset = "digits"
    model: Model = "cnn"
    preset: Preset = None
    device: Device = "auto"
    precision: Precision = "auto"
    threads: Threads = None
    devices: Annotated[int, typer.Option(help="GPUs of this machine (or CPU processes) that share the work.")] = 1
    attacks: Attacks = None
    norm: Norm = "Linf"
    eps: Eps = None
    all_radii: Annotated[
        bool, typer.Option("--all-radii", help="Attack at every radius of the data set, not only at RobustBench's.")
    ] = False
    examples: Examples = None
    image_size: ImageSize = None
    set_: Sets = None
    plugin: Plugins = None
    data_dir: DataDir = None
    out: Out = Path("runs")
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start over; earlier results of this run are renamed, not deleted.")
    ] = False
    track: Track = None
    dry_run: DryRun = False
    quiet: Quiet = False
    verbose: Verbose = False


@dataclass(kw_only=True)
class RunFlags(EvaluateFlags):
    """Flags of every command that trains and attacks."""

    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0
    seeds: Annotated[str | None, typer.Option(help="Several seeds: 0,1,2.")] = None
    compile: Compile = "auto"
    train_norm: Annotated[
        str | None, typer.Option(help="Norm to train against; default: --norm. Of Linf,L1 each batch draws one.")
    ] = None
    train_eps: Annotated[
        str | None, typer.Option(help="Radius to train against, one for each norm; default: that of the data set.")
    ] = None
    protocol: Annotated[str, typer.Option(help="white-box, transfer or both.")] = "both"
    epochs: Epochs = None
    batch_size: Annotated[int | None, typer.Option(help="Training batch size.")] = None
    init: Annotated[
        str | None,
        typer.Option(
            help="Weights to start from: FILE, STORE/NAME (trained here), timm, robustbench:ID or hf:OWNER/NAME."
        ),
    ] = None
    extra: Annotated[
        Path | None,
        typer.Option(
            help="Extra training images: FILE.npz with image and label, or FOLDER with image.npy and label.npy."
        ),
    ] = None
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher",
            help="ROLE=FILE (weights for --model), ROLE=MODEL=FILE, ROLE=FOLDER of a trained model, "
            "ROLE=robustbench:ID or ROLE=hf:OWNER/REPO, in place of a teacher trained here; roles such as robust and "
            "clean.",
        ),
    ] = None
    checkpoint_minutes: Annotated[float, typer.Option(help="Minutes between two checkpoints.")] = 5.0
    executor: Executor = "serial"
    address: Address = None
    gpus_per_task: GpusPerTask = None
    slurm: Slurm = None


def with_flags(flags: type) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Return a decorator: a handler's parameter `flags` becomes one option per field of the dataclass `flags`."""

    def decorate(handler: Callable[..., int]) -> Callable[..., int]:
        own = [p for p in inspect.signature(handler).parameters.values() if p.name != "flags"]
        hints = get_type_hints(handler, include_extras=True) | get_type_hints(flags, include_extras=True)
        names = [f.name for f in fields(flags)]

        def main(**values: Any) -> int:
            chosen = flags(**{name: values.pop(name) for name in names})
            return handler(flags=chosen, **values)

        shared = [inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default) for f in fields(flags)]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[p.name]) for p in (*own, *shared)]
        main.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        main.__annotations__ = {p.name: p.annotation for p in parameters}
        main.__doc__ = handler.__doc__
        return main

    return decorate


def fetch_place(place: Path | None, *, weights: bool = True) -> Any:
    """Return a folder as it is, and for hf:OWNER/REPO a local copy; its commit is noted on stderr."""
    if place is None or not str(place).startswith("hf:"):
        return place
    from robobench.store.hub import fetch_store

    folder = fetch_store(place, weights=weights)
    typer.echo(f"note: {place} is commit {folder.name}; every file matches its digest", err=True)
    return folder


def split_names(text: str | None) -> tuple[str, ...] | None:
    """Split a comma-separated list."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def parse_seeds(seed: int, several: str | None) -> tuple[int, ...]:
    """Return the seeds of --seeds, else of --seed; raises RequestError."""
    if several is None:
        return (seed,)
    try:
        return tuple(dict.fromkeys(int(part) for part in split_names(several) or ()))
    except ValueError:
        raise RequestError(f"--seeds '{several}' is not a list of whole numbers such as 0,1,2") from None


def make_request(flags: Any, **more: Any) -> ExperimentConfig:
    """Build an ExperimentConfig from a flags dataclass or a dictionary of flags; `more` adds or replaces fields."""
    from robobench.planning.request import ExperimentConfig

    values: dict[str, Any] = dict(flags) if isinstance(flags, dict) else asdict(flags)
    same = {f.name: values[f.name] for f in fields(ExperimentConfig) if f.name in values}
    parsed = {
        "attacks": split_names(values.get("attacks")),
        "eps": tuple(values.get("eps") or ()),
        "sets": tuple(values.get("set_") or ()),
        "plugins": tuple(values.get("plugin") or ()),
        "teachers": tuple(values.get("teacher") or ()),
        "slurm": tuple(values.get("slurm") or ()),
        "track": split_names(values.get("track")) or (),
        "seeds": parse_seeds(values.get("seed", 0), values.get("seeds")),
    }
    return ExperimentConfig(**{**same, **parsed, **more})


def execute(
    request: ExperimentConfig,
    flags: EvaluateFlags,
    *,
    after: Callable[[list[EvaluationRecord], Console], None] | None = None,
    check_plan: Callable[[Plan], None] | None = None,
) -> int:
    """Plan and run a request, and print its tables to stdout.

    Args:
        after: called with the records and the console after the tables are printed.
        check_plan: may raise to refuse the plan.

    Returns:
        The exit status.
    """
    from robobench.planning.study import Point

    def after_all(results: list[list[EvaluationRecord]], console: Console) -> None:
        if after is not None:
            after(results[0], console)

    return execute_points([Point(request)], flags, after=after_all, check_plan=check_plan)


def execute_points(
    points: Sequence[Point],
    flags: EvaluateFlags,
    *,
    after: Callable[[list[list[EvaluationRecord]], Console], None],
    check_plan: Callable[[Plan], None] | None = None,
) -> int:
    """Plan and run the requests of a grid, and print their tables to stdout.

    Args:
        after: called with the records of every request and the console after the tables are printed.
        check_plan: may raise to refuse a plan.

    Returns:
        The exit status.
    """
    from robobench.planning.precheck import check_request

    requests = [check_request(point.request) for point in points]  # before torch is imported, so that refusals are fast
    from rich.console import Console

    from robobench.core.console import Reporter
    from robobench.distributed import launch, signals
    from robobench.execution.run import execute_requests

    console = Console()  # as wide as the terminal or COLUMNS says, else 80
    if flags.dry_run:
        if launch.is_nonzero_rank():
            return 0
        from robobench.cli.dry_run_grid import print_plans
        from robobench.planning.planner import prepare_all

        prepared, now = prepare_all(requests, dry=True), ["measuring one step of every stage"]
        labels = [point.label for point in points]
        with Reporter(-1 if flags.quiet else 0).heartbeat(lambda: now[-1]):
            print_plans(prepared, labels, console if console.is_terminal else Console(width=200), now.append)
        return 0
    reporter = Reporter(-1 if flags.quiet else int(flags.verbose))
    with signals.handle_signals(verbose=not launch.is_nonzero_rank()):
        results = execute_requests(requests, reporter, check_plan)
    if launch.is_nonzero_rank():
        return 0
    from robobench.report.matrix import print_matrices
    from robobench.results.rows import make_frame

    rows = make_frame(list({r["key"]: r for records in results for r in records}.values()))
    print_matrices(rows, console)
    after(results, console)
    reporter.info(f"rows: {requests[0].out / 'rows.csv'}")
    return int((rows["status"] != "ok").any())


def read_study_file(file: str, flags: RunFlags, context: typer.Context, defenses: tuple[str, ...]) -> Study:
    """Read an experiment file; the flags given on the command line and `defenses`, if any, override it."""
    from robobench.planning.parsing import parse_sets
    from robobench.planning.study import read_study

    given = {f.name for f in fields(flags) if context.get_parameter_source(f.name).name == "COMMANDLINE"}  # type: ignore[union-attr]
    values = {name: value for name, value in asdict(flags).items() if name in given}
    overrides: dict[str, Any] = {f.name: values[f.name] for f in fields(make_request({})) if f.name in values}
    sets = parse_sets(values.get("set_") or ())
    overrides["sets"] = {f"{name}.{field}": text for name, own in sets.items() for field, text in own.items()}
    for name, field in (("seed", "seeds"), ("seeds", "seeds"), ("teacher", "teachers"), ("plugin", "plugins")):
        overrides |= {field: values[name]} if name in values else {}
    return read_study(Path(file), overrides | ({"defenses": list(defenses)} if defenses else {}))
