"""Tables for a paper: booktabs, bold for the best and for all inside its 95 % interval."""

from __future__ import annotations

import pandas as pd

from robobench.core.formatting import format_eps
from robobench.report.formatting import BOARD, MISSING, budget_texts, groups, labelled, percent, points, with_names
from robobench.report.leaderboard import board_text, boards
from robobench.report.matrix import PROTOCOLS, budgets

PACKAGES = "% needs \\usepackage{booktabs}\n"
COLUMNS = ("rank", "defense", "model", "clean", "worst", "95 %", "transfer", "gap", "own s", "whole s", "flags")


def latex_escape(value: object) -> str:
    """Escape what LaTeX would read as a command."""
    pairs = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    pairs |= {"<": r"\textless{}", ">": r"\textgreater{}"}
    return "".join(pairs.get(c, "\\" + c if c in "&%$#_{}" else c) for c in str(value))


def bold(value: str, best: bool) -> str:
    """Set text in bold where it is one of the best."""
    return rf"\textbf{{{value}}}" if best else value


def table(caption: str, layout: str, head: list[str], body: list[str]) -> str:
    """Put header and body lines into a table float; caption and lines come escaped."""
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


def latex_boards(lines: pd.DataFrame) -> str:
    """Write every board as a ranked table."""
    out = [PACKAGES]
    for title, part in boards(lines):
        shown = board_text(part, COLUMNS).map(latex_escape)
        shown["worst"] = [bold(w, b) for w, b in zip(shown["worst"], part["best"], strict=True)]
        head = [" & ".join(latex_escape(c) for c in COLUMNS) + r" \\"]
        body = [" & ".join(values) + r" \\" for values in shown.itertuples(index=False)]
        out.append(table(latex_escape(title), "rll" + "r" * 7 + "l", head, body))
    return "\n".join(out)


def latex_matrices(rows: pd.DataFrame) -> str:
    """Write the matrices as the MACD paper prints them: attacks over their radii, a defense a line."""
    out = []
    for board in map(with_names, groups(rows, BOARD)):
        for protocol in PROTOCOLS:
            part = board[board["protocol"] == protocol]
            if len(part):
                out.append(latex_matrix(part, protocol))
    return "\n".join(out)


def latex_matrix(rows: pd.DataFrame, protocol: str) -> str:
    """Write one board's matrix of a protocol. Bold: a column's best figure and all inside that one's interval."""
    reduced = budgets(rows)
    rows = rows.assign(budget=budget_texts(rows))
    several = rows.groupby("attack")["budget"].transform("nunique") > 1
    rows = rows.assign(attack=rows["attack"].where(~several, rows["attack"] + " [" + rows["budget"] + "]"))
    done = rows[rows["status"] == "ok"]
    columns: list[tuple[str, str, float, str]] = []  # attack (or worst case), norm, eps, column of rows
    for norm in dict.fromkeys(norm for norm, _ in points(rows)):
        for attack in sorted(set(rows.loc[rows["threat_norm"] == norm, "attack"])):
            columns += [
                (attack, norm, eps, "robust_accuracy") for n, eps in points(rows[rows["attack"] == attack]) if n == norm
            ]
        columns += [("worst case", norm, eps, "worst_case_accuracy") for n, eps in points(rows) if n == norm]
    names = {"robust_accuracy": "ci_low", "worst_case_accuracy": "worst_case_ci_low"}
    networks = labelled(rows)
    lines = {name: [latex_escape(name), percent(network["clean_accuracy"].max())] for name, network in networks}
    clean = done["clean_accuracy"].max()
    for name, network in networks:
        lines[name][1] = bold(lines[name][1], bool(network["clean_accuracy"].max() == clean))
    for attack, norm, eps, value in columns:
        cells = {}
        for name, network in networks:
            at = network[
                (network["threat_norm"] == norm) & (network["threat_eps"] == eps) & (network["status"] == "ok")
            ]
            at = at if attack == "worst case" else at[at["attack"] == attack]
            cells[name] = at.iloc[0] if len(at) else None
        there = [cell for cell in cells.values() if cell is not None]
        floor = max(there, key=lambda cell: cell[value])[names[value]] if there else 1.0
        for name, cell in cells.items():
            if cell is None:
                lines[name].append(MISSING)
                continue
            mark = "*" if value == "robust_accuracy" and cell["budget_reduced"] else ""
            lines[name].append(bold(percent(cell[value]), bool(cell[value] >= floor)) + mark)
    above, rules, start = ["", ""], [], 3
    for attack, norm in dict.fromkeys((a, n) for a, n, _, _ in columns):
        span = sum((a, n) == (attack, norm) for a, n, _, _ in columns)
        above.append(rf"\multicolumn{{{span}}}{{c}}{{{latex_escape(f'{attack} {norm}')}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + span - 1}}}")
        start += span
    head = [
        " & ".join(above) + r" \\",
        " ".join(rules),
        " & ".join(["Defense", "Clean", *(format_eps(eps) for _, _, eps, _ in columns)]) + r" \\",
    ]
    first = rows.iloc[0]
    caption = (
        f"{protocol} accuracy in percent on {first['dataset']}, {', '.join(sorted(set(rows['model'])))}, "
        f"{first['examples']} test images; {PROTOCOLS[protocol]}. Bold: best and all within its 95 % interval."
    )
    caption = " ".join([caption, *reduced])
    body = [" & ".join(values) + r" \\" for values in lines.values()]
    return table(latex_escape(caption), "lr" + "r" * len(columns), head, body)
