"""RobustBench's published results, and results of robobench in RobustBench's model_info format.

Source: Croce et al., "RobustBench: a standardized adversarial robustness benchmark", 2021, arXiv:2010.09670. As in
RobustBench's files, accuracies are percentages as text.
"""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robobench.core.registry import unknown_name
from robobench.data.info import DATASETS, dataset_info
from robobench.errors import RequestError

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from robobench.planning.plan import Plan

# Fields of a model_info file, with RobustBench's types. Values of an existing file are kept.
DESCRIPTION: dict[str, Any] = {
    "link": "",
    "name": "",
    "authors": "",
    "additional_data": False,
    "number_forward_passes": 1,
    "dataset": "",
    "venue": "",
    "architecture": "",
    "eps": "",
    "clean_acc": "",
    "reported": "",
    "autoattack_acc": "",
}

OPTIONAL = ("external", "unreliable", "footnote")  # fields of some entries; kept too


def load_entries() -> list[dict[str, str]]:
    """Read all published entries. A value that was not published is ''."""
    found = importlib.util.find_spec("robobench.leaderboards")
    assert found is not None and found.submodule_search_locations
    file = Path(next(iter(found.submodule_search_locations))) / "published" / "robustbench" / "entries.csv"
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def best_known(entry: dict[str, str]) -> float:
    """Return the lowest published robust accuracy of an entry, in percent."""
    return min(float(entry[k]) for k in ("autoattack_acc", "external", "corruptions_acc") if entry[k])


def published_leaderboards(name: str | None = None) -> dict[str, list[dict[str, str]]]:
    """Return the published leaderboards by name, such as 'cifar10-Linf', with the best entry first.

    As in RobustBench, an entry at a slightly different radius (0.031 instead of 8/255) is included.

    Args:
        name: return only this one.

    Raises:
        RequestError: an unknown name.
    """
    found: dict[str, list[dict[str, str]]] = {}
    for entry in load_entries():
        found.setdefault(f"{entry['dataset']}-{entry['threat_model']}", []).append(entry)
    if name is not None and name not in found:
        raise unknown_name("published leaderboard", name, found)
    return {key: sorted(e, key=lambda x: -best_known(x)) for key, e in found.items() if name in (None, key)}


