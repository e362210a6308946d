"""The command line: one file a subcommand; torch is imported inside the handlers only."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer

from robobench import __version__
from robobench.cli import check, compare, evaluate, leaderboard, listing, new, report, run

EPILOG = """
Examples:

  robobench run --defense macd --model wrn50

  robobench compare --defenses standard,at,trades,macd

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
    help="Train adversarial defenses, clock them, attack them all in the same way, write the matrix.",
)


def _version(asked: bool) -> None:
    if asked:
        print(f"robobench {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Hold the options that stand before a subcommand."""


app.command("run", help=run.HELP, epilog=run.EPILOG)(run.main)
app.command("compare", help=compare.HELP, epilog=compare.EPILOG)(compare.main)
app.command("leaderboard", help=leaderboard.HELP, epilog=leaderboard.EPILOG)(leaderboard.main)
app.command("report", help=report.HELP, epilog=report.EPILOG)(report.main)
app.command("evaluate", help=evaluate.HELP, epilog=evaluate.EPILOG)(evaluate.main)
app.command("list", help=listing.HELP, epilog=listing.EPILOG)(listing.main)
app.command("new", help=new.HELP, epilog=new.EPILOG)(new.main)
app.command("check", help=check.HELP, epilog=check.EPILOG)(check.main)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0: done. 1: some cell failed, its reason stands in the row. 2: the request is wrong; one line on
    stderr says why, and nothing was created.
    """
    from robobench.errors import ArtifactError, RequestError

    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # third parties' deprecations; ours go through the reporter
    try:
        result = app(args=arguments, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except (RequestError, ArtifactError) as err:
        return _refuse(str(err))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is finished", file=sys.stderr)
        return 130
    except OSError as err:
        return _refuse(f"{err.strerror or err}: '{err.filename}'" if err.filename else str(err))
    except Exception as err:
        if hasattr(err, "format_message"):  # typer's own usage errors, whichever click it carries
            message = str(err.format_message())
            return _refuse(message) if message else 2  # no message: the help was asked for and printed
        raise


def _refuse(message: str) -> int:
    """Print the one line of a refused request."""
    print(f"robobench: {' '.join(message.split())}", file=sys.stderr)
    return 2


def entry() -> None:
    """Console script."""
    sys.exit(main())
