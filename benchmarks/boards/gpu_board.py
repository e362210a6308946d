"""The GPU board: eight defenses on CIFAR-10 images with resnet18, and the paper's minutes per epoch at 224 px.

    python benchmarks/boards/gpu_board.py --data-dir DIR --back DIR [--from DIR] [--minutes 8] [--epochs 4]
    python benchmarks/boards/gpu_board.py --join DIR   # writes leaderboards/cifar10-jpeg-resnet18 from the results
    python benchmarks/boards/gpu_board.py --dry-run    # the jobs and their estimated times, without a GPU

For GPUs that are available for minutes at a time, each time perhaps on another machine. Run it in the repository's
root. A run stops after --minutes, between two attacks or training steps. Its records, times, transfer source and the
models that still have attacks to run are written to --back, in files of at most 15 MiB. Given to the next run as
--from, nothing recorded is repeated; a teacher is trained again if a job needs one. Exit status 75: jobs are left. All
10,000 test images are attacked with PGD-40, FGSM and Jitter at Linf 8/255 and 16/255, the first 1,000 with AutoAttack
at Linf 8/255 and L2 0.5.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from cpu_board import DEFENSES as CPU_DEFENSES
from cpu_board import PGD_STEPS, REQUIRES, SOURCE, belongs_to_board
from jobs import STOPPED, Job, run_jobs  # cpu_board adds its folder to sys.path

DEFENSES = tuple(name for name in CPU_DEFENSES if name != "fast-at")
TIMED = tuple(name for name in DEFENSES if name != SOURCE)  # section 4.4
TIMED_MODELS = ("resnet50", "wrn50")
STRONG = {"autoattack": "8/255", "autoattack-l2": "L2:0.5"}
SETS = (
    "run.held_out=0",
    "macd.mae_epochs=20",
    "macd.feature_epochs=4",
)  # short, like the other stages
EPOCH_IMAGES = 50_000  # in the paper
MAX_FILE_BYTES = 15 * 2**20  # of a file in --back
INTRO = """
Measured by `python benchmarks/boards/gpu_board.py`, in several runs; the `cifar` preset with fewer epochs. The images
were stored as JPEG, which changes pixels, so other copies of CIFAR-10 and published results are not comparable.
`times.csv` has the `paper` preset's minutes per epoch at 224 px, from some batches of random images of the size it
names. MACD's static attack is estimated by its passes, from a measured forward pass.
"""


def plan(out: Path, data_dir: Path, epochs: int) -> list[Job]:
    """Return all jobs, the most important first."""

    def job(name: str, defenses: tuple[str, ...], *flags: str, after: tuple[str, ...] = ()) -> Job:
        words = ["-m", "robobench", "compare", "-q", "--defenses", ",".join(defenses), "--dataset", "cifar10"]
        words += ["--model", "resnet18", "--preset", "cifar", "--epochs", str(epochs)]
        words += ["--device", "cuda", "--threads", "4"]
        words += ["--protocol", "both", "--data-dir", str(data_dir), "--out", str(out), "--checkpoint-minutes", "1"]
        trained = {"run", *defenses, *(need for d in defenses for need in REQUIRES.get(d, ()))}
        words += [f"--set={text}" for text in SETS if text.split(".")[0] in trained]
        words += [f"--set=run.baseline_control={str(SOURCE in defenses).lower()}"]
        return Job(name, (*words, *flags), after)

    cheap = ("--attacks", "pgd,fgsm,jitter", "--eps", "8/255,16/255", f"--set=pgd.steps={PGD_STEPS}")
    jobs = []
    for d in DEFENSES:  # attacks directly after the training, since another machine would train another model
        jobs.append(job(d, (d,), *cheap, after=REQUIRES.get(d, ())))
        for attack, eps in STRONG.items():
            flags = ("--attacks", attack, "--eps", eps, "--examples", "1000", "--set=run.eval_batch_size=100")
            jobs.append(job(f"{attack}-{d}", (d,), *flags, after=(d,)))
    script = ("benchmarks/boards/gpu_board.py", "--out", str(out), "--time")
    return [*jobs, *(Job(f"times-{model}-{d}", (*script, d, model)) for model in TIMED_MODELS for d in TIMED)]


def time_epoch(defense: str, model: str, out: Path, device: str) -> None:
    """Write the time per epoch of each stage in the paper preset: the fastest of three full batches, scaled up."""
    import torch

    from robobench.core.provenance import hardware
    from robobench.planning.cost import profile_stages
    from robobench.planning.plan import TrainingJob
    from robobench.planning.planner import make_plan
    from robobench.planning.request import ExperimentConfig

    request = ExperimentConfig(
        defenses=(defense,), dataset="cifar10", model=model, preset="paper", device=device, protocol="white-box",
        out=out, sets=("run.pretrained=false",),
    )  # fmt: skip
    made = make_plan(request, dry=True)
    (job,) = made.models
    assert isinstance(job, TrainingJob)
    size = job.config.batch_size
    while True:
        try:
            rounds = [profile_stages(made, job, batch_size=size) for _ in range(3)]
            break
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if size < 4:  # BatchNorm needs two images
                raise
            size //= 2
    lines = [("model", "defense", "stage", "images per batch", "minutes per epoch", "precision", "hardware", "torch")]
    for stage in zip(*rounds, strict=True):
        minutes = EPOCH_IMAGES * min(cost.seconds_per_image for cost in stage) / 60
        where = (made.precision, hardware(device), torch.__version__)
        lines.append((model, defense, stage[0].name, str(size), f"{minutes:.3f}", *where))
    (out / "times").mkdir(parents=True, exist_ok=True)
    with (out / "times" / f"{model}-{defense}.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)


# --- between two machines -----------------------------------------------------------------------


def bring_back(out: Path, back: Path) -> None:
    """Write what the next run needs: records, job marks and times in one file, weights in several."""
    from robobench.errors import RequestError
    from robobench.report.board_folder import write_snapshot

    back.mkdir(parents=True, exist_ok=True)
    here, whole = out / "brought" / "here", out / "brought" / "board"
    try:
        write_snapshot(out, here, keep=belongs_to_board)
        shutil.copytree(here, whole, dirs_exist_ok=True)
    except RequestError:
        pass  # nothing is recorded yet
    with tarfile.open(back / "state.tar.gz", "w:gz") as tar:
        kept = [*out.glob("jobs/*.done"), *out.glob("times/*.csv"), *(p for p in whole.rglob("*") if p.is_file())]
        for path in kept:
            if path.suffix != ".safetensors":
                tar.add(path, path.relative_to(out))
    done = {path.name.rpartition("-")[0] for path in out.glob("jobs/*.done")}
    unfinished = [d for d in DEFENSES if d != SOURCE and not done.issuperset(f"{attack}-{d}" for attack in STRONG)]
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w:gz") as tar:
        for name in (SOURCE, *unfinished):
            for folder in out.glob(f"{name}-resnet18-*"):
                tar.add(folder, folder.name)
    packed = memory.getvalue()
    for number, begin in enumerate(range(0, len(packed), MAX_FILE_BYTES)):
        (back / f"weights.tar.gz.{number:03d}").write_bytes(packed[begin : begin + MAX_FILE_BYTES])


def unpack(place: Path, out: Path) -> None:
    """Unpack the files of an earlier run; records and weights of this machine are kept."""
    out.mkdir(parents=True, exist_ok=True)
    if (place / "state.tar.gz").is_file():
        with tarfile.open(place / "state.tar.gz") as tar:
            tar.extractall(out, filter="data")
        for record in (out / "brought" / "board").glob("artifacts/evaluations/*"):
            target = out / "artifacts" / "evaluations" / record.name
            if not target.exists():
                shutil.copytree(record, target)
    parts = sorted(place.glob("weights.tar.gz.*"))
    if parts and not any(out.glob(f"{SOURCE}-resnet18-*")):
        with tarfile.open(fileobj=io.BytesIO(b"".join(part.read_bytes() for part in parts))) as tar:
            tar.extractall(out, filter="data")


def join(place: Path, out: Path, board: Path) -> None:
    """Write the board from the files of the last run."""
    from robobench.report.board_folder import write_snapshot

    unpack(place, out)
    left = write_snapshot(out / "brought" / "board", board, intro=INTRO)
    times = [path.read_text().splitlines() for path in sorted(out.glob("times/*.csv"))]
    if times:
        (board / "times.csv").write_text(
            "\n".join([times[0][0], *(line for part in times for line in part[1:])]) + "\n"
        )
    print(f"board: {board}; without the weights of {len(left)} models")


def dry_run(jobs: list[Job]) -> int:
    """Print every job, and for those that train the time estimated on the CPU."""
    for job in jobs:
        print(f"{job.name}: python {' '.join(job.words)}")
        if job.name in DEFENSES:
            words = [w if w != "cuda" else "cpu" for w in job.words if w != "-q"]
            done = subprocess.run([sys.executable, *words, "--dry-run"], capture_output=True, text=True)
            output = (done.stdout + done.stderr).strip().splitlines()
            print("  " + next((line for line in output if line.startswith("estimated")), output[-1]), flush=True)
            if done.returncode:
                return 1
    return 0


def main() -> int:
    """Run until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-board"), help="the store on this machine")
    parser.add_argument("--back", type=Path, help="folder for the files that the next run needs")
    parser.add_argument("--from", dest="before", type=Path, help="files of an earlier run")
    parser.add_argument("--join", type=Path, help="write the board from the files of the last run")
    parser.add_argument("--board", type=Path, default=Path("leaderboards/cifar10-jpeg-resnet18"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--time", nargs=2, metavar=("DEFENSE", "MODEL"), help="time some batches (one job)")
    parser.add_argument("--device", default="cuda", help="of --time")
    options = parser.parse_args()
    jobs = plan(options.out, options.data_dir, options.epochs)
    if options.dry_run:
        return dry_run(jobs)
    if options.time:
        time_epoch(options.time[0], options.time[1], options.out, options.device)
        return 0
    if options.join:
        join(options.join, options.out, options.board)
        return 0
    if options.back is None:
        parser.error("--back is needed: a folder for the files that the next run needs")
    if options.before:
        unpack(options.before, options.out)
    failed, left = run_jobs(jobs, options.out / "jobs", workers=1, minutes=options.minutes)
    bring_back(options.out, options.back)
    print(f"{left} of {len(jobs)} jobs are left" + (f"; next: --from {options.back}" if left else ""))
    return STOPPED if left else int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
