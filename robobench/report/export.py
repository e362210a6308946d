"""Everything a store can show, as files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from robobench.core.paths import check_writable
from robobench.errors import RequestError
from robobench.report import figures as draw
from robobench.report.formatting import BOARD, groups
from robobench.report.html.page import html as page
from robobench.report.html.page import pictures_of, sections
from robobench.report.leaderboard_formats import leaderboard, markdown, markdown_escape
from robobench.report.matrix import PROTOCOLS, costs, matrix
from robobench.store.artifacts import write_atomic

SUFFIXES = {"csv": "csv", "md": "md", "json": "json", "latex": "tex", "robustbench": "robustbench.json"}


def write(
    rows: pd.DataFrame,
    place: Path,
    *,
    html: Path | None = None,
    figures: Path | None = None,
    out_dir: Path | None = None,
    data_dir: Path | None = None,
) -> list[Path]:
    """Write the page, and where asked the figures and tables; return the files, the page first.

    Raises:
        RequestError: there is no row to show, or a place cannot be written.
    """
    if rows.empty:
        raise RequestError(f"the rows in '{place}' are none; run 'robobench compare' first")
    target = html or (out_dir or place) / "report.html"
    figures = figures or (out_dir / "figures" if out_dir else None)
    for folder, flag in ((target.parent, "--html"), (figures, "--figures"), (out_dir, "--out-dir")):
        if folder is not None:
            check_writable(folder, flag)
    parts = sections(rows, place, data_dir)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, page(parts, f"robobench: {place.resolve().name}"))
    written = [target]
    if figures:
        written += draw.save(pictures_of(parts), figures)
    if out_dir:
        written += tables(rows, out_dir / "tables")
    return written


def tables(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the leaderboard in every format of SUFFIXES, and each board's matrices as CSV and Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {f"leaderboard.{suffix}": leaderboard(rows, form) for form, suffix in SUFFIXES.items()}
    for number, part in enumerate(groups(rows, BOARD), 1):
        made = {protocol: matrix(part, protocol) for protocol in PROTOCOLS if (part["protocol"] == protocol).any()}
        for name, table in {**made, "costs": costs(part)}.items():
            flat = table.reset_index()
            texts[f"matrix-{number}-{name}.csv"] = flat.to_csv(index=False)
            texts[f"matrix-{number}-{name}.md"] = markdown(flat.map(markdown_escape)) + "\n"
    for name, text in texts.items():
        write_atomic(folder / name, text)
    return [folder / name for name in texts]
