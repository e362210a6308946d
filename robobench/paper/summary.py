"""All tables in one: a line a network of ours, its attacked columns averaged."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from robobench.errors import RequestError
from robobench.paper import published
from robobench.paper.formatting import write
from robobench.paper.requests import TIMED
from robobench.report.formatting import MISSING, percent, seconds

Line = dict[str, Any]  # a published number with ours beside it, or what a stage cost
CLEAN = "clean"
NOTES = [
    "percent; attacked: the mean over a table's attacked columns; transfer: the paper's protocol with its tool; "
    "white-box: reference attacks made on the network itself",
    "a slash parts the paper's figures where one network of ours answers for several of them",
    "own s: seconds of a method's own stages; whole s: with every network it required",
]


def one_table(lines: list[Line], form: str) -> str:
    """Write all tables as one, in a text format."""
    return write(summary(lines), "the MACD paper's tables, a line a network", NOTES, form, lines)


def read(file: Path) -> list[Line]:
    """Read what `paper run TABLE --format json` printed.

    Raises:
        RequestError: no such file, or it holds something else.
    """
    try:
        lines = json.loads(file.read_text())
    except (OSError, ValueError) as err:
        raise RequestError(f"cannot read '{file}': {err}") from err
    if not isinstance(lines, list) or not all(isinstance(e, dict) and {"id", "method"} & e.keys() for e in lines):
        raise RequestError(f"'{file}' is not what 'paper run all --format json' prints")
    return lines


def summary(lines: list[Line]) -> pd.DataFrame:
    """Lay the lines of several tables and the run times out as one table of text.

    Where one network answers for several of the paper's (a stand-in, say), their figures share its line.
    """
    records = {r["id"]: r for table in published.NUMBERED for r in published.records(table)}
    rows: dict[tuple[str, str, str], list[Line]] = {}
    table = ""
    for entry in (entry for entry in lines if "column" in entry):
        table = records[entry["id"]]["table"][1:] if entry["id"] else table  # a control stands below its table
        rows.setdefault((table, entry["row"], entry["model"]), []).append(entry)
    networks: dict[tuple[Any, ...], dict[tuple[str, str], list[Line]]] = {}
    for (table, name, _), row in rows.items():
        ours = tuple(row[0][k] for k in ("dataset", "model", "defense", "settings"))
        networks.setdefault((*ours, frozenset(entry["column"] for entry in row)), {})[table, name] = row
    out = []
    for parts in networks.values():
        alike = list(parts.values())
        first = alike[0]
        of = [records[row[0]["id"]] for row in alike if row[0]["id"]]
        timed = any((record["dataset"], record["model_corrected"]) == TIMED for record in of)
        out.append(
            {
                "table": ", ".join(dict.fromkeys(table for table, _ in parts)),
                "row": " / ".join(dict.fromkeys(name for _, name in parts)),
                "network": first[0]["model"],
                "settings": first[0]["settings"] or MISSING,
                "clean, paper": _theirs([entry for entry in row if entry["column"] == CLEAN] for row in alike),
                "clean": _mean(entry["accuracy"] for entry in first if entry["column"] == CLEAN),
                "attacked, paper": _theirs([entry for entry in row if entry["column"] != CLEAN] for row in alike),
                "transfer": _mean(entry["accuracy"] for entry in first if entry["column"] != CLEAN),
                "white-box": _mean(entry["white_box_accuracy"] for entry in first if entry["column"] != CLEAN),
                "own s": _cost(lines, first[0]["row"] if timed else "", "own"),
                "whole s": _cost(lines, first[0]["row"] if timed else "", "whole"),
                "flags": ", ".join(sorted({f for e in first for f in (e["flags"] or "").split(",") if f})) or MISSING,
            }
        )
    return pd.DataFrame(out)


def _theirs(rows: Iterable[list[Line]]) -> str:
    """Write the paper's means (in percent), each once."""
    means = [f"{fmean(entry['value'] for entry in row):.1f}" for row in rows if row and row[0]["id"]]
    return " / ".join(dict.fromkeys(means)) or MISSING


def _mean(values: Iterable[float | None]) -> str:
    """Write the mean of some accuracies (fractions); a dash where one is missing: a mean of the rest would flatter."""
    found = list(values)
    return MISSING if not found or None in found else percent(fmean(v for v in found if v is not None))


def _cost(lines: list[Line], method: str, what: str) -> str:
    return seconds(next((e["seconds"] for e in lines if (e.get("method"), e.get("stage")) == (method, what)), None))
