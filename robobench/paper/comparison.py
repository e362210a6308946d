"""Run the experiments of a table and compare each published number with the measured ones."""

from __future__ import annotations

from typing import TypedDict

import pandas as pd

from robobench.core.console import Reporter
from robobench.core.numbers import parse_eps
from robobench.execution.run import execute_request
from robobench.paper import published
from robobench.paper.published import Record
from robobench.paper.requests import Group, Scale, attacks_of, group_of, table_requests
from robobench.planning.planner import make_plan
from robobench.planning.request import ExperimentConfig
from robobench.report.formatting import MISSING, format_interval, format_percent, format_text
from robobench.results.rows import make_frame, read_records
from robobench.results.statistics import wilson_interval

# Columns that identify a row of a store.
MODEL_COLUMNS = ["data_digest", "model", "defense", "seed", "config_digest", "weights_digest", "is_control"]
ATTACK_COLUMNS = ["attack", "threat_norm", "threat_eps", "protocol", "examples", "attack_budget", "search_precision"]
IDENTITY = [*MODEL_COLUMNS, *ATTACK_COLUMNS, "status", "reason"]
BASELINE_ROW = "undefended baseline (other seed)"


class Measured(TypedDict):
    """Accuracies as fractions with 95 % Wilson intervals; None where a number is missing."""

    accuracy: float | None  # clean, or transfer
    ci_low: float | None
    ci_high: float | None
    white_box_accuracy: float | None
    white_box_ci_low: float | None
    white_box_ci_high: float | None
    flags: str  # comma-separated
    reason: str  # why a number is missing


class ComparisonRow(Measured):
    """One published number and the measured ones."""

    id: str | None  # of the record in tables.json; None for the undefended baseline
    row: str
    column: str
    dataset: str
    model: str
    defense: str
    settings: str
    value: float | None  # the published number, percent
    difference_points: float | None  # measured minus published, percentage points


def run_table(
    table: str, scale: Scale, base: ExperimentConfig, reporter: Reporter
) -> tuple[list[ComparisonRow], pd.DataFrame]:
    """Run the experiments of a table; stored results are reused.

    Returns:
        One row per published number, then those of the undefended baselines; and the result rows they come from.
    """
    by_group = table_requests(table, scale, base)
    for request in next(iter(by_group.values())):  # a wrong request is refused before anything runs
        make_plan(request)
    executed = {
        group: pd.concat([make_frame(execute_request(request, reporter)) for request in requests])
        for group, requests in by_group.items()
    }
    # Some flags need the rows of both protocols, which are separate requests, so the whole store is read.
    store = make_frame(read_records(base.out))
    results = {group: store.merge(found[IDENTITY].drop_duplicates(), on=IDENTITY) for group, found in executed.items()}
    rows = [compare_record(r, group_of(r, scale), results, scale) for r in published.records(table)]
    for group, found in results.items():
        rows += baseline_rows(table, group, found, scale)
    return rows, pd.concat(results.values()).drop_duplicates(ignore_index=True)


def compare_record(record: Record, group: Group, results: dict[Group, pd.DataFrame], scale: Scale) -> ComparisonRow:
    """Compare one published number with the result rows of its group."""
    defense = published.mapping()["defenses"][record["defense"]]
    found = results[group]
    found = found[(found["defense"] == defense) & ~found["is_control"].astype(bool) & (found["seed"] == 0)]
    if record["attack"] == "none":
        ok = found[found["status"] == "ok"].head(1)
        flags = sorted({f for value in found["flags"].dropna() for f in str(value).split(",") if f})
        reason = "" if len(ok) else _reason(found)
        measured = _measured(ok, "clean_accuracy", ok.head(0), ",".join(flags), reason)
    else:
        eps = record["eps"] or published.mapping()["unstated"]["eps"]
        measured = _measured_under_attack(found, record["attack"], eps, scale)
    accuracy = measured["accuracy"]
    return {
        "id": record["id"],
        "row": published.row_name(record),
        "column": published.column_name(record),
        "dataset": scale.dataset(record["dataset"]),
        "model": scale.model(record["model_corrected"]),
        "defense": defense,
        "settings": " ".join(group.settings),
        "value": record["value"],
        **measured,
        "difference_points": None if accuracy is None else 100 * accuracy - record["value"],
    }


def _measured_under_attack(found: pd.DataFrame, attack: str, eps: str, scale: Scale) -> Measured:
    """Return a model's accuracy under one attack and radius of the paper, transfer and white-box."""
    rows = {protocol: _cell(found, attack, eps, protocol, scale) for protocol in ("transfer", "white-box")}
    ok = {protocol: cell[cell["status"] == "ok"] for protocol, cell in rows.items()}
    flags = next((str(f) for cell in ok.values() for f in cell["flags"].dropna() if f), "")
    reason = next((_reason(cell) for protocol, cell in rows.items() if not len(ok[protocol])), "")
    return _measured(ok["transfer"], "robust_accuracy", ok["white-box"], flags, reason)


