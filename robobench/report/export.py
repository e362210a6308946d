"""Write the report of a store: the HTML page, the figures and the tables."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from robobench.core.paths import check_writable
from robobench.errors import RequestError
from robobench.report.formatting import COMPARABLE_KEYS, iter_groups
from robobench.report.html.document import MAX_PAGE_MODELS, leaderboard_sections, list_figures, render_page
from robobench.report.leaderboard_formats import leaderboard, markdown, markdown_escape
from robobench.report.matrix import PROTOCOLS, cost_table, matrix
from robobench.store.artifacts import write_atomic

SUFFIXES = {"csv": "csv", "md": "md", "json": "json", "latex": "tex", "robustbench": "robustbench.json"}


def write_report(
    rows: pd.DataFrame,
    place: Path,
    *,
    html: Path | None = None,
    figures: Path | None = None,
    export: Path | None = None,
    data_dir: Path | None = None,
    keys: Collection[str] | None = None,
) -> list[Path]:
    """Write the report of the rows of a store.

    Args:
        place: the store, or a folder of leaderboards/.
        html: file of the page; default report.html in `export`, else in `place`.
        figures: folder for the figures as PNG and SVG.
        export: folder for the page, figures/ and tables/.
        data_dir: folder of data sets, for figures of images.
        keys: of the records to read; default: all of the store.

    Returns:
        The written files, the page first.

    Raises:
        RequestError: there are no rows, or a path is not writable.
    """
    if rows.empty:
        raise RequestError(f"'{place}' contains no results; run 'robobench compare' first")
    page = html or (export or place) / "report.html"
    figures = figures or (export / "figures" if export else None)
    for folder, flag in ((page.parent, "--html"), (figures, "--figures"), (export, "--export")):
        if folder is not None:
            check_writable(folder, flag)
    if rows["weights_digest"].nunique() > MAX_PAGE_MODELS:
        sections = leaderboard_sections(rows)
    else:
        from robobench.report.html.page import make_sections

        sections = make_sections(rows, place, data_dir, keys)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(page, render_page(sections, f"robobench: {place.resolve().name}"))
    written = [page]
    if figures:
        from robobench.report.figures import save_figures

        written += save_figures(list_figures(sections), figures)
    if export:
        written += write_tables(rows, export / "tables")
    return written


def write_tables(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the leaderboard in every format of SUFFIXES, and all matrices as CSV and Markdown; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {f"leaderboard.{suffix}": leaderboard(rows, form) for form, suffix in SUFFIXES.items()}
    for number, part in enumerate(iter_groups(rows, COMPARABLE_KEYS), 1):
        tables = {protocol: matrix(part, protocol) for protocol in PROTOCOLS if (part["protocol"] == protocol).any()}
        for name, table in {**tables, "costs": cost_table(part)}.items():
            flat = table.reset_index()
            texts[f"matrix-{number}-{name}.csv"] = flat.to_csv(index=False)
            texts[f"matrix-{number}-{name}.md"] = markdown(flat.map(markdown_escape)) + "\n"
    for name, text in texts.items():
        write_atomic(folder / name, text)
    return [folder / name for name in texts]
