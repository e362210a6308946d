"""Results as Jupyter shows them: leaderboards, matrices and figures below a cell."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd

from robobench.report import figures
from robobench.report.formatting import COMPARABLE_KEYS, add_names, iter_groups
from robobench.report.leaderboard import rank_models
from robobench.report.leaderboard_formats import leaderboard
from robobench.report.matrix import PROTOCOLS, matrix
from robobench.results.rows import read_rows


class Results:
    """Rows of results, shown as tables.

    Args:
        rows: as `robobench.compare` returns them.
        figures: also show accuracy against eps.
    """

    def __init__(self, rows: pd.DataFrame, *, figures: bool = False) -> None:
        # As they are read from rows.csv: the functions that return rows leave None in columns of numbers.
        self.rows = pd.read_csv(io.StringIO(rows.to_csv(index=False)))
        self.figures = figures

    def __repr__(self) -> str:
        return leaderboard(self.rows)

    def _repr_html_(self) -> str:
        parts = [leaderboard(self.rows, "html")]
        for part in map(add_names, iter_groups(self.rows, COMPARABLE_KEYS)):
            for protocol, meaning in PROTOCOLS.items():
                same = part[part["protocol"] == protocol]
                if len(same):
                    parts.append(f"<h3>{protocol} accuracy, %</h3><p>{meaning}</p>{matrix(same, protocol).to_html()}")
        return "\n".join([*parts, *self._figures()])

    def _figures(self) -> list[str]:
        """Return accuracy against eps of every setting as SVG; nothing without `figures`."""
        out = []
        for number, part in enumerate(iter_groups(rank_models(self.rows), COMPARABLE_KEYS) if self.figures else ()):
            for norm in dict.fromkeys(part["threat_norm"]):
                figure = figures.plot_accuracy_curve(part.reset_index(drop=True), norm)
                out.append(figures.to_svg(figure, f"notebook-{number}-{norm}"))
        return out


def show(results: pd.DataFrame | str | Path = "runs", *, figures: bool = False) -> Results:
    """Return rows, or a store, as an object that a notebook shows as leaderboards and matrices.

    Args:
        results: rows of `run`, `compare` or `evaluate`, or a store.
        figures: also show accuracy against eps.
    """
    rows = read_rows(Path(results)) if isinstance(results, (str, Path)) else results
    return Results(rows, figures=figures)
