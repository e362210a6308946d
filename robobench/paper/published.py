"""The published tables: every printed number as a record, the tables' layout, and corrections.

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

Record = dict[str, Any]  # one published number; tables.json describes the fields
NUMBERED = tuple(str(n) for n in range(1, 10))
TABLES = (*NUMBERED, "times")
FIGURES = {
    "2": "masked and reconstructed test images, as in figure 2",
    "eps": "accuracy against the radius of PGD for every defense of table 2, both protocols",
    "6": "table 6 as a heat map, published and measured",
}
METHOD, BASELINE = "MACD", "Baseline"
FULL_SCALE = "paper"  # the scale of runs.json that reduces nothing
AVERAGED = ("AT", "TRADES", "IAD", "RoCL")  # section 4.4 compares MACD with the mean of these, as recomputed
OTHERS = (*AVERAGED, "MTARD", "AdaAD")


@cache
def _read(name: str) -> dict[str, Any]:
    folder = resources.files("robobench.leaderboards") / "published" / "macd-paper"
    return json.loads((folder / name).read_text())  # type: ignore[no-any-return]


def paper_data() -> dict[str, Any]:
    """Return `tables.json`: what the paper prints."""
    return _read("tables.json")


def mapping() -> dict[str, Any]:
    """Return `runs.json`: the defense, attack and settings of robobench for each published number."""
    return _read("runs.json")


def check_table(table: str) -> str:
    """Return `table`; raises RequestError if the paper has no such table."""
    if table not in TABLES:
        raise unknown_name("table", table, TABLES)
    return table


def records(table: str) -> list[Record]:
    """Return the numbers of a table in the paper's order. Run times become records of the same form."""
    if check_table(table) != "times":
        return [r for r in paper_data()["records"] if r["table"] == f"T{table}"]
    out = []
    for entry in paper_data()["run_times"]["entries"]:
        name = entry["method"] if "stage" not in entry else f"{entry['method']}, {entry['stage']}"
        metrics = (("passes", "epochs"), ("minutes_per_pass", "minutes per epoch"), ("total_printed", "total minutes"))
        out += [
            {"id": f"times-{entry['method']}-{field}", "table": "times", "row": name, "metric": metric, "value": value}
            for field, metric in metrics
            if (value := entry.get(field)) is not None
        ]
    return out


def title(table: str) -> str:
    """Return the title of a table, with the correct model where the caption names another one."""
    if check_table(table) == "times":
        return "section 4.4: run times"
    text = f"table {table}: {paper_data()['tables'][f'T{table}']}"
    wrong = {(r["model"], r["model_corrected"]) for r in records(table) if r["model"] != r["model_corrected"]}
    return text + "".join(f"; belongs to {right} (tables 1 and 2 are exchanged)" for _, right in wrong)


def row_name(record: Record) -> str:
    """Return the name of a number's row."""
    match record["table"]:
        case "T5":
            return f"MAE mask ratio {record['mae_mask_ratio']}"
        case "T6":
            return f"student patch {record['student_patch']}, mask ratio {record['student_mask_ratio']}"
        case "T7":
            which = "with" if record["adversarial_examples_in_training"] else "without"
            return f"{record['model']}, {which} adversarial examples"
        case "T8" | "T9":
            return f"{record['dataset']}, {record['model']}"
        case "times":
            return str(record["row"])
        case _:
            return str(record["defense"])


def column_name(record: Record) -> str:
    """Return the name of a number's column."""
    if record["table"] == "times":
        return str(record["metric"])
    if record["attack"] == "none":
        return "clean"
    return f"{record['attack']} {record['eps']}" if record["eps"] else f"{record['attack']} (radius not stated)"


def format_value(record: Record) -> str:
    """Return a number as printed, in percent, with * for bold and ? for bold without being the best of its column."""
    if record["table"] == "times":
        return f"{record['value']:g}"
    mark = "" if not record["bold"] else "?" if record["id"] in wrongly_bold(record["table"][1:]) else "*"
    return f"{record['value']:.2f}{mark}"


