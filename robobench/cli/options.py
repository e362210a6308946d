"""The flags several subcommands share, and how they become a Request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robobench.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from robobench.plan import Plan
    from robobench.request import Request

Dataset = Annotated[str, typer.Option(help="digits, cifar10, cifar100, imagefolder:PATH or npz:FILE.")]
Model = Annotated[
    str,
    typer.Option(
        help="A name of `list models`, timm:NAME, robustbench:ID, FILE.py:FUNCTION or package.module:FUNCTION."
    ),
]
Preset = Annotated[str | None, typer.Option(help="quick, cifar, fast or paper; the data set brings its own.")]
Seed = Annotated[int, typer.Option(help="Seed of the training.")]
Seeds = Annotated[str | None, typer.Option(help="Several seeds: 0,1,2.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[str, typer.Option(help="Of training and white-box search: auto, fp32 or bf16.")]
Compile = Annotated[str, typer.Option(help="Compile networks for training with torch.compile: auto, on or off.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of each process.")]
Devices = Annotated[int, typer.Option(help="GPUs of this machine (or CPU processes) that share the work.")]
Attacks = Annotated[str | None, typer.Option(help="Comma-separated names; the preset brings its own.")]
Norm = Annotated[str, typer.Option(help="Linf or L2.")]
Eps = Annotated[
    list[str] | None,
    typer.Option(help="Test radii: 8/255,16/255, or L2:0.5,1.0; the data set brings its own."),
]
TrainNorm = Annotated[str | None, typer.Option(help="Norm to train against; default: --norm.")]
TrainEps = Annotated[str | None, typer.Option(help="Radius to train against; the data set brings its own.")]
Protocol = Annotated[str, typer.Option(help="white-box, transfer or both.")]
Examples = Annotated[int | None, typer.Option(help="Only the first N test images.")]
Epochs = Annotated[int | None, typer.Option(help="Epochs of every defense's main stage.")]
BatchSize = Annotated[int | None, typer.Option(help="Training batch size.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME.FIELD=VALUE, such as trades.beta=3 or run.train_images=500."),
]
Teachers = Annotated[
    list[str] | None,
    typer.Option(
        "--teacher",
        help="ROLE=FILE (weights for --model), ROLE=MODEL=FILE, ROLE=FOLDER of a trained network, or "
        "ROLE=robustbench:ID, in place of a teacher trained here; roles such as robust and clean.",
    ),
]
Plugins = Annotated[list[str] | None, typer.Option("--plugin", help="A .py file with defenses or attacks of your own.")]
DataDir = Annotated[Path | None, typer.Option(help="Where data sets are; else $ROBOBENCH_DATA, else the cache.")]
Out = Annotated[Path, typer.Option(help="The store.")]
CheckpointEvery = Annotated[float, typer.Option(help="Minutes of training a crash may cost.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over: set aside what the store has of this.")]
Executor = Annotated[
    str, typer.Option(help="serial, or ray: trainings and evaluations side by side on cores, GPUs and machines.")
]
Address = Annotated[
    str | None, typer.Option(help="Of a running Ray: auto or HOST:PORT; if left out, a local one is started.")
]
GpusPerTask = Annotated[float | None, typer.Option(help="Of a GPU, for --executor ray: 0.5 puts two tasks on each.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan with estimated time and memory; run nothing.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Warnings only on stderr.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="More on stderr.")]


def names(text: str | None) -> tuple[str, ...] | None:
    """Split a comma-separated list."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def seeds(seed: int, several: str | None) -> tuple[int, ...]:
    """Read --seeds, else --seed; raises RequestError."""
    if several is None:
        return (seed,)
    try:
        return tuple(dict.fromkeys(int(part) for part in names(several) or ()))
    except ValueError:
        raise RequestError(f"--seeds '{several}' is not a list of whole numbers such as 0,1,2") from None


def request(flags: dict[str, Any], **more: Any) -> Request:
    """Make a Request of a handler's local variables: the fields it has, under their own names."""
    from dataclasses import fields

    from robobench.request import Request

    taken = {f.name: flags[f.name] for f in fields(Request) if f.name in flags}
    listed = {
        "attacks": names(flags.get("attacks")),
        "eps": tuple(flags.get("eps") or ()),
        "sets": tuple(flags.get("set_") or ()),
        "plugins": tuple(flags.get("plugin") or ()),
        "teachers": tuple(flags.get("teacher") or ()),
        "seeds": seeds(flags.get("seed", 0), flags.get("seeds")),
    }
    return Request(**{**taken, **listed, **more})


def execute(
    wanted: Request,
    *,
    dry_run: bool,
    quiet: bool,
    verbose: bool,
    after: Callable[[list[dict[str, Any]], Console], None] | None = None,
    check: Callable[[Plan], None] | None = None,
) -> int:
    """Plan and run a request, print its tables to stdout; returns the exit status.

    `check` may refuse the plan; `after` is given the records and the console, once the tables are printed.
    """
    from rich.console import Console

    from robobench import launch
    from robobench.interface import work
    from robobench.progress import Reporter

    reporter = Reporter(-1 if quiet else int(verbose))
    console = Console()  # as wide as the terminal or COLUMNS says, else 80
    if dry_run:
        if launch.follower():
            return 0
        from robobench.estimate import print_plan
        from robobench.planner import make_plan

        console = console if console.is_terminal else Console(width=200)
        print_plan(make_plan(wanted, dry=True), console)
        return 0
    from robobench import interrupts

    with interrupts.handled(speaks=not launch.follower()):
        records = work(wanted, reporter, check)
    if launch.follower():
        return 0
    from robobench import report, results

    rows = results.frame(records)
    report.show(rows, console)
    if after is not None:
        after(records, console)
    reporter.note(f"rows: {wanted.out / 'rows.csv'}")
    return int((rows["status"] != "ok").any())
