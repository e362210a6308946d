"""Runs what a table needs and puts ours beside theirs, number by number."""

from __future__ import annotations

from typing import Any

import pandas as pd

from robobench.core.console import Reporter
from robobench.core.threat import parse_eps
from robobench.execution.run import execute_request
from robobench.paper import published
from robobench.paper.published import Record
from robobench.paper.requests import Group, Scale, attacks_of, group_of, requests
from robobench.planning.planner import make_plan
from robobench.planning.request import ExperimentConfig
from robobench.report.formatting import MISSING, percent, text
from robobench.results.rows import make_frame, read_records
from robobench.results.statistics import wilson

# What tells two rows of a store apart; the flags of a row may need the other protocol's, run by another request.
IDENTITY = [
    *("data_digest", "model", "defense", "seed", "config_digest", "weights_digest", "is_control"),
    *(
        "attack",
        "threat_norm",
        "threat_eps",
        "protocol",
        "examples",
        "attack_budget",
        "search_precision",
        "status",
        "reason",
    ),
]

Line = dict[str, Any]  # one published number with ours beside it


def run(table: str, scale: Scale, base: ExperimentConfig, reporter: Reporter) -> tuple[list[Line], pd.DataFrame]:
    """Run everything a table needs, taking from the store what is there.

    Returns:
        A line a published number, then the controls' lines; and the rows of the store behind them.
    """
    made = requests(table, scale, base)
    for request in next(iter(made.values())):  # bad input is refused before anything runs
        make_plan(request)
    executed = {
        group: pd.concat([make_frame(execute_request(r, reporter)) for r in asked]) for group, asked in made.items()
    }
    store = make_frame(read_records(base.out))
    rows = {group: store.merge(found[IDENTITY].drop_duplicates(), on=IDENTITY) for group, found in executed.items()}
    lines = [line(record, group_of(record, scale), rows, scale) for record in published.records(table)]
    for group, mine in rows.items():
        lines += controls(table, group, mine, scale)
    return lines, pd.concat(rows.values()).drop_duplicates(ignore_index=True)


def line(record: Record, group: Group, rows: dict[Group, pd.DataFrame], scale: Scale) -> Line:
    """Answer one published number; a figure that could not be had is None and says why."""
    defense = published.answers()["defenses"][record["defence"]]
    found = rows[group]
    found = found[(found["defense"] == defense) & ~found["is_control"].astype(bool) & (found["seed"] == 0)]
    out: Line = {
        "id": record["id"],
        "row": published.row_name(record),
        "column": published.column_name(record),
        "dataset": scale.dataset(record["dataset"]),
        "model": scale.model(record["model_corrected"]),
        "defense": defense,
        "settings": " ".join(group.settings),
        "value": record["value"],
    }
    if record["attack"] == "none":
        clean = found[found["status"] == "ok"].head(1)
        flags = sorted({f for value in found["flags"].dropna() for f in str(value).split(",") if f})
        figures = {
            **_figures("", clean, "clean_accuracy"),
            **_figures("white_box_", clean.head(0), ""),
            "flags": ",".join(flags),
            "reason": "" if len(clean) else _reason(found),
        }
    else:
        figures = _attacked(found, record["attack"], record["eps"] or published.answers()["unstated"]["eps"], scale)
    ours = figures["accuracy"]
    return {**out, **figures, "difference_points": None if ours is None else 100 * ours - record["value"]}


def _attacked(found: pd.DataFrame, attack: str, eps: str, scale: Scale) -> Line:
    """Return both protocols' figures of one network under one of the paper's attacks at one of its radii."""
    sides = {protocol: _at(found, attack, eps, protocol, scale) for protocol in ("transfer", "white-box")}
    ok = {protocol: side[side["status"] == "ok"] for protocol, side in sides.items()}
    return {
        **_figures("", ok["transfer"], "robust_accuracy"),
        **_figures("white_box_", ok["white-box"], "robust_accuracy"),
        "flags": next((str(f) for side in ok.values() for f in side["flags"].dropna() if f), ""),
        "reason": next((_reason(side) for protocol, side in sides.items() if not len(ok[protocol])), ""),
    }


