"""The command line: one file per command. Handlers import torch inside, so that `--help` is fast."""

from __future__ import annotations

import re
import shlex
import sys
import warnings
from typing import Annotated

import typer

from robobench import __version__
from robobench.cli import (
    check,
    compare,
    corruptions,
    diagnose,
    distances,
    env,
    evaluate,
    leaderboard,
    list_,
    new,
    paper,
    push,
    report,
    reproduce,
    run,
    score,
    store,
)

EPILOG = """
Examples:

  robobench run --defense macd --model wrn50

  robobench compare standard at trades

  robobench leaderboard --format md

  robobench report

  robobench evaluate weights.safetensors --model resnet18 --dataset cifar10
"""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=EPILOG,
    help="Train adversarial defenses, time them, attack them all in the same way, and write accuracy matrices.",
)


def _version(requested: bool) -> None:
    if requested:
        print(f"robobench {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before a command."""


app.command("run", help=run.HELP, epilog=run.EPILOG)(run.main)
app.command("compare", help=compare.HELP, epilog=compare.EPILOG)(compare.main)
app.command("leaderboard", help=leaderboard.HELP, epilog=leaderboard.EPILOG)(leaderboard.main)
app.command("report", help=report.HELP, epilog=report.EPILOG)(report.main)
app.command("evaluate", help=evaluate.HELP, epilog=evaluate.EPILOG)(evaluate.main)
app.command("distances", help=distances.HELP, epilog=distances.EPILOG)(distances.main)
app.command("score", help=score.HELP, epilog=score.EPILOG)(score.main)
app.command("diagnose", help=diagnose.HELP, epilog=diagnose.EPILOG)(diagnose.main)
app.command("corruptions", help=corruptions.HELP, epilog=corruptions.EPILOG)(corruptions.main)
app.command("reproduce", help=reproduce.HELP, epilog=reproduce.EPILOG)(reproduce.main)
app.command("push", help=push.HELP, epilog=push.EPILOG)(push.main)
app.command("list", help=list_.HELP, epilog=list_.EPILOG)(list_.main)
app.command("env", help=env.HELP, epilog=env.EPILOG)(env.main)
app.command("new", help=new.HELP, epilog=new.EPILOG)(new.main)
app.command("check", help=check.HELP, epilog=check.EPILOG)(check.main)
app.add_typer(store.app, name="store", help=store.HELP, epilog=store.EPILOG)
app.add_typer(paper.app, name="paper")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0: done. 1: a cell failed (its row has the reason), a check failed (`reproduce`, `check`, `score`, `store check`), a
    gate (`--fail-under`) was missed, the store could not be written, or a process or cluster was lost. 2: the request
    is wrong, or a file is damaged or missing; one line on stderr says why. 130 or 143: stopped by a signal.
    """
    from robobench.distributed.launch import is_nonzero_rank
    from robobench.errors import ArtifactError, ExecutorError, Interrupted, ProcessError, RequestError, StorageError

    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # deprecations in other packages; our warnings go through the reporter
    try:
        result = app(args=arguments, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except (RequestError, ArtifactError) as err:
        return _refuse(str(err))
    except (StorageError, ExecutorError) as err:
        return _refuse(str(err), 1)
    except ProcessError as err:
        return _refuse(str(err), 1, everywhere=True)
    except Interrupted as err:
        if is_nonzero_rank():
            return 128 + err.signum
        words = [word for word in (arguments or sys.argv[1:]) if word != "--overwrite"]
        print(f"interrupted; resume with: {shlex.join(['robobench', *words])}", file=sys.stderr)
        return 128 + err.signum
    except KeyboardInterrupt:  # before anything started
        return 130
    except OSError as err:
        return _refuse(f"{err.strerror or err}: '{err.filename}'" if err.filename else str(err))
    except Exception as err:
        if hasattr(err, "format_message"):  # usage errors of typer, with any version of click
            message = str(err.format_message())
            extra = re.search(r"unexpected extra argument.* \(([\d./ ]+)\)$", message)
            if extra:
                message += f"; several radii are separated by commas: --eps 8/255,{extra[1].replace(' ', ',')}"
            return _refuse(message) if message else 2  # no message: the help was printed
        raise


def _refuse(message: str, status: int = 2, everywhere: bool = False) -> int:
    """Print the error in one line, under torchrun on rank 0 only; return the status."""
    from robobench.distributed.launch import is_nonzero_rank

    if everywhere or not is_nonzero_rank():
        print(f"robobench: {' '.join(message.split())}", file=sys.stderr)
    return status


def entry() -> None:
    """Console script."""
    sys.exit(main())
