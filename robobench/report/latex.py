"""LaTeX tables with booktabs. Bold: the best value and all values inside its 95 % CI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from robobench.core.formatting import format_eps
from robobench.report.display_names import display_attacks, display_model, display_name
from robobench.report.formatting import (
    COMPARABLE_KEYS,
    MISSING,
    add_names,
    format_budgets,
    format_percent,
    format_size,
    iter_groups,
    named_models,
    threats,
)
from robobench.report.leaderboard import BUDGET_SEPARATOR, default_columns, format_leaderboard, split_leaderboards
from robobench.report.matrix import PROTOCOLS, budget_notes

PACKAGES = "% needs \\usepackage{booktabs}\n"
NORMS = {"Linf": r"\infty", "L2": "2", "L1": "1"}
CI_LOW = {"robust_accuracy": "ci_low", "worst_case_accuracy": "worst_case_ci_low"}  # of a value's 95 % CI


class Column(NamedTuple):
    """A column of a matrix: an attack (or "worst case") at a radius, and the column of the rows that it shows."""

    attack: str
    norm: str
    eps: float
    value: str


def latex_escape(value: object) -> str:
    """Escape the special characters of LaTeX."""
    pairs = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    pairs |= {"<": r"\textless{}", ">": r"\textgreater{}"}
    return "".join(pairs.get(c, "\\" + c if c in "&%$#_{}" else c) for c in str(value))


def bold(value: str, condition: bool) -> str:
    """Set text in bold if the condition holds."""
    return rf"\textbf{{{value}}}" if condition else value


def latex_table(caption: str, layout: str, head: list[str], body: list[str]) -> str:
    """Return a table float. Caption and lines must be escaped already."""
    parts = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        *head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(parts) + "\n"


def latex_leaderboards(lines: pd.DataFrame, columns: Sequence[str] | None = None) -> str:
    """Write every leaderboard as a table with display names; the caption has the threat model and the attacks.

    Args:
        columns: names of HEADINGS; default: those that hold values.
    """
    out = [PACKAGES]
    for _, part in split_leaderboards(lines):
        part = part.assign(defense=part["defense"].map(display_model))
        shown = format_leaderboard(part, columns or _default_columns(part)).map(latex_escape)
        shown = shown.map(lambda value: value.replace("±", r"$\pm$"))
        if "worst" in shown:
            shown["worst"] = [bold(w, b) for w, b in zip(shown["worst"], part["best"], strict=True)]
        left = ("defense", "model", "flags", "preset", "precision", "hardware")
        layout = "".join("l" if c in left else "r" for c in shown.columns)
        head = [" & ".join(latex_escape(c[:1].upper() + c[1:]).replace("±", r"$\pm$") for c in shown.columns) + r" \\"]
        body = [" & ".join(values) + r" \\" for values in shown.itertuples(index=False)]
        out.append(latex_table(_caption(part), layout, head, body))
    return "\n".join(out)


def _caption(part: pd.DataFrame) -> str:
    """Return the caption of one leaderboard: data, model, number of images, threat model, attacks, what is bold."""
    first = part.iloc[0]
    models = latex_escape(", ".join(sorted(set(part["model"]))))
    norm = _norm(first["threat_norm"])
    spread = r" $\pm$: standard deviation over seeds." if "n" in part and (part["n"] > 1).any() else ""
    return (
        f"Accuracy in percent on {latex_escape(first['dataset'])}, {models}, {first['examples']} test images; {norm}, "
        rf"$\epsilon = {format_eps(first['threat_eps'])}$. Worst: per image over "
        f"{latex_escape(display_attacks(first['budgets'], BUDGET_SEPARATOR))}, white-box.{spread} "
        "Bold: the best, and all inside its interval."
    )


def latex_matrices(rows: pd.DataFrame) -> str:
    """Write all matrices in the layout of the MACD paper: attacks with their radii, a row for every defense."""
    out = []
    for part in map(add_names, iter_groups(rows, COMPARABLE_KEYS)):
        for protocol in PROTOCOLS:
            selected = part[part["protocol"] == protocol]
            if len(selected):
                out.append(latex_matrix(selected, protocol))
    return "\n".join(out)


def latex_matrix(rows: pd.DataFrame, protocol: str) -> str:
    """Write the matrix of comparable rows of one protocol."""
    reduced = budget_notes(rows)
    rows = rows.assign(budget=format_budgets(rows))
    several = rows.groupby("attack")["budget"].transform("nunique") > 1
    rows = rows.assign(attack=rows["attack"].where(~several, rows["attack"] + " [" + rows["budget"] + "]"))
    columns = _columns(rows)
    models = named_models(rows)
    best_clean = rows.loc[rows["status"] == "ok", "clean_accuracy"].max()
    cells = {}
    for name, model_rows in models:
        clean = model_rows["clean_accuracy"].max()
        cells[name] = [latex_escape(display_model(name)), bold(format_percent(clean), bool(clean == best_clean))]
    for column in columns:
        for name, text in _column_cells(column, models).items():
            cells[name].append(text)
    first = rows.iloc[0]
    caption = (
        f"{protocol} accuracy in percent on {first['dataset']}, {', '.join(sorted(set(rows['model'])))}, "
        f"{first['examples']} test images{format_size(first)}; {PROTOCOLS[protocol]}. "
        "Bold: best and all within its 95 % CI."
    )
    body = [" & ".join(values) + r" \\" for values in cells.values()]
    caption = latex_escape(" ".join([caption, *reduced]))
    return latex_table(caption, "lr" + "r" * len(columns), _header(columns), body)


def _columns(rows: pd.DataFrame) -> list[Column]:
    """List the columns of a matrix: for every norm its attacks, then the worst case, each with its radii."""
    columns = []
    for norm in dict.fromkeys(norm for norm, _ in threats(rows)):
        for attack in sorted(set(rows.loc[rows["threat_norm"] == norm, "attack"])):
            radii = [eps for n, eps in threats(rows[rows["attack"] == attack]) if n == norm]
            columns += [Column(attack, norm, eps, "robust_accuracy") for eps in radii]
        columns += [Column("worst case", norm, eps, "worst_case_accuracy") for n, eps in threats(rows) if n == norm]
    return columns


def _column_cells(column: Column, models: list[tuple[str, pd.DataFrame]]) -> dict[str, str]:
    """Format one column: model name -> accuracy, in bold if it is the best or inside the best one's 95 % CI."""
    found = {}
    for name, rows in models:
        at = (rows["threat_norm"] == column.norm) & (rows["threat_eps"] == column.eps) & (rows["status"] == "ok")
        if column.attack != "worst case":
            at &= rows["attack"] == column.attack
        found[name] = rows[at].iloc[0] if at.any() else None
    measured = [row for row in found.values() if row is not None]
    low = max(measured, key=lambda row: row[column.value])[CI_LOW[column.value]] if measured else 1.0
    out = {}
    for name, row in found.items():
        if row is None:
            out[name] = MISSING
            continue
        mark = "*" if column.value == "robust_accuracy" and row["budget_reduced"] else ""
        out[name] = bold(format_percent(row[column.value]), bool(row[column.value] >= low)) + mark
    return out


