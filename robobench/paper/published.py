"""The published tables: every printed number as a record, laid out as on paper, with what contradicts it.

Source: "An Adversarial Contrastive Distillation Algorithm Based on Masked Auto-Encoder", Chinese Journal of
        Computers, 2024, DOI 10.11897/SP.J.1016.2024.02274, tables 1 to 9 and section 4.4.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

from robobench.core.registry import unknown_name

Record = dict[str, Any]  # one published number; the fields are described in tables.json
NUMBERED = tuple(str(n) for n in range(1, 10))
TABLES = (*NUMBERED, "times")
FIGURES = {
    "2": "masked and reconstructed images, as in figure 2",
    "eps": "accuracy against the radius of PGD for every defense of table 2, both protocols",
    "6": "table 6 as a heat map: published and ours",
}
METHOD, BASELINE = "MACD", "Baseline"
OWN_SCALE = "paper"  # the one of runs.json that reduces nothing
IN_AVERAGE = ("AT", "TRADES", "IAD", "RoCL")  # whom section 4.4's averages compare with, as recomputed
OTHERS = (*IN_AVERAGE, "MTARD", "AdaAD")


@cache
def _read(name: str) -> dict[str, Any]:
    folder = resources.files("robobench.leaderboards") / "published" / "macd-paper"
    return json.loads((folder / name).read_text())  # type: ignore[no-any-return]


def published() -> dict[str, Any]:
    """Return `tables.json`: what the paper prints."""
    return _read("tables.json")


def answers() -> dict[str, Any]:
    """Return `runs.json`: with what robobench answers."""
    return _read("runs.json")


def check(table: str) -> str:
    """Return the table's name; raises RequestError for one the paper has not."""
    if table not in TABLES:
        raise unknown_name("table", table, TABLES)
    return table


def records(table: str) -> list[Record]:
    """Return a table's numbers in the paper's order; the run times as records of the same kind."""
    if check(table) != "times":
        return [r for r in published()["records"] if r["table"] == f"T{table}"]
    out = []
    for entry in published()["run_times"]["entries"]:
        name = entry["method"] if "stage" not in entry else f"{entry['method']}, {entry['stage']}"
        figures = (("passes", "passes"), ("minutes_per_pass", "minutes a pass"), ("total_printed", "minutes in all"))
        out += [
            {"id": f"times-{entry['method']}-{field}", "table": "times", "row": name, "metric": metric, "value": value}
            for field, metric in figures
            if (value := entry.get(field)) is not None
        ]
    return out


def title(table: str) -> str:
    """Name a table, with the network it belongs to where the caption names another."""
    if check(table) == "times":
        return "section 4.4: run times"
    text = f"table {table}: {published()['tables'][f'T{table}']}"
    wrong = {(r["model"], r["model_corrected"]) for r in records(table) if r["model"] != r["model_corrected"]}
    return text + "".join(f"; belongs to {right} (tables 1 and 2 are exchanged)" for _, right in wrong)


def row_name(record: Record) -> str:
    """Name the line a number stands in."""
    match record["table"]:
        case "T5":
            return f"MAE mask ratio {record['mae_mask_ratio']}"
        case "T6":
            return f"student patch {record['student_patch']}, mask ratio {record['student_mask_ratio']}"
        case "T7":
            attacked = "with" if record["adversarial_examples_in_training"] else "without"
            return f"{record['model']}, {attacked} attacked images"
        case "T8" | "T9":
            return f"{record['dataset']}, {record['model']}"
        case "times":
            return str(record["row"])
        case _:
            return str(record["defence"])


def column_name(record: Record) -> str:
    """Name the column a number stands in."""
    if record["table"] == "times":
        return str(record["metric"])
    if record["attack"] == "none":
        return "clean"
    return f"{record['attack']} {record['eps']}" if record["eps"] else f"{record['attack']} (radius not stated)"


def value_text(record: Record) -> str:
    """Write a number as printed, in percent: * bold in the paper, ? bold without being its column's best."""
    if record["table"] == "times":
        return f"{record['value']:g}"
    mark = "" if not record["bold"] else "?" if record["id"] in wrongly_bold(record["table"][1:]) else "*"
    return f"{record['value']:.2f}{mark}"


