"""RobustBench's published figures, and its model_info file for a network measured here.

Source: Croce et al., "RobustBench: a standardized adversarial robustness benchmark", 2021, arXiv:2010.09670. Accuracies
are percentages written as text, as RobustBench writes them.
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
    from rich.table import Table

    from robobench.planning.plan import Plan


# What only its author can know of a network, with RobustBench's types; kept where the file already says it.
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

OPTIONAL = ("external", "unreliable", "footnote")  # of some entries only; kept likewise


def entries() -> list[dict[str, str]]:
    """Read every published entry; a figure that was not published is ''."""
    found = importlib.util.find_spec("robobench.leaderboards")
    assert found is not None and found.submodule_search_locations
    file = Path(next(iter(found.submodule_search_locations))) / "published" / "robustbench" / "entries.csv"
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def best_known(entry: dict[str, str]) -> float:
    """Return the lowest robust accuracy published for an entry, in percent."""
    return min(float(entry[k]) for k in ("autoattack_acc", "external", "corruptions_acc") if entry[k])


def boards(name: str | None = None) -> dict[str, list[dict[str, str]]]:
    """Return the published boards by name, such as 'cifar10-Linf', best first; raises RequestError.

    An entry measured at another radius than its board's (0.031 for 8/255) stays on it, as RobustBench has it.
    """
    found: dict[str, list[dict[str, str]]] = {}
    for entry in entries():
        found.setdefault(f"{entry['dataset']}-{entry['threat_model']}", []).append(entry)
    if name is not None and name not in found:
        raise unknown_name("published board", name, found)
    return {b: sorted(e, key=lambda x: -best_known(x)) for b, e in found.items() if name in (None, b)}


def table(board: str, lines: list[dict[str, str]]) -> Table:
    """Draw a published board, apart from anything measured here."""
    from rich import box
    from rich.table import Table

    out = Table(
        title=f"{board}: {len(lines)} entries published by RobustBench (2025-03-31), %; not measured by robobench",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    robust = "corrupted" if board.endswith("corruptions") else "AutoAttack"
    for name in ("rank", "id", "clean", robust, "best known", "eps", "architecture", "extra data", "venue"):
        out.add_column(name, justify="right" if name in ("rank", "clean", robust, "best known") else "left")
    for rank, e in enumerate(lines, 1):
        figures = (e["clean_acc"], e["autoattack_acc"] or e["corruptions_acc"], f"{best_known(e):.2f}")
        more = "yes" if e["additional_data"] == "true" else "no"
        out.add_row(str(rank), e["id"], *figures, e["eps"] or "-", e["architecture"], more, e["venue"])
    return out


def check_model_info(plan: Plan) -> None:
    """Raise RequestError unless a run will give the figures that RobustBench's file needs."""
    from robobench.core.threat import parse_eps

    published = dataset_info(plan.dataset.name).robustbench_eps
    norms = {norm: parse_eps(eps, norm) for norm, eps in published.items()}
    if not norms:
        known = ", ".join(name for name, info in DATASETS.items() if info.robustbench_eps)
        raise RequestError(f"--model-info: RobustBench has no board for '{plan.dataset.name}'; it has {known}")
    fitting = [c for c in plan.attacks if c.attack.budget.standard and norms.get(c.threat.norm) == c.threat.eps]
    if not fitting:
        radii = " or ".join(f"{norm} {eps}" for norm, eps in published.items())
        raise RequestError(
            f"--model-info needs AutoAttack at its standard strength at {radii}; add it to --attacks and leave its "
            "settings alone"
        )
    if plan.examples < plan.dataset.test_size:
        raise RequestError(
            f"--model-info: RobustBench's figures are of all {plan.dataset.test_size} test images, not of "
            f"{plan.examples}; give --examples {plan.dataset.test_size}"
        )


def write_model_info(rows: list[dict[str, Any]], file: Path) -> None:
    """Write RobustBench's JSON, and what robobench knows beside it in FILE's sibling `.robobench.json`.

    Args:
        rows: of one network, as in rows.csv.
        file: where it already holds a description (link, name, authors, venue, ...), that is kept.

    Raises:
        RequestError: no finished row at RobustBench's radius under a standard budget; `file` is no JSON object.
    """
    from robobench.core.formatting import format_eps
    from robobench.store.artifacts import write_atomic

    row = next((r for r in rows if _counts(r)), None)
    if row is None:
        raise RequestError("no row to write to --model-info: the standard attack gave no figure; see its reason above")
    info = {**DESCRIPTION, "name": row["model"], "architecture": row["model"]}
    if file.exists():
        try:
            info |= {k: v for k, v in json.loads(file.read_text()).items() if k in (*DESCRIPTION, *OPTIONAL)}
        except (ValueError, AttributeError) as err:
            raise RequestError(f"--model-info '{file}' holds no JSON object ({err}); name another file") from None
    info |= {
        "dataset": row["dataset"],
        "eps": format_eps(row["threat_eps"]),
        "clean_acc": f"{100 * row['clean_accuracy']:.2f}",
        "autoattack_acc": f"{100 * row['robust_accuracy']:.2f}",
    }
    write_atomic(file, json.dumps(info, indent=2) + "\n")
    write_atomic(file.with_suffix(".robobench.json"), json.dumps(row, indent=2, default=str) + "\n")


def _counts(row: dict[str, Any]) -> bool:
    """Say whether a row is a white-box figure that RobustBench would rank."""
    from robobench.core.threat import parse_eps

    eps = dataset_info(row["dataset"]).robustbench_eps.get(row["threat_norm"])
    at = eps is not None and parse_eps(eps, row["threat_norm"]) == row["threat_eps"]
    return at and bool(row["budget_standard"]) and (row["protocol"], row["status"]) == ("white-box", "ok")
