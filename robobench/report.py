"""Rows as tables for people. Rounding and percent signs happen here only."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Iterator
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from robobench.registry import unknown
from robobench.threat import eps_text

FORMATS = ("table", "md", "csv", "latex", "json", "html")
MISSING = "-"

# Rows that may stand in one table, and what makes one network in it.
BOARD = ["dataset", "data_digest", "examples"]
NETWORK = ["model", "preset", "defense", "seed", "config_digest", "weights_digest", "precision", "threads"]


def percent(value: Any) -> str:
    """Write a fraction as a percentage with one decimal, or a dash where it is missing."""
    return MISSING if pd.isna(value) else f"{100 * value:.1f}"


def seconds(value: Any) -> str:
    """Write seconds with a sensible number of digits, or a dash."""
    return MISSING if pd.isna(value) else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def text(value: Any) -> str:
    """Write any value, missing ones as a dash."""
    return MISSING if pd.isna(value) or value == "" else str(value)


def groups(rows: pd.DataFrame, by: list[str]) -> Iterator[pd.DataFrame]:
    """Walk groups in order of first appearance; missing values are a value of their own."""
    for _, group in rows.groupby(by, dropna=False, sort=False):
        yield group


def label(network: pd.DataFrame) -> str:
    """Name a network in a table: its defense, its seed where it is not 0, 'control' where it is one."""
    first = network.iloc[0]
    marks = ["control"] if bool(first["control"]) else []
    marks += [f"seed {first['seed']:g}"] if first["seed"] else []
    marks += ["best epoch"] if first["selection"] == "best" else []
    return f"{first['defense']} ({', '.join(marks)})" if marks else str(first["defense"])


def point(norm: str, eps: float) -> str:
    """Name a test radius: 'Linf 8/255'."""
    return f"{norm} {eps_text(eps)}"


def matrix(rows: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Lay rows of one board out as a matrix of text: a network a line, an (attack, norm, eps) a column.

    The last columns are the worst case per (norm, eps), image by image, with its 95 % interval. A failed
    cell is a dash; a reduced budget is marked with * and explained by `budgets`.
    """
    rows = rows[rows["protocol"] == protocol]
    points = (
        rows[["threat_norm", "threat_eps"]]
        .drop_duplicates()
        .sort_values(["threat_norm", "threat_eps"], ascending=[False, True])
    )
    several = rows.groupby("attack")["budget"].nunique() > 1
    lines: dict[str, dict[str, str]] = {}
    for network in groups(rows, NETWORK):
        name = label(network)
        while name in lines:
            name += "'"
        line = lines[name] = {"clean": percent(network["clean_accuracy"].max())}
        for norm, eps in points.itertuples(index=False):
            at = network[(network["threat_norm"] == norm) & (network["threat_eps"] == eps)]
            for cell in at.itertuples():
                column = f"{cell.attack} {point(norm, eps)}"
                if several[cell.attack]:
                    column += f" [{cell.budget}]"
                mark = "*" if is_reduced(cell.budget) else ""
                line[column] = percent(cell.robust_accuracy) + (mark if cell.status == "ok" else "")
            done = at[at["status"] == "ok"]
            if len(done):
                best = done.iloc[0]
                line[f"worst {point(norm, eps)}"] = (
                    f"{percent(best['worst_case_accuracy'])} "
                    f"[{percent(best['worst_case_ci_low'])}, {percent(best['worst_case_ci_high'])}]"
                )
    table = pd.DataFrame.from_dict(lines, orient="index").fillna(MISSING)
    worst = [c for c in table.columns if c.startswith("worst ")]
    table = table[[c for c in table.columns if c not in worst] + worst]
    table.index.name = "defense"
    return table


def is_reduced(budget: Any) -> bool:
    """Say whether an attack ran below its standard strength, by its own words."""
    return str(budget).startswith("reduced")


def budgets(rows: pd.DataFrame) -> list[str]:
    """Explain the reduced budgets of a table, one line an attack."""
    used = rows[["attack", "budget"]].drop_duplicates()
    return [f"* {a}: {b}" for a, b in used.itertuples(index=False) if is_reduced(b)]


def stacked(table: pd.DataFrame, title: str, caption: str | None = None) -> Table:
    """Draw a matrix with its columns split over two header lines, so that it fits a terminal."""
    out = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    out.add_column(str(table.index.name or ""), no_wrap=True)
    for column in table.columns:
        head, _, radius = column.partition(" ")
        best = column == "clean" or head == "worst"
        out.add_column(f"{head}\n{radius.replace(' ', chr(10), 1)}", justify="right", style="bold" if best else None)
    for name, values in table.iterrows():
        out.add_row(str(name), *map(str, values))
    return out


