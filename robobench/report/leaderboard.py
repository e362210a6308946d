"""The leaderboard: networks ranked by their white-box worst case, one board a setting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

import pandas as pd

from robobench.core.registry import unknown_name
from robobench.errors import RequestError
from robobench.report.formatting import (
    BOARD,
    MISSING,
    NAMED,
    NETWORK,
    budget_texts,
    count,
    groups,
    name_of,
    percent,
    point,
    seconds,
    text,
)

KEYS = [*BOARD, "threat_norm", "threat_eps", "attacks", "budgets"]  # lines that differ in one are not comparable

BETWEEN = "; "  # two attacks' budgets
SPENT = ["attack", "attack_budget", "search_precision", "budget_reduced"]

LEADERBOARD = [
    *("defense", "model", "clean", "worst", "ci_low", "ci_high", "best", "transfer", "gap"),
    *(
        "train_seconds",
        "total_train_seconds",
        "train_cpu_seconds",
        "total_train_cpu_seconds",
        "train_forwards",
        "total_train_forwards",
    ),
    *("flags", "preset", "seed", "precision", "hardware", "weights_digest", "reduced_budgets"),
]

# Ways to sort a board: column, and whether the smallest comes first.
SORTS = {
    "worst": ("worst", False),
    "clean": ("clean", False),
    "transfer": ("transfer", False),
    "gap": ("gap", False),
    "own": ("train_seconds", True),
    "whole": ("total_train_seconds", True),
    "forwards": ("train_forwards", True),
    "defense": ("defense", True),
}

# What --filter takes, and the column of rows it looks at; flag is looked up in the board itself.
FILTERS = {
    **{name: name for name in ("dataset", "model", "preset", "defense", "seed", "precision", "hardware", "examples")},
    "norm": "threat_norm",
    "eps": "threat_eps",
}


def rank_models(rows: pd.DataFrame) -> pd.DataFrame:
    """Rank networks by their white-box worst case, one board per (threat, attack set and budgets, image count).

    Returns:
        One line per network and (norm, eps): figures as fractions, rank within its board, boards in the
        order of their radii. `best` marks the first of a board and every line inside its 95 % interval, unless
        nothing is left of it.
        Lines of different boards are not comparable.
    """
    at = [*BOARD, *NETWORK, "threat_norm", "threat_eps"]
    done = rows[rows["status"] == "ok"].drop_duplicates([*at, "protocol"])
    out = done[done["protocol"] == "white-box"].drop(columns="flags")
    transfer = done.loc[done["protocol"] == "transfer", [*at, "worst_case_accuracy"]]
    out = out.merge(transfer.rename(columns={"worst_case_accuracy": "transfer"}), on=at, how="left")
    spent = rows.loc[(rows["status"] == "ok") & (rows["protocol"] == "white-box"), [*at, *SPENT]]
    spent = spent.assign(budgets=spent["attack"] + ": " + budget_texts(spent))
    out = _joined(out, at, spent, "budgets", BETWEEN)
    reduced = spent.assign(reduced_budgets=spent["budgets"])[spent["budget_reduced"].astype(bool)]
    out = _joined(out, at, reduced, "reduced_budgets", BETWEEN)
    flagged = rows.loc[rows["flags"].notna(), [*at, "flags"]]
    flagged = flagged.assign(flags=flagged["flags"].astype(str).str.split(",")).explode("flags")
    out = _joined(out, at, flagged[flagged["flags"] != ""], "flags", ",")
    out["defense"] = [name_of(*parts) for parts in out[NAMED].itertuples(index=False)]
    out = out.rename(
        columns={
            "worst_case_attacks": "attacks",
            "clean_accuracy": "clean",
            "worst_case_accuracy": "worst",
            "worst_case_ci_low": "low",
            "worst_case_ci_high": "high",
        }
    )
    out = out.drop(columns=["ci_low", "ci_high"]).rename(columns={"low": "ci_low", "high": "ci_high"})
    out["gap"] = pd.to_numeric(out["transfer"]) - out["worst"]
    out = out.sort_values([*KEYS, "worst", "clean"], ascending=[True] * len(KEYS) + [False, False], kind="stable")
    by = out.groupby(KEYS, dropna=False)
    out["rank"] = by["worst"].rank(ascending=False, method="min").astype(int)
    out["best"] = (out["worst"] >= by["ci_low"].transform("first")) & (out["worst"] > 0)
    return out[["rank", *KEYS, *LEADERBOARD]].reset_index(drop=True)


def _joined(out: pd.DataFrame, at: list[str], values: pd.DataFrame, name: str, by: str) -> pd.DataFrame:
    """Add a column of text: the distinct values of each network and radius, in order, '' where there is none."""
    some = values[[*at, name]].drop_duplicates().sort_values(name)
    joined = some.groupby(at, dropna=False)[name].agg(by.join).reset_index()
    merged = out.merge(joined.astype(out[at].dtypes), on=at, how="left")  # a column of None alone came back as numbers
    merged[name] = merged[name].fillna("")
    return merged


def boards(lines: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Walk the boards in a table of lines, with their titles; only lines of one board may be compared.

    A title tells reduced budgets, and all of them where boards differ in nothing else.
    """
    several = lines.groupby([key for key in KEYS if key != "budgets"], dropna=False)["budgets"].transform("nunique") > 1
    for part in groups(lines, KEYS):
        first = part.iloc[0]
        models = sorted(set(part["model"]))
        title = (
            f"{first['dataset']}, {', '.join(models[:3])}{', ...' if len(models) > 3 else ''}, "
            f"{point(first['threat_norm'], first['threat_eps'])}, "
            f"{first['examples']} images; worst case over {first['attacks']}"
        )
        budgets = first["budgets"] if several[part.index[0]] else first["reduced_budgets"]
        yield title + (f" ({budgets})" if budgets else ""), part


