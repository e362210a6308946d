"""Messages and progress bars, all on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from robobench.core.formatting import format_duration

PROGRESS_LINE_SECONDS = 30.0  # between two progress lines if no bar can be drawn (logs, pipes)


class Reporter:
    """Write messages to stderr and, if `log_file` is set, to a file.

    Args:
        verbosity: -1 for warnings only, 0 for messages too, 1 for details too.
    """

    def __init__(self, verbosity: int = 0) -> None:
        self.verbosity = verbosity
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.log_file: Path | None = None
        self._warned: set[str] = set()

    def _write(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False)
        self.log(text)

    def log(self, text: str) -> None:
        """Append a line to the log file of the current training, if there is one."""
        if self.log_file is not None:  # an error of the log must not stop the run
            with suppress(OSError), self.log_file.open("a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def info(self, text: str) -> None:
        """Write a message, unless -q was given."""
        if self.verbosity >= 0:
            self._write(text)
        else:
            self.log(text)

    def debug(self, text: str) -> None:
        """Write a message only if -v was given."""
        if self.verbosity > 0:
            self._write(text, "dim")
        else:
            self.log(text)

    def warning(self, text: str) -> None:
        """Write a warning, once per process for the same text."""
        if text not in self._warned:
            self._warned.add(text)
            self._write(f"warning: {text}", "yellow")

    @contextmanager
    def progress_bar(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show progress over `total` units; yields a function that adds finished units."""
        if self.verbosity < 0:
            yield lambda done: None
        elif self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=self.console, transient=True) as progress:
                task = progress.add_task(description, total=total)
                yield lambda done: progress.advance(task, done)
        else:
            yield self._plain_bar(description, total)
        sys.stderr.flush()

    def _plain_bar(self, description: str, total: int) -> Callable[[int], None]:
        begun = last_line = time.monotonic()
        done = 0

        def advance(count: int) -> None:
            nonlocal done, last_line
            done += count
            now = time.monotonic()
            if now - last_line >= PROGRESS_LINE_SECONDS and 0 < done < total:
                last_line = now
                left = (now - begun) / done * (total - done)
                self._write(f"{description}: {done}/{total}, about {format_duration(left)} left")

        return advance


class SilentReporter(Reporter):
    """Write nothing; for processes of rank 1 and above."""

    def __init__(self) -> None:
        super().__init__(-1)

    def _write(self, text: str, style: str | None = None) -> None:
        pass

    def log(self, text: str) -> None:
        """Write nothing."""