def costs(rows: pd.DataFrame) -> pd.DataFrame:
    """Lay out what each network cost: seconds of its own stages and of all it required, memory, flags."""
    lines = {}
    for network in groups(rows, NETWORK):
        first = network.iloc[0]
        flags = sorted({f for value in network["flags"].dropna() for f in str(value).split(",") if f})
        peak = first["peak_memory_bytes"]
        lines[label(network)] = {
            "clean %": percent(network["clean_accuracy"].max()),
            "own s": seconds(first["own_seconds"]),
            "whole s": seconds(first["whole_seconds"]),
            "warm-up s": seconds(first["warmup_seconds"]),
            "passes": MISSING if pd.isna(first["own_units"]) else f"{first['own_units']:,.0f}",
            "peak GiB": MISSING if pd.isna(peak) else f"{peak / 2**30:.2f}",
            "flags": ", ".join(flags) or MISSING,
        }
    out = pd.DataFrame.from_dict(lines, orient="index")
    out.index.name = "defense"
    return out


def passes(rows: pd.DataFrame) -> list[str]:
    """Spell out what the `passes` of each network are made of, a line a network that has them."""
    made = {label(n): text(n.iloc[0]["passes"]) for n in groups(rows, NETWORK)}
    lines = [f"  {name}: {what}" for name, what in made.items() if what != MISSING]
    meaning = (
        "passes: forwards per training image over all epochs (F forward 1, Gx backward to\n"
        "the input 1, Gw to the weights 2; T: of a teacher)"
    )
    return [meaning, *lines] if lines else []


def show(rows: pd.DataFrame, console: Console) -> None:
    """Print the matrices of every board: white-box, transfer, then costs and flags."""
    for board in groups(rows, BOARD):
        first = board.iloc[0]
        where = f"{first['dataset']}, {', '.join(sorted(set(board['model'])))}, {first['examples']} test images"
        for protocol, meaning in (
            ("white-box", "attacks made on each network itself"),
            ("transfer", "attacks made on the undefended network; says nothing about white-box strength"),
        ):
            part = board[board["protocol"] == protocol]
            if len(part):
                notes = "\n".join(budgets(part))
                console.print(stacked(matrix(part, protocol), f"{protocol} accuracy, % ({where})\n{meaning}", notes))
        console.print(stacked(costs(board), f"cost and flags ({where})", "\n".join(passes(board))))
        for reason in board.loc[board["status"] != "ok", ["defense", "attack", "protocol", "reason"]].itertuples():
            console.print(
                f"no figure: {reason.defense} under {reason.attack} ({reason.protocol}): {reason.reason}",
                markup=False,
            )


# --- leaderboard --------------------------------------------------------------------------------


def board(rows: pd.DataFrame) -> pd.DataFrame:
    """Rank networks by their white-box worst case, one board per (threat, attack set, image count).

    Returns:
        One line per network and (norm, eps): figures as fractions, rank within its board, boards in the
        order of their radii. Rows of different boards are not comparable.
    """
    lines: list[dict[str, Any]] = []
    for network in groups(rows, [*BOARD, *NETWORK]):
        for at in groups(network, ["threat_norm", "threat_eps"]):
            sides = {}
            for protocol in ("white-box", "transfer"):
                done = at[(at["protocol"] == protocol) & (at["status"] == "ok")]
                sides[protocol] = done.iloc[0] if len(done) else None
            white, transfer = sides["white-box"], sides["transfer"]
            if white is None:
                continue
            other = None if transfer is None else transfer["worst_case_accuracy"]
            lines.append(
                {
                    **{name: white[name] for name in [*BOARD, "threat_norm", "threat_eps"]},
                    "attacks": white["worst_case_attacks"],
                    "budgets": "; ".join(
                        sorted({f"{a}: {b}" for a, b in zip(at["attack"], at["budget"], strict=True) if is_reduced(b)})
                    ),
                    "defense": label(at),
                    "model": white["model"],
                    "clean": white["clean_accuracy"],
                    "worst": white["worst_case_accuracy"],
                    "ci_low": white["worst_case_ci_low"],
                    "ci_high": white["worst_case_ci_high"],
                    "transfer": other,
                    "gap": None if other is None else other - white["worst_case_accuracy"],
                    "own_seconds": white["own_seconds"],
                    "whole_seconds": white["whole_seconds"],
                    "flags": white["flags"],
                }
            )
    keys = [*BOARD, "threat_norm", "threat_eps", "attacks", "budgets"]
    out = pd.DataFrame(lines, columns=[*keys, *LEADERBOARD])
    out = out.sort_values([*keys, "worst", "clean"], ascending=[True] * len(keys) + [False, False], kind="stable")
    out.insert(0, "rank", out.groupby(keys, dropna=False)["worst"].rank(ascending=False, method="min"))
    return out.astype({"rank": int}).reset_index(drop=True)