def board_titles(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Walk the boards of rows with their titles."""
    yield from boards(rank_models(rows))


def chosen(rows: pd.DataFrame, filters: Sequence[str]) -> pd.DataFrame:
    """Keep the rows that every NAME=VALUE[,VALUE] of `filters` lets through.

    Raises:
        RequestError: an unknown name, or nothing is left.
    """
    for text_ in filters:
        name, equals, values = (part.strip() for part in text_.partition("="))
        if not equals or not values:
            raise RequestError(f"--filter '{text_}' is not NAME=VALUE[,VALUE]; names: {', '.join(FILTERS)}")
        if name not in FILTERS:
            raise unknown_name("name in --filter", name, FILTERS)
        column = rows[FILTERS[name]]
        wanted = [value.strip() for value in values.split(",")]
        if name in ("eps", "seed", "examples"):
            try:
                numbers = [float(Fraction(value)) for value in wanted]
            except (ValueError, ZeroDivisionError):
                raise RequestError(f"--filter '{text_}': {name} is a number such as 8/255 or 1") from None
            keep = pd.Series(False, index=rows.index)
            for number in numbers:
                keep |= (column - number).abs() < 1e-9
        else:
            keep = column.astype(str).str.lower().isin([value.lower() for value in wanted])
        if not keep.any():
            there = ", ".join(sorted({f"{v:g}" if isinstance(v, float) else str(v) for v in column.dropna()})[:12])
            raise RequestError(f"--filter '{text_}' leaves no row; there are: {there}")
        rows = rows[keep]
    return rows


def ordered(lines: pd.DataFrame, by: str) -> pd.DataFrame:
    """Sort the lines inside each board by a name of SORTS; ranks stay those of the white-box worst case."""
    if by not in SORTS:
        raise unknown_name("column to sort by", by, SORTS)
    column, ascending = SORTS[by]
    return lines.sort_values([*KEYS, column], ascending=[True] * len(KEYS) + [ascending], kind="stable")


# Columns as people read them: heading, and the text of a line.
SHOWN = (
    *("rank", "defense", "model", "clean", "worst", "95 %", "transfer", "gap", "own s", "whole s"),
    *("own CPU s", "whole CPU s", "own fwd", "whole fwd", "flags", "preset", "seed", "precision", "hardware"),
)

DEFAULT = ("rank", "defense", "model", "clean", "worst", "95 %", "transfer", "gap", "own s", "whole s", "flags")


def board_text(lines: pd.DataFrame, columns: Sequence[str] = DEFAULT, mark: str = "") -> pd.DataFrame:
    """Round one board for reading; `mark` follows the best worst case and every one inside its interval."""
    for name in columns:
        if name not in SHOWN:
            raise unknown_name("column", name, SHOWN)
    shown = {
        "rank": lines["rank"].astype(str),
        "defense": lines["defense"],
        "model": lines["model"],
        "clean": lines["clean"].map(percent),
        "worst": [percent(w) + (mark if best else "") for w, best in zip(lines["worst"], lines["best"], strict=True)],
        "95 %": [f"[{percent(a)}, {percent(b)}]" for a, b in zip(lines["ci_low"], lines["ci_high"], strict=True)],
        "transfer": lines["transfer"].map(percent),
        "gap": lines["gap"].map(percent),
        "own s": lines["train_seconds"].map(seconds),
        "whole s": lines["total_train_seconds"].map(seconds),
        "own CPU s": lines["train_cpu_seconds"].map(seconds),
        "whole CPU s": lines["total_train_cpu_seconds"].map(seconds),
        "own fwd": lines["train_forwards"].map(count),
        "whole fwd": lines["total_train_forwards"].map(count),
        "flags": [text(flags).replace(",", ", ") for flags in lines["flags"]],
        "preset": lines["preset"].map(text),
        "seed": lines["seed"].map(lambda seed: MISSING if pd.isna(seed) else f"{seed:g}"),
        "precision": lines["precision"].map(text),
        "hardware": lines["hardware"].map(text),
    }
    return pd.DataFrame({name: shown[name] for name in columns})
