"""The HTML report: one file that works offline. Neither torch nor matplotlib is imported for leaderboards alone."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from robobench.core.provenance import version
from robobench.report.leaderboard import (
    default_columns,
    format_leaderboard,
    rank_models,
    split_leaderboards,
    unranked_notes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
MAX_PAGE_MODELS = 1000  # from which on a page has leaderboards only: it would take minutes and hundreds of megabytes


@dataclass
class Table:
    """A table of text."""

    caption: str
    head: list[str]
    lines: list[list[str]]
    best: list[bool] = field(default_factory=list)  # marked lines
    notes: list[str] = field(default_factory=list)
    left: tuple[str, ...] = ("defense", "model", "flags")  # left-aligned headings

    def body(self) -> Markup:
        """Return the lines as HTML, every value escaped. A template takes eight times as long."""
        cells = []
        for number, name in enumerate(self.head):
            left = ' class="left"' if name in self.left else ""
            is_heading = number == 0 or name == "defense"
            cells.append((f'<th scope="row"{left}>', "</th>") if is_heading else (f"<td{left}>", "</td>"))
        starts = ['<tr class="best">' if best else "<tr>" for best in self.best or [False] * len(self.lines)]
        return Markup(
            "\n".join(
                f"{start}{''.join(f'{a}{escape(value)}{b}' for (a, b), value in zip(cells, line, strict=True))}</tr>"
                for start, line in zip(starts, self.lines, strict=True)
            )
        )


@dataclass
class PageFigure:
    """A figure with its caption."""

    name: str
    figure: Figure
    caption: str

    def svg(self) -> Markup:
        """Return the figure as inline SVG. matplotlib has escaped its texts."""
        from robobench.report.figures import to_svg

        return Markup(to_svg(self.figure, self.name))


@dataclass
class ModelDetails:
    """Where the rows of a model come from, and how to reproduce them."""

    name: str
    values: dict[str, str]
    attacks: list[str]
    command: str
    flags: list[tuple[str, str]]  # flag and its evidence
    stages: Table | None


@dataclass
class Section:
    """The results on one data set and number of test images."""

    title: str
    outcomes: list[str]  # sentences
    leaderboards: list[Table]
    matrices: list[Table]
    figures: list[PageFigure]
    models: list[ModelDetails]
    notes: list[str]


def leaderboard_sections(rows: pd.DataFrame) -> list[Section]:
    """Return the sections of a page with many models. No record is read for it, and all lines are formatted at once."""
    lines = rank_models(rows)
    shown = format_leaderboard(lines, default_columns(lines))
    head, texts = list(shown.columns), shown.to_numpy().tolist()
    tables: dict[str, list[Table]] = {}
    for title, part in split_leaderboards(lines):
        body = [texts[number] for number in part.index]
        table = Table(title, head, body, part["best"].tolist(), unranked_notes(part))
        first = part.iloc[0]
        tables.setdefault(f"{first['dataset']}, {first['examples']} test images", []).append(table)
    note = (
        f"The store has more than {MAX_PAGE_MODELS} models, so this page has the leaderboards only. Choose fewer for "
        "matrices, figures and commands, such as --filter defense=trades."
    )
    return [Section(title, [], found, [], [], [], [note]) for title, found in tables.items()]


def render_page(sections: list[Section], title: str) -> str:
    """Render the page. Every name in it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(
        title=title,
        sections=sections,
        version=version(),
        time=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        style=Markup((HERE / "page.css").read_text()),  # trusted: a file of this package
        script=Markup((HERE / "page.js").read_text()),
    )


def list_figures(sections: list[Section]) -> dict[str, Figure]:
    """Return every figure of the page by name."""
    return {figure.name: figure.figure for section in sections for figure in section.figures}
