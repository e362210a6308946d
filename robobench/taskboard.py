"""The progress of many tasks in one table: a line a network, or on pipes a line a finished task."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich import box
from rich.live import Live
from rich.table import Table

from robobench.grid import Task
from robobench.progress import PLAIN_EVERY_SECONDS, Reporter, duration
from robobench.store import Store


class Board:
    """Knows what is finished because it is told, and what is at work from the store's locks."""

    def __init__(self, tasks: Iterable[Task], store: Store, reporter: Reporter) -> None:
        self.tasks, self.store, self.reporter = list(tasks), store, reporter
        self.begun: dict[str, float] = {}  # task name -> when it was first seen at work
        self.done: dict[str, tuple[bool, float]] = {}  # task name -> whether it went well, seconds
        self.start = self.said = time.monotonic()
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw the table inside the block, where there is a terminal."""
        if self.reporter.verbosity < 0 or not self.reporter.console.is_terminal:
            yield
            return
        with Live(self.table(), console=self.reporter.console, auto_refresh=False, transient=True) as self._live:
            yield
        self._live = None

    def finished(self, task: Task, good: bool, seconds: float) -> None:
        """Take note of a finished task."""
        self.done[task.name] = good, seconds
        if self._live is None:
            said = duration(seconds) if good else "failed"
            self._say(f"[{len(self.done)}/{len(self.tasks)}] {task.network}: {task.label}: {said}")

    def look(self) -> None:
        """See what is at work, and show it."""
        now = time.monotonic()
        for task in self.tasks:
            may = task.name not in self.begun and task.name not in self.done and all(n in self.done for n in task.needs)
            if may and self.store.busy(task.kind, task.key):
                self.begun[task.name] = now
        if self._live is not None:
            self._live.update(self.table(), refresh=True)
        elif now - self.said >= PLAIN_EVERY_SECONDS:
            at_work = ", ".join(f"{t.network}: {t.label} ({duration(now - self.begun[t.name])})" for t in self._busy())
            self._say(f"[{len(self.done)}/{len(self.tasks)}] at work: {at_work or 'nothing yet'}")

    def _say(self, text: str) -> None:
        self.said = time.monotonic()
        self.reporter.note(text)

    def _busy(self) -> list[Task]:
        return [t for t in self.tasks if t.name in self.begun and t.name not in self.done]

    def table(self) -> Table:
        """Lay out where every network stands."""
        now = time.monotonic()
        table = Table(box=box.SIMPLE_HEAD)
        for column in ("network", "training", "attacks", "at work"):
            table.add_column(column, overflow="fold" if column == "at work" else "ellipsis")
        busy = self._busy()
        for network in dict.fromkeys(task.network for task in self.tasks):
            own = [task for task in self.tasks if task.network == network]
            attacks = [task for task in own if task.cell is not None]
            ended = [self.done[task.name][0] for task in attacks if task.name in self.done]
            failed = f", {ended.count(False)} failed" if False in ended else ""
            table.add_row(
                network,
                next((self._state(task, now) for task in own if task.cell is None), ""),
                f"{len(ended)} of {len(attacks)}{failed}",
                ", ".join(f"{t.label} {duration(now - self.begun[t.name])}" for t in busy if t in own and t.cell),
            )
        done = f"{len(self.done)} of {len(self.tasks)} tasks in {duration(now - self.start)}"
        table.caption = f"{done}, {len(busy)} at work"
        return table

    def _state(self, task: Task, now: float) -> str:
        if task.name in self.done:
            good, seconds = self.done[task.name]
            return duration(seconds) if good else "failed"
        return f"at work, {duration(now - self.begun[task.name])}" if task.name in self.begun else "waits"
