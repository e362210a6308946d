"""Values as text, and what groups rows into tables. Rounding and percent signs happen here only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from robobench.core.formatting import format_eps

MISSING = "-"

# Rows that may stand in one table, and what makes one network in it.
BOARD = ["dataset", "data_digest", "examples"]

NAMED = ["defense", "seed", "is_control", "selection"]

NETWORK = ["model", "preset", "defense", "seed", "config_digest", "weights_digest", "precision", "threads"]


def percent(value: Any) -> str:
    """Write a fraction as a percentage with one decimal, or a dash where it is missing."""
    return MISSING if pd.isna(value) else f"{100 * value:.1f}"


def seconds(value: Any) -> str:
    """Write seconds with a sensible number of digits, or a dash."""
    return MISSING if pd.isna(value) else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def count(value: Any) -> str:
    """Write a large count with three digits and its unit: 3.21k, 45.6M, 1.2G; a dash where it is missing."""
    if pd.isna(value):
        return MISSING
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def text(value: Any) -> str:
    """Write any value, missing ones as a dash."""
    return MISSING if pd.isna(value) or value == "" else str(value)


def groups(rows: pd.DataFrame, by: list[str]) -> Iterator[pd.DataFrame]:
    """Walk groups in order of first appearance; missing values are a value of their own."""
    for _, group in rows.groupby(by, dropna=False, sort=False):
        yield group


def cells(rows: pd.DataFrame) -> Iterator[Any]:
    """Walk rows as tuples with names."""
    yield from rows.itertuples()


def name_of(defense: Any, seed: Any, control: Any, selection: Any) -> str:
    """Name a network in a table: its defense, its seed where it is not 0, 'control' or 'best epoch' where it is one."""
    marks = ["control"] if bool(control) else []
    marks += [f"seed {seed:g}"] if seed else []
    name = f"{defense} ({', '.join(marks)})" if marks else str(defense)
    return f"{name}, best epoch" if selection == "best" else name


def label(network: pd.DataFrame) -> str:
    """Name a network by the first of its rows."""
    return name_of(*network.iloc[0][NAMED])


def labelled(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the networks of a table with names that differ: a model or a dash is added where two are alike."""
    if "name" in rows:
        return [(str(network.iloc[0]["name"]), network) for network in groups(rows, ["name"])]
    several = rows["model"].nunique() > 1
    out: dict[str, pd.DataFrame] = {}
    for network in groups(rows, NETWORK):
        name = label(network) + (f" {network.iloc[0]['model']}" if several else "")
        while name in out:
            name += "'"
        out[name] = network
    return list(out.items())


def with_names(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a board with the names of its networks, so that parts of it name them alike."""
    parts = [network.assign(name=name) for name, network in labelled(rows)]
    return pd.concat(parts).loc[rows.index]


def point(norm: str, eps: float) -> str:
    """Name a test radius: 'Linf 8/255'."""
    return f"{norm} {format_eps(eps)}"


def points(rows: pd.DataFrame) -> list[tuple[str, float]]:
    """List the (norm, eps) of rows: Linf before L2, small radii first."""
    pairs = rows[["threat_norm", "threat_eps"]].drop_duplicates()
    pairs = pairs.sort_values(["threat_norm", "threat_eps"], ascending=[False, True])
    return list(pairs.itertuples(index=False, name=None))


def flags_of(rows: pd.DataFrame) -> list[str]:
    """List every flag that some of these rows carry."""
    return sorted({flag for value in rows["flags"].dropna() for flag in str(value).split(",") if flag})


def budget_texts(rows: pd.DataFrame) -> pd.Series:
    """Return the attack budget of each row as text, with the precision of the search where it is bfloat16."""
    bf16 = rows["search_precision"].astype(str) == "bf16"
    return rows["attack_budget"].astype(str) + bf16.map({True: ", bfloat16 search", False: ""})