LEADERBOARD = [
    *("defense", "model", "clean", "worst", "ci_low", "ci_high", "transfer", "gap"),
    *("own_seconds", "whole_seconds", "flags"),
]


def board_text(lines: pd.DataFrame) -> pd.DataFrame:
    """Round one board for reading."""
    intervals = [f"[{percent(a)}, {percent(b)}]" for a, b in zip(lines["ci_low"], lines["ci_high"], strict=True)]
    return pd.DataFrame(
        {
            "rank": lines["rank"].astype(str),
            "defense": lines["defense"],
            "model": lines["model"],
            "clean": lines["clean"].map(percent),
            "worst": lines["worst"].map(percent),
            "95 %": intervals,
            "transfer": lines["transfer"].map(percent),
            "gap": lines["gap"].map(percent),
            "own s": lines["own_seconds"].map(seconds),
            "whole s": lines["whole_seconds"].map(seconds),
            "flags": lines["flags"].map(text),
        }
    )


def board_titles(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Walk the boards with their titles; only lines of one board may be compared."""
    keys = [*BOARD, "threat_norm", "threat_eps", "attacks", "budgets"]
    for lines in groups(board(rows), keys):
        first = lines.iloc[0]
        title = (
            f"{first['dataset']}, {point(first['threat_norm'], first['threat_eps'])}, "
            f"{first['examples']} images; worst case over {first['attacks']}"
        )
        yield title + (f" ({first['budgets']})" if first["budgets"] else ""), lines


def leaderboard(rows: pd.DataFrame, form: str) -> str:
    """Write the leaderboard in a format of FORMATS; 'table' is as wide as the terminal."""
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if form == "csv":
        return board(rows).to_csv(index=False)
    if form == "json":
        return json.dumps(json.loads(board(rows).to_json(orient="records")), indent=1) + "\n"
    out = []
    for title, lines in board_titles(rows):
        shown = board_text(lines)
        if form == "table":
            out.append(render(plain_table(shown, title)))
        elif form == "md":
            out.append(f"**{title}**\n\n{markdown(shown)}\n")
        elif form == "latex":
            escaped = shown.map(latex_escape).rename(columns=latex_escape)
            body = escaped.to_latex(index=False, caption=latex_escape(title), column_format="rll" + "r" * 7 + "l")
            out.append(body)
        else:
            out.append(f"<h2>{html.escape(title)}</h2>\n{shown.to_html(index=False, escape=True)}\n")
    return "\n".join(out)


def latex_escape(value: str) -> str:
    """Escape what LaTeX would read as a command."""
    pairs = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(pairs.get(c, "\\" + c if c in "&%$#_{}" else c) for c in str(value))


def plain_table(table: pd.DataFrame, title: str) -> Table:
    """Draw a frame of text as a rich table."""
    out = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for column in table.columns:
        left = column in ("defense", "model", "flags")
        out.add_column(
            column,
            justify="left" if left else "right",
            overflow="fold",
            style="bold" if column == "worst" else None,
        )
    for values in table.itertuples(index=False):
        out.add_row(*map(str, values))
    return out


def markdown(table: pd.DataFrame) -> str:
    """Write a frame of text as a Markdown table."""

    def line(values: Any) -> str:
        return "| " + " | ".join(str(v).replace("|", "\\|") for v in values) + " |"

    return "\n".join(
        [
            line(table.columns),
            line(["---"] * len(table.columns)),
            *(line(values) for values in table.itertuples(index=False)),
        ]
    )


def render(table: Table) -> str:
    """Draw a rich table as text for stdout: in colors on a terminal, plain when piped."""
    buffer = io.StringIO()
    real = Console()
    console = Console(
        file=buffer,
        width=real.width if real.is_terminal else 160,
        force_terminal=real.is_terminal,
        no_color=real.no_color,
    )
    console.print(table)
    return buffer.getvalue()
