"""Generate wrong command lines: exit status 2, one line on stderr, nothing written.

python tests/fault_injection/fuzz_cli.py --lines 1000
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

import harness
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

RUN = ["run", "--defense", "at"]
TEXT = st.text(max_size=12)
WORD = st.text("abcxyz_-.:/=,%0\u00e4\u0000 \n'\"", min_size=1, max_size=10).map(
    lambda s: f"q{s}"
)  # no known name begins with q
NOT_A_NUMBER = WORD
BELOW_ONE = st.integers(max_value=0).map(str)
BAD_RADIUS = st.one_of(
    NOT_A_NUMBER,
    st.floats(max_value=0).map(str),
    st.integers(2, 10**6).map(str),
    st.sampled_from(["1/0", "inf", "nan", "8/255/2", "L9:0.1", "Linf:", ","]),
)
FIELDS = (
    "epochs",
    "batch_size",
    "lr",
    "momentum",
    "weight_decay",
    "schedule",
    "augment",
    "inner_steps",
    "attack_bn_mode",
)


def flag(name: str, values: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    """Return `run` commands with a wrong value of a flag."""
    return values.map(lambda value: [*RUN, f"{name}={value}"])


LINES = st.one_of(
    *(flag(f"--{name}", WORD) for name in ("model", "dataset", "preset", "norm", "train-norm", "device")),
    *(flag(f"--{name}", WORD) for name in ("precision", "protocol", "attacks", "seeds", "plugin", "set", "eps")),
    *(flag(f"--{name}", st.one_of(BELOW_ONE, NOT_A_NUMBER)) for name in ("examples", "batch-size", "threads")),
    flag("--epochs", st.one_of(st.integers(max_value=-1).map(str), NOT_A_NUMBER)),
    flag("--seed", NOT_A_NUMBER),
    flag("--checkpoint-minutes", st.one_of(NOT_A_NUMBER, st.sampled_from(["-1", "nan", "inf", "-0.5"]))),
    *(flag(name, BAD_RADIUS) for name in ("--eps", "--train-eps")),
    flag("--dataset", WORD.map(lambda w: f"npz:{w}")),
    flag("--dataset", WORD.map(lambda w: f"imagefolder:{w}")),
    flag("--model", WORD.map(lambda w: f"{w}.py:net")),
    flag("--model", WORD.map(lambda w: f"timm:{w}")),
    flag("--set", st.tuples(WORD, WORD).map(lambda p: f"at.{p[0]}={p[1]}")),
    flag("--set", st.tuples(WORD, TEXT).map(lambda p: f"{p[0]}.epochs={p[1]}")),
    flag("--set", st.tuples(st.sampled_from(FIELDS), WORD).map(lambda p: f"at.{p[0]}={p[1]}")),
    flag("--set", st.tuples(st.sampled_from(("epochs", "lr", "batch_size")), st.just("-1")).map("at.{0[0]}=-1".format)),
    flag("--out", st.sampled_from(["/dev/null/x", "/proc/x"])),
    WORD.map(lambda w: ["run", f"--defense={w}"]),
    WORD.map(lambda w: ["compare", f"--defenses=at,{w}"]),
    WORD.map(lambda w: ["compare", "--defenses", f"at,{w}"]),
    WORD.map(lambda w: [w]),
    WORD.map(lambda w: [*RUN, w]),
    WORD.map(lambda w: [*RUN, f"--{w}"]),
    st.tuples(st.sampled_from(["leaderboard", "list", "check", "evaluate"]), WORD).map(list),
    st.tuples(st.just("store"), st.sampled_from(["list", "check"]), WORD.map(lambda w: f"--out={w}")).map(list),
    st.tuples(st.just("store"), WORD).map(list),
    TEXT.map(lambda t: ["leaderboard", f"--format=q{t}"]),
)


def find_problem(line: list[str]) -> str | None:
    """Run a command line in an empty folder; return None if it is refused correctly, else the problem."""
    from robobench.cli import main

    out, err, cwd = io.StringIO(), io.StringIO(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main(list(line))
        except BaseException as error:
            return f"{line}: {type(error).__name__}: {error}"
        finally:
            os.chdir(cwd)
        if list(Path(folder).iterdir()):
            return f"{line}: created {[p.name for p in Path(folder).iterdir()]}"
    lines = err.getvalue().strip().splitlines()
    if status != 2 or len(lines) != 1:
        return f"{line}: status {status}, {len(lines)} lines: {err.getvalue()[-300:]}"
    return None


def fuzz(count: int, number: int = 0) -> list[str]:
    """Run `count` generated command lines; return the problems found."""
    problems: list[str] = []
    tried = 0

    @seed(number)
    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(LINES)
    def attempt(line: list[str]) -> None:
        nonlocal tried
        tried += 1
        problem = find_problem(line)
        if problem:
            problems.append(problem)

    attempt()
    print(f"fuzzing: {tried} wrong command lines, {len(problems)} problems", flush=True)
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    harness.preload()
    problems = fuzz(args.lines, args.seed)
    print("\n".join(problems[:40]) or "no problems")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
