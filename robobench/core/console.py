"""Messages and progress bars, all on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from robobench.core.formatting import format_duration

PROGRESS_LINE_SECONDS = 30.0  # between two progress lines if no bar can be drawn (logs, pipes)


class _Description(ProgressColumn):
    """A column of a progress bar whose text is asked for whenever it is drawn."""

    def __init__(self, say: Callable[[], str]) -> None:
        super().__init__()
        self.say = say

    def render(self, task: Task) -> Text:
        """Return the text."""
        return Text(self.say())


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
    def progress_bar(self, description: str | Callable[[], str], total: int) -> Iterator[Callable[[int], None]]:
        """Show progress over `total` units; yields a function that adds finished units.

        Args:
            description: a text, or a function that returns it now.
        """
        say = description if callable(description) else lambda: description
        if self.verbosity < 0:
            yield lambda done: None
        elif self.console.is_terminal:
            columns = (
                _Description(say),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=self.console, transient=True) as progress:
                task = progress.add_task("", total=total)
                yield lambda done: progress.advance(task, done)
        else:
            with self._plain_bar(say, total) as advance:
                yield advance
        sys.stderr.flush()

    @contextmanager
    def heartbeat(self, description: str | Callable[[], str]) -> Iterator[None]:
        """Write a line every PROGRESS_LINE_SECONDS while the block runs, or show a spinner in a terminal.

        Args:
            description: what is being done, or a function that says it now; the seconds so far follow.
        """
        if self.verbosity < 0:
            yield
            return
        say = description if callable(description) else lambda: description
        if self.console.is_terminal:
            with self.console.status(say()):
                yield
            return
        begun, ended = time.monotonic(), threading.Event()

        def write_lines() -> None:
            while not ended.wait(PROGRESS_LINE_SECONDS):
                self._write(f"{say()} ({format_duration(time.monotonic() - begun)} so far)")

        thread = threading.Thread(target=write_lines, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @contextmanager
    def _plain_bar(self, description: Callable[[], str], total: int) -> Iterator[Callable[[int], None]]:
        """Write a line every PROGRESS_LINE_SECONDS, also while a single unit takes longer than that."""
        begun, done = time.monotonic(), 0

        def say() -> str:
            if not 0 < done < total:
                return f"{description()}: {done}/{total}"
            left = (time.monotonic() - begun) / done * (total - done)
            return f"{description()}: {done}/{total}, about {format_duration(left)} left"

        def advance(count: int) -> None:
            nonlocal done
            done += count

        with self.heartbeat(say):
            yield advance


class SilentReporter(Reporter):
    """Write nothing; for processes of rank 1 and above."""

    def __init__(self) -> None:
        super().__init__(-1)

    def _write(self, text: str, style: str | None = None) -> None:
        pass

    def log(self, text: str) -> None:
        """Write nothing."""
