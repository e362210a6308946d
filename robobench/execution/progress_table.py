"""Progress of many tasks: a table with one row per model or, without a terminal, one line per finished task."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich import box
from rich.live import Live
from rich.table import Table

from robobench.core.console import PROGRESS_LINE_SECONDS, Reporter
from robobench.core.formatting import format_duration
from robobench.execution.task_graph import Task
from robobench.store.artifacts import Store


class ProgressTable:
    """Shows finished tasks, reported by `finished`, and running tasks, found by the locks of the store."""

    def __init__(self, tasks: Iterable[Task], store: Store, reporter: Reporter) -> None:
        self.tasks, self.store, self.reporter = list(tasks), store, reporter
        self.begun: dict[str, float] = {}  # task name -> when it was first seen running
        self.done: dict[str, tuple[bool, float]] = {}  # task name -> whether it succeeded, seconds
        self.start = self.last_line = time.monotonic()
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the table during the block if there is a terminal."""
        if self.reporter.verbosity < 0 or not self.reporter.console.is_terminal:
            yield
            return
        with Live(self.table(), console=self.reporter.console, auto_refresh=False, transient=True) as self._live:
            yield
        self._live = None

    def finished(self, task: Task, ok: bool, seconds: float) -> None:
        """Record a finished task."""
        self.done[task.name] = ok, seconds
        if self._live is None:
            state = format_duration(seconds) if ok else "failed"
            self._line(f"[{len(self.done)}/{len(self.tasks)}] {task.group}: {task.label}: {state}")

    def refresh(self) -> None:
        """Look up which tasks are running, and update the table or write a line."""
        now = time.monotonic()
        for task in self.tasks:
            ready = all(name in self.done for name in task.depends_on)
            new = task.name not in self.begun and task.name not in self.done
            if ready and new and self.store.is_locked(task.kind, task.key):
                self.begun[task.name] = now
        if self._live is not None:
            self._live.update(self.table(), refresh=True)
        elif now - self.last_line >= PROGRESS_LINE_SECONDS:
            running = ", ".join(
                f"{t.group}: {t.label} ({format_duration(now - self.begun[t.name])})" for t in self._running()
            )
            self._line(f"[{len(self.done)}/{len(self.tasks)}] running: {running or 'nothing yet'}")

    def _line(self, text: str) -> None:
        self.last_line = time.monotonic()
        self.reporter.info(text)

    def _running(self) -> list[Task]:
        return [t for t in self.tasks if t.name in self.begun and t.name not in self.done]

    def table(self) -> Table:
        """Return the table."""
        now = time.monotonic()
        table = Table(box=box.SIMPLE_HEAD)
        for column in ("model", "training", "attacks", "running"):
            table.add_column(column, overflow="fold" if column == "running" else "ellipsis")
        running = self._running()
        for group in dict.fromkeys(task.group for task in self.tasks):
            members = [task for task in self.tasks if task.group == group]
            attacks = [task for task in members if not task.is_training]
            ended = [self.done[task.name][0] for task in attacks if task.name in self.done]
            failed = f", {ended.count(False)} failed" if False in ended else ""
            table.add_row(
                group,
                next((self._state(task, now) for task in members if task.is_training), ""),
                f"{len(ended)} of {len(attacks)}{failed}",
                ", ".join(f"{t.label} {format_duration(now - self.begun[t.name])}" for t in running if t in attacks),
            )
        done = f"{len(self.done)} of {len(self.tasks)} tasks in {format_duration(now - self.start)}"
        table.caption = f"{done}, {len(running)} running"
        return table

    def _state(self, task: Task, now: float) -> str:
        if task.name in self.done:
            ok, seconds = self.done[task.name]
            return format_duration(seconds) if ok else "failed"
        if task.name in self.begun:
            return f"running, {format_duration(now - self.begun[task.name])}"
        return "waiting"