def _cell(found: pd.DataFrame, attack: str, eps: str, protocol: str, scale: Scale) -> pd.DataFrame:
    """Return the one result row of an attack and radius of the paper under a protocol; empty if it is missing."""
    ours = published.mapping()["attacks"][attack]
    radius = parse_eps(scale.eps(eps), ours["norm"])
    match = (found["attack"] == ours[protocol]) & (found["protocol"] == protocol) & (found["threat_eps"] == radius)
    row: pd.DataFrame = found[match].head(1)
    return row


def _measured(rows: pd.DataFrame, column: str, white_box: pd.DataFrame, flags: str, reason: str) -> Measured:
    """Return the accuracies of at most one row each, with intervals."""
    accuracy, low, high = _interval(rows, column)
    white_box_accuracy, white_box_low, white_box_high = _interval(white_box, "robust_accuracy")
    return {
        "accuracy": accuracy,
        "ci_low": low,
        "ci_high": high,
        "white_box_accuracy": white_box_accuracy,
        "white_box_ci_low": white_box_low,
        "white_box_ci_high": white_box_high,
        "flags": flags,
        "reason": reason,
    }


def _interval(rows: pd.DataFrame, column: str) -> tuple[float, float, float] | tuple[None, None, None]:
    """Return an accuracy (a fraction) with its 95 % Wilson interval; None if there is no row."""
    if not len(rows):
        return None, None, None
    accuracy, examples = float(rows.iloc[0][column]), int(rows.iloc[0]["examples"])
    return accuracy, *wilson_interval(round(accuracy * examples), examples)


def _reason(rows: pd.DataFrame) -> str:
    return str(rows.iloc[0]["reason"]) if len(rows) else "not run"


def baseline_rows(table: str, group: Group, results: pd.DataFrame, scale: Scale) -> list[ComparisonRow]:
    """Return the rows of the undefended baseline of another seed: the accuracy that transfer alone leaves."""
    found = results[results["is_control"].astype(bool)]
    attacks = {(r["attack"], r["eps"]): r for r in published.records(table) if r["attack"] != "none"}
    return [
        {
            "id": None,
            "row": BASELINE_ROW,
            "column": published.column_name(record),
            "dataset": scale.dataset(group.dataset),
            "model": scale.model(group.model),
            "defense": str(found.iloc[0]["defense"]),
            "settings": f"seed {found.iloc[0]['seed']}",
            "value": None,
            **_measured_under_attack(found, attack, eps, scale),
            "difference_points": None,
            "reason": "",  # only transfer is run on it
        }
        for (attack, eps), record in (attacks.items() if len(found) else ())
    ]


def format_rows(rows: list[ComparisonRow]) -> pd.DataFrame:
    """Return the rows as text: percent, intervals in brackets."""

    def interval(accuracy: float | None, low: float | None, high: float | None) -> str:
        return MISSING if accuracy is None else f"{format_percent(accuracy)} {format_interval(low, high)}"

    def number(value: float | None, form: str) -> str:
        return MISSING if value is None else format(value, form)

    return pd.DataFrame(
        {
            "": [r["row"] for r in rows],
            "attack": [r["column"] for r in rows],
            "paper": [number(r["value"], ".2f") for r in rows],
            "ours [95 % CI]": [interval(r["accuracy"], r["ci_low"], r["ci_high"]) for r in rows],
            "difference": [number(r["difference_points"], "+.1f") for r in rows],
            "white-box [95 % CI]": [
                interval(r["white_box_accuracy"], r["white_box_ci_low"], r["white_box_ci_high"]) for r in rows
            ],
            "flags": [format_text(r["flags"]) for r in rows],
        }
    )


def notes(table: str, scale: Scale, rows: list[ComparisonRow]) -> list[str]:
    """Return the notes below a table: substitutes, reductions, the meaning of the columns, and missing numbers."""
    places = dict.fromkeys((r["dataset"], r["model_corrected"]) for r in published.records(table))
    missing = dict.fromkeys(f"missing: {r['row']}, {r['column']}: {r['reason']}" for r in rows if r["reason"])
    return [
        *scale.notes(places, [table, *attacks_of(table)]),
        "percent; ours: clean accuracy, or transfer accuracy as in the paper (attacks of its library, made on the "
        "undefended model); white-box: reference attacks made on the model itself",
        *missing,
    ]
