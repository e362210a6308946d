"""What a person sees while robobench works: notes and bars with time left, all on stderr."""

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

PLAIN_EVERY_SECONDS = 30.0  # a line for logs and pipes, where no bar can be drawn


class Reporter:
    """Writes to stderr; -q keeps warnings only, -v adds details. `log` copies every line to a file."""

    def __init__(self, verbosity: int = 0) -> None:
        self.verbosity = verbosity
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.log_file: Path | None = None
        self._said: set[str] = set()

    def _write(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False)
        self.log(text)

    def log(self, text: str) -> None:
        """Append a line to the log of the training in progress, if there is one."""
        if self.log_file is not None:  # a log that cannot be written stops no work
            with suppress(OSError), self.log_file.open("a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def note(self, text: str) -> None:
        """Say something, unless -q."""
        if self.verbosity >= 0:
            self._write(text)
        else:
            self.log(text)

    def detail(self, text: str) -> None:
        """Say something only under -v."""
        if self.verbosity > 0:
            self._write(text, "dim")
        else:
            self.log(text)

    def warn(self, text: str) -> None:
        """Say something the reader can act on; the same text once a process."""
        if text not in self._said:
            self._said.add(text)
            self._write(f"warning: {text}", "yellow")

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show progress over `total` units; yields the function that adds some."""
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
        begun = said = time.monotonic()
        done = 0

        def advance(count: int) -> None:
            nonlocal done, said
            done += count
            now = time.monotonic()
            if now - said >= PLAIN_EVERY_SECONDS and 0 < done < total:
                said = now
                left = (now - begun) / done * (total - done)
                self._write(f"{description}: {done}/{total}, about {duration(left)} left")

        return advance


class Silent(Reporter):
    """Says and writes nothing: of several processes only the first one speaks."""

    def __init__(self) -> None:
        super().__init__(-1)

    def _write(self, text: str, style: str | None = None) -> None:
        pass

    def log(self, text: str) -> None:
        """Drop the line."""


def duration(seconds: float) -> str:
    """Spell a duration for people: '4.2 s', '3 min 05 s', '2 h 10 min', '3.4 days'."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60:02d} s"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{seconds / 86400:.1f} days"


def size(count: float) -> str:
    """Spell a number of bytes: '512 MiB', '3.21 GiB'."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
