"""All tables in one: one line per model, robust accuracy averaged over the attacked columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from robobench.errors import RequestError
from robobench.paper import published
from robobench.paper.formatting import write
from robobench.paper.requests import TIMED
from robobench.paper.times import TOTAL, TRAIN
from robobench.report.formatting import MISSING, format_percent, format_seconds

Row = Mapping[str, Any]  # a ComparisonRow or a TimeRow
CLEAN = "clean"
NOTES = [
    "percent; paper robust, transfer and white-box: means over a table's attacked columns; transfer: the paper's "
    "protocol and attack library; white-box: reference attacks made on the model itself",
    "a slash separates the paper's numbers where one model of ours corresponds to several of them",
    "train time: the method's own stages; incl. teachers: with every model it requires",
]


def one_table(rows: Sequence[Row], form: str) -> str:
    """Return the summary of all tables in a format of `formatting.FORMATS`."""
    return write(summarize(rows), "the MACD paper's tables, one line per model", NOTES, form, rows)


def read(file: Path) -> list[Row]:
    """Read the output of `paper run all --format json`.

    Raises:
        RequestError: the file does not exist or holds something else.
    """
    try:
        rows = json.loads(file.read_text())
    except (OSError, ValueError) as err:
        raise RequestError(f"cannot read '{file}': {err}") from err
    if not isinstance(rows, list) or not all(isinstance(r, dict) and {"id", "method"} & r.keys() for r in rows):
        raise RequestError(f"'{file}' is not the output of 'robobench paper run all --format json'")
    return rows


def summarize(rows: Sequence[Row]) -> pd.DataFrame:
    """Return one line of text per model, from the rows of several tables and the run times.

    Published numbers that correspond to the same model (for example because of substitutes) share a line.
    """
    records = {r["id"]: r for table in published.NUMBERED for r in published.records(table)}
    models: dict[tuple[Any, ...], dict[tuple[str, str], list[Row]]] = {}
    for (table, name, _), cells in _group_by_line(rows, records).items():
        key = tuple(cells[0][k] for k in ("dataset", "model", "defense", "settings"))
        models.setdefault((*key, frozenset(cell["column"] for cell in cells)), {})[table, name] = cells
    out = []
    for lines in models.values():
        same_model = list(lines.values())
        first = same_model[0]
        attacked = [cell for cell in first if cell["column"] != CLEAN]
        places = [(r["dataset"], r["model_corrected"]) for line in same_model if (r := records.get(line[0]["id"]))]
        method = first[0]["row"] if TIMED in places else ""
        out.append(
            {
                "table": ", ".join(dict.fromkeys(table for table, _ in lines)),
                "row": " / ".join(dict.fromkeys(name for _, name in lines)),
                "model": first[0]["model"],
                "settings": first[0]["settings"] or MISSING,
                "paper clean": _paper_means([c for c in line if c["column"] == CLEAN] for line in same_model),
                "clean": _mean(cell["accuracy"] for cell in first if cell["column"] == CLEAN),
                "paper robust": _paper_means([c for c in line if c["column"] != CLEAN] for line in same_model),
                "transfer": _mean(cell["accuracy"] for cell in attacked),
                "white-box": _mean(cell["white_box_accuracy"] for cell in attacked),
                "train time (s)": _seconds(rows, method, TRAIN),
                "incl. teachers (s)": _seconds(rows, method, TOTAL),
                "flags": ", ".join(sorted({f for c in first for f in (c["flags"] or "").split(",") if f})) or MISSING,
            }
        )
    return pd.DataFrame(out)


def _group_by_line(rows: Sequence[Row], records: Mapping[str, Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Return the cells of each line of the tables, by (table, row name, model)."""
    lines: dict[tuple[str, str, str], list[Row]] = {}
    table = ""
    for cell in (row for row in rows if "column" in row):
        table = records[cell["id"]]["table"][1:] if cell["id"] else table  # undefended baselines follow their table
        lines.setdefault((table, cell["row"], cell["model"]), []).append(cell)
    return lines


def _paper_means(lines: Iterable[list[Row]]) -> str:
    """Return the means of the published numbers (percent), each once."""
    means = [f"{fmean(cell['value'] for cell in line):.1f}" for line in lines if line and line[0]["id"]]
    return " / ".join(dict.fromkeys(means)) or MISSING


def _mean(values: Iterable[float | None]) -> str:
    """Return the mean of some accuracies (fractions); a dash if one is missing, since the rest would be biased."""
    found = list(values)
    return MISSING if not found or None in found else format_percent(fmean(v for v in found if v is not None))


def _seconds(rows: Sequence[Row], method: str, stage: str) -> str:
    found = (row["seconds"] for row in rows if (row.get("method"), row.get("stage")) == (method, stage))
    return format_seconds(next(found, None))