def _header(columns: list[Column]) -> list[str]:
    """Return the header lines: attacks and norms over rules, then radii."""
    above, rules, start = ["", ""], [], 3
    for attack, norm in dict.fromkeys((c.attack, c.norm) for c in columns):
        span = sum((c.attack, c.norm) == (attack, norm) for c in columns)
        above.append(rf"\multicolumn{{{span}}}{{c}}{{{_attack_heading(attack, norm)}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + span - 1}}}")
        start += span
    radii = ["Defense", "Clean", *(format_eps(c.eps) for c in columns)]
    return [" & ".join(above) + r" \\", " ".join(rules), " & ".join(radii) + r" \\"]


def _attack_heading(attack: str, norm: str) -> str:
    """Return the display name of an attack and its norm: 'PGD $\\ell_{\\infty}$'."""
    name, bracket, budget = attack.partition(" [")
    return f"{latex_escape(display_name('attack', name) + bracket + budget)} {_norm(norm)}"


def _norm(norm: str) -> str:
    """Return a norm as mathematics."""
    return rf"$\ell_{NORMS[norm]}$" if norm in NORMS else latex_escape(norm)


def _default_columns(part: pd.DataFrame) -> list[str]:
    """Return the default columns of a printed table: no rank, no difference, the model only if there are several."""
    left_out = {"rank", "gap", *(["model"] if part["model"].nunique() == 1 else [])}
    return [name for name in default_columns(part) if name not in left_out]