@cache
def wrongly_bold(table: str) -> tuple[str, ...]:
    """Return the ids of numbers printed in bold although another defense is better in the same column."""
    best: dict[str, float] = {}
    for r in records(table):
        if r["defense"] != BASELINE:
            best[column_name(r)] = max(best.get(column_name(r), 0.0), r["value"])
    return tuple(r["id"] for r in records(table) if r["bold"] and r["value"] < best[column_name(r)])


def layout(table: str) -> tuple[list[str], dict[str, list[str]]]:
    """Return the columns of a table, and the text of each row's cells; "-" where the paper prints nothing."""
    all_records = records(table)
    columns = list(dict.fromkeys(column_name(r) for r in all_records))
    rows: dict[str, dict[str, str]] = {}
    for r in all_records:
        rows.setdefault(row_name(r), {})[column_name(r)] = format_value(r)
    return columns, {row: [cells.get(c, "-") for c in columns] for row, cells in rows.items()}


def improvement(table: str, others: Iterable[str]) -> float:
    """Recompute MACD's mean over the attacked columns minus the mean of the `others` over these columns, in points."""
    values: dict[str, list[float]] = {}
    for r in records(table):
        if r["attack"] != "none":
            values.setdefault(r["defense"], []).append(r["value"])
    mean = {name: sum(numbers) / len(numbers) for name, numbers in values.items()}
    compared = [mean[name] for name in others]
    return mean[METHOD] - sum(compared) / len(compared)


def eps_monotonicity_violations(table: str) -> list[str]:
    """Return the cells with higher accuracy at 16/255 than at 8/255, which no correct white-box evaluation gives."""
    values = {(row_name(r), r["attack"], r["eps"]): r["value"] for r in records(table) if r.get("eps")}
    return [
        f"{row} {attack} {values[row, attack, '8/255']:.2f} -> {value:.2f}"
        for (row, attack, eps), value in values.items()
        if eps == "16/255" and value > values[row, attack, "8/255"]
    ]


def notes(table: str) -> list[str]:
    """Return the notes below a table: marks, corrections, and contradictions in its numbers."""
    if check_table(table) == "times":
        return [
            "MACD's 2.72 minutes do not include its autoencoder (566 minutes), standard model and static attack",
            "IAD's time does not include its teacher; RoCL's 150 epochs are those of its linear head; MTARD and AdaAD "
            "are not timed",
        ]
    rows, out = records(table), ["percent; * bold in the paper"]
    if table in ("1", "2"):
        out.append(
            f"the caption says {rows[0]['model']}, but the numbers belong to {rows[0]['model_corrected']}: "
            "tables 1 and 2 are exchanged"
        )
    for r in rows:
        if r["id"] in wrongly_bold(table):
            best = max(x["value"] for x in rows if column_name(x) == column_name(r))
            out.append(f"? {row_name(r)} {r['value']:.2f} is also bold; the best {column_name(r)} value is {best:.2f}")
    if table in ("1", "2", "3", "4"):
        place = f"{rows[0]['dataset']}/{rows[0]['model_corrected']}"
        claims = paper_data()["average_improvement_claims"]
        six, four = improvement(table, OTHERS), improvement(table, AVERAGED)
        out.append(
            f"MACD minus the mean of the others over the attacked columns, recomputed: {six:.2f} points for all six, "
            f"{four:.2f} for {', '.join(AVERAGED)}; the paper states {claims['section_4_4'][place]:.2f} in section 4.4 "
            f"and {claims['introduction'][place]:.2f} in its introduction"
        )
        out.append(
            "AutoAttack uses L2; an L2 radius of 8/255 is 388 times smaller than a full Linf step of 8/255 at 224 px"
        )
    if table == "5":
        out.append("the paper prints fractions; it states patch size 8 for this table only, 16 elsewhere")
    if table == "6":
        out.append(
            "the paper does not state PGD's radius; robobench uses 8/255 (71.47 here is close to table 2's 71.38)"
        )
    violations = eps_monotonicity_violations(table)
    if violations:
        out.append(
            "higher accuracy at 16/255 than at 8/255, which no correct white-box evaluation gives: "
            + "; ".join(violations)
        )
    return out