@cache
def wrongly_bold(table: str) -> tuple[str, ...]:
    """Return the ids of numbers printed in bold although another defense has more in the same column."""
    best: dict[str, float] = {}
    for r in records(table):
        if r["defence"] != BASELINE:
            best[column_name(r)] = max(best.get(column_name(r), 0.0), r["value"])
    return tuple(r["id"] for r in records(table) if r["bold"] and r["value"] < best[column_name(r)])


def layout(table: str) -> tuple[list[str], dict[str, list[str]]]:
    """Lay a table out as text: the columns, and for each line its cells; "-" where the paper prints nothing."""
    all_records = records(table)
    columns = list(dict.fromkeys(column_name(r) for r in all_records))
    lines: dict[str, dict[str, str]] = {}
    for r in all_records:
        lines.setdefault(row_name(r), {})[column_name(r)] = value_text(r)
    return columns, {row: [cells.get(c, "-") for c in columns] for row, cells in lines.items()}


def improvement(table: str, others: Iterable[str]) -> float:
    """Recompute MACD's mean over the attacked columns, less the same mean of each of the others, averaged."""
    means: dict[str, list[float]] = {}
    for r in records(table):
        if r["attack"] != "none":
            means.setdefault(r["defence"], []).append(r["value"])
    mean = {name: sum(values) / len(values) for name, values in means.items()}
    compared = [mean[name] for name in others]
    return mean[METHOD] - sum(compared) / len(compared)


def rising(table: str) -> list[str]:
    """List the cells that are higher at 16/255 than at 8/255, which no white-box attack allows."""
    values = {(row_name(r), r["attack"], r["eps"]): r["value"] for r in records(table) if r.get("eps")}
    return [
        f"{row} {attack} {values[row, attack, '8/255']:.2f} -> {value:.2f}"
        for (row, attack, eps), value in values.items()
        if eps == "16/255" and value > values[row, attack, "8/255"]
    ]


def notes(table: str) -> list[str]:
    """Say what a reader of a table has to know: corrections, marks, and what its numbers cannot be."""
    if check(table) == "times":
        return [
            "MACD's 2.72 minutes leave out its autoencoder (566 in all), the standard model and the static attack",
            "IAD's leave out its teacher; RoCL's 150 passes are its linear head's; MTARD and AdaAD are not timed",
        ]
    rows, out = records(table), ["percent; * bold in the paper"]
    if table in ("1", "2"):
        out.append(
            f"the caption says {rows[0]['model']}, the numbers are {rows[0]['model_corrected']}'s: "
            "tables 1 and 2 are exchanged"
        )
    for r in rows:
        if r["id"] in wrongly_bold(table):
            best = max(x["value"] for x in rows if column_name(x) == column_name(r))
            out.append(f"? {row_name(r)} {r['value']:.2f} is bold too, and the best of {column_name(r)} is {best:.2f}")
    if table in ("1", "2", "3", "4"):
        place = f"{rows[0]['dataset']}/{rows[0]['model_corrected']}"
        claims = published()["average_improvement_claims"]
        six, four = improvement(table, OTHERS), improvement(table, IN_AVERAGE)
        out.append(
            f"MACD over the mean of the others, attacked columns, recomputed: {six:.2f} points over all six, "
            f"{four:.2f} over {', '.join(IN_AVERAGE)}; the paper says {claims['section_4_4'][place]:.2f} in 4.4 and "
            f"{claims['introduction'][place]:.2f} in its introduction"
        )
        out.append("AutoAttack is on L2, where 8/255 is 388 times less than a full Linf step of 8/255 at 224 px")
    if table == "5":
        out.append("the paper prints fractions; patch 8 is stated for this table alone, 16 elsewhere")
    if table == "6":
        out.append("the strength of PGD is not stated; robobench takes 8/255 (71.47 stands beside 71.38 in table 2)")
    higher = rising(table)
    if higher:
        out.append(f"higher at 16/255 than at 8/255, which no white-box attack allows: {'; '.join(higher)}")
    return out