def render_published(name: str, entries: list[dict[str, str]]) -> Table:
    """Render a published leaderboard for a terminal."""
    from rich import box
    from rich.table import Table

    out = Table(
        title=f"{name}: {len(entries)} entries published by RobustBench (2025-03-31), %; not measured by robobench",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    robust = "corrupted" if name.endswith("corruptions") else "AutoAttack"
    for column in ("rank", "id", "clean", robust, "best known", "eps", "architecture", "extra data", "venue"):
        out.add_column(column, justify="right" if column in ("rank", "clean", robust, "best known") else "left")
    for rank, e in enumerate(entries, 1):
        accuracies = (e["clean_acc"], e["autoattack_acc"] or e["corruptions_acc"], f"{best_known(e):.2f}")
        extra_data = "yes" if e["additional_data"] == "true" else "no"
        out.add_row(str(rank), e["id"], *accuracies, e["eps"] or "-", e["architecture"], extra_data, e["venue"])
    return out


def model_info_entries(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return an entry in RobustBench's model_info format for every model and radius; accuracies are percent strings.

    Every white-box attack with its full budget gives `<attack>_acc`; for AutoAttack this is RobustBench's own key.
    `external` is the worst case over all attacks. Fields that a row cannot fill are None.
    """
    import pandas as pd

    from robobench.core.formatting import format_eps
    from robobench.report.formatting import COMPARABLE_KEYS, MODEL_COLUMNS, iter_groups, iter_rows, label_model
    from robobench.report.matrix import budget_notes

    out = []
    done = rows[(rows["protocol"] == "white-box") & (rows["status"] == "ok")]
    for model_rows in iter_groups(done, [*COMPARABLE_KEYS, *MODEL_COLUMNS, "threat_norm", "threat_eps"]):
        first = model_rows.iloc[0]
        full = model_rows[~model_rows["budget_reduced"].astype(bool)]
        full = full.sort_values("robust_accuracy", ascending=False, kind="stable")  # of several budgets, the strongest
        worst = first["worst_case_accuracy"]
        images = f"{first['examples']} test images; worst case over {first['worst_case_attacks']}"
        out.append(
            {
                "link": None,
                "name": label_model(model_rows),
                "authors": None,
                "additional_data": False,
                "number_forward_passes": 1,
                "dataset": first["dataset"],
                "venue": None,
                "architecture": first["model"],
                "threat_model": first["threat_norm"],
                "eps": format_eps(first["threat_eps"]),
                "clean_acc": f"{100 * first['clean_accuracy']:.2f}",
                "reported": None,
                **{f"{r.attack}_acc": f"{100 * r.robust_accuracy:.2f}" for r in iter_rows(full)},
                "external": None if pd.isna(worst) else f"{100 * worst:.2f}",
                "unreliable": bool(str(first["flags"]) not in ("", "nan", "None")),
                "footnote": "; ".join([*budget_notes(model_rows), images]),
            }
        )
    return out


def check_model_info(plan: Plan) -> None:
    """Raise RequestError unless a plan gives the results that a model_info file needs."""
    from robobench.core.numbers import parse_eps

    published = dataset_info(plan.dataset.name).robustbench_eps
    norms = {norm: parse_eps(eps, norm) for norm, eps in published.items()}
    if not norms:
        known = ", ".join(name for name, info in DATASETS.items() if info.robustbench_eps)
        raise RequestError(f"--model-info: RobustBench has no leaderboard for '{plan.dataset.name}'; it has {known}")
    fitting = [c for c in plan.attacks if c.attack.budget.standard and norms.get(c.threat.norm) == c.threat.eps]
    if not fitting:
        radii = " or ".join(f"{norm} {eps}" for norm, eps in published.items())
        raise RequestError(
            f"--model-info needs AutoAttack with its standard budget at {radii}; add it to --attacks and do not change "
            "its settings"
        )
    if plan.examples < plan.dataset.test_size:
        raise RequestError(
            f"--model-info: RobustBench evaluates all {plan.dataset.test_size} test images, not {plan.examples}; "
            f"use --examples {plan.dataset.test_size}"
        )


def write_model_info(rows: list[dict[str, Any]], file: Path) -> None:
    """Write RobustBench's JSON file, and the whole row beside it as `.robobench.json`.

    `external` is the worst case over all attacks of the row's threat, adaptive ones and `transfer:FILE` included, where
    it is below AutoAttack's accuracy; a lower value that the file has already is kept.

    Args:
        rows: of one model, as in rows.csv.
        file: a description (link, name, authors, venue, ...) that it already contains is kept.

    Raises:
        RequestError: no finished row at RobustBench's radius with a standard budget, or `file` is not a JSON object.
    """
    from robobench.core.formatting import format_eps
    from robobench.store.artifacts import write_atomic

    row = min(filter(_is_ranked, rows), key=lambda r: float(r["robust_accuracy"]), default=None)
    if row is None:
        raise RequestError("no row for --model-info: the standard attack gave no result; see the reason above")
    info = {**DESCRIPTION, "name": row["model"], "architecture": row["model"]}
    if file.exists():
        try:
            info |= {k: v for k, v in json.loads(file.read_text()).items() if k in (*DESCRIPTION, *OPTIONAL)}
        except (ValueError, AttributeError) as err:
            raise RequestError(f"--model-info '{file}' is not a JSON object ({err}); choose another file") from None
    worst = row["worst_case_accuracy"]
    known = [float(info["external"])] if info.get("external") not in (None, "") else []
    if worst is not None and worst < row["robust_accuracy"]:
        known.append(100 * worst)
    info |= {"external": f"{min(known):.2f}"} if known else {}
    info |= {
        "dataset": row["dataset"],
        "eps": format_eps(row["threat_eps"]),
        "clean_acc": f"{100 * row['clean_accuracy']:.2f}",
        "autoattack_acc": f"{100 * row['robust_accuracy']:.2f}",
    }
    write_atomic(file, json.dumps(info, indent=2) + "\n")
    write_atomic(file.with_suffix(".robobench.json"), json.dumps(row, indent=2, default=str) + "\n")


def _is_ranked(row: dict[str, Any]) -> bool:
    """Return whether RobustBench would rank a row: white-box, its radius, standard budget."""
    from robobench.core.numbers import parse_eps

    eps = dataset_info(row["dataset"]).robustbench_eps.get(row["threat_norm"])
    at = eps is not None and parse_eps(eps, row["threat_norm"]) == row["threat_eps"]
    return at and bool(row["budget_standard"]) and (row["protocol"], row["status"]) == ("white-box", "ok")