def _at(found: pd.DataFrame, attack: str, eps: str, protocol: str, scale: Scale) -> pd.DataFrame:
    """Return the row of one of the paper's attacks at one of its radii, under a protocol."""
    ours = published.answers()["attacks"][attack]
    radius = parse_eps(scale.eps(eps), ours["norm"])
    here = (found["attack"] == ours[protocol]) & (found["protocol"] == protocol) & (found["threat_eps"] == radius)
    row: pd.DataFrame = found[here].head(1)
    return row


def _figures(prefix: str, rows: pd.DataFrame, name: str) -> Line:
    """Return an accuracy (a fraction) with its 95 % Wilson interval, None where there is no row."""
    names = ("accuracy", "ci_low", "ci_high")
    if not len(rows):
        return dict.fromkeys((prefix + n for n in names), None)
    accuracy, examples = float(rows.iloc[0][name]), int(rows.iloc[0]["examples"])
    low, high = wilson(round(accuracy * examples), examples)
    return dict(zip((prefix + n for n in names), (accuracy, low, high), strict=True))


def _reason(rows: pd.DataFrame) -> str:
    return str(rows.iloc[0]["reason"]) if len(rows) else "not run"


def controls(table: str, group: Group, rows: pd.DataFrame, scale: Scale) -> list[Line]:
    """Return the lines of the undefended network of another seed: what transfer alone is worth."""
    found = rows[rows["is_control"].astype(bool)]
    attacks = {(r["attack"], r["eps"]): r for r in published.records(table) if r["attack"] != "none"}
    return [
        {
            "id": None,
            "row": "control: undefended, another seed",
            "column": published.column_name(record),
            "dataset": scale.dataset(group.dataset),
            "model": scale.model(group.model),
            "defense": str(found.iloc[0]["defense"]),
            "settings": f"seed {found.iloc[0]['seed']}",
            "value": None,
            **_attacked(found, attack, eps, scale),
            "difference_points": None,
            "reason": "",  # under transfer only
        }
        for (attack, eps), record in (attacks.items() if len(found) else ())
    ]


def as_text(lines: list[Line]) -> pd.DataFrame:
    """Round the lines for reading: percent, intervals in brackets."""

    def figure(entry: Line, prefix: str) -> str:
        if entry.get(f"{prefix}accuracy") is None:
            return MISSING
        low, high = percent(entry[f"{prefix}ci_low"]), percent(entry[f"{prefix}ci_high"])
        return f"{percent(entry[f'{prefix}accuracy'])} [{low}, {high}]"

    return pd.DataFrame(
        {
            "": [entry["row"] for entry in lines],
            "attack": [entry["column"] for entry in lines],
            "paper": [MISSING if entry["value"] is None else f"{entry['value']:.2f}" for entry in lines],
            "ours [95 %]": [figure(entry, "") for entry in lines],
            "difference": [
                MISSING if entry["difference_points"] is None else f"{entry['difference_points']:+.1f}"
                for entry in lines
            ],
            "white-box [95 %]": [figure(entry, "white_box_") for entry in lines],
            "flags": [text(entry["flags"]) for entry in lines],
        }
    )


def notes(table: str, scale: Scale, lines: list[Line]) -> list[str]:
    """Say what stands in for what, what is reduced, how to read the columns, and why a figure is missing."""
    places = dict.fromkeys((r["dataset"], r["model_corrected"]) for r in published.records(table))
    reasons = dict.fromkeys(f"no figure for {e['row']}, {e['column']}: {e['reason']}" for e in lines if e["reason"])
    return [
        *scale.notes(places, [table, *attacks_of(table)]),
        "percent; ours: clean, or the paper's protocol (its tool's attacks, made on the undefended network); "
        "white-box: reference attacks made on the network itself",
        *reasons,
    ]
