"""Format values and group rows for tables. Only this package rounds values and writes percentages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from robobench.core.formatting import format_eps

MISSING = "-"
COMPARABLE_KEYS = ["dataset", "data_digest", "examples"]  # only rows with the same values share a table
SELECTION_MARKS = {
    "best": ", best epoch",
    "average": ", averaged weights",
    "best-average": ", averaged weights of the best epoch",
}
NAME_COLUMNS = ["defense", "seed", "is_control", "selection", "verdict"]  # make up a model's name
# Make up a trained model. Preset and threads are left out: a later call may attack the same weights with others.
MODEL_COLUMNS = ["model", "defense", "seed", "config_digest", "weights_digest", "precision", "verdict"]


def format_percent(value: Any) -> str:
    """Format a fraction as a percentage with one decimal; MISSING for NaN or None."""
    return MISSING if pd.isna(value) else f"{100 * value:.1f}"


def format_seconds(value: Any) -> str:
    """Format seconds, with one decimal below 100; MISSING for NaN or None."""
    return MISSING if pd.isna(value) else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def format_count(value: Any) -> str:
    """Format a count with three digits and a unit: 3.21k, 45.6M, 1.2G; MISSING for NaN or None."""
    if pd.isna(value):
        return MISSING
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def format_text(value: Any) -> str:
    """Format any value as text; MISSING for NaN, None or an empty text."""
    return MISSING if pd.isna(value) or value == "" else str(value)


def format_threat(norm: str, eps: float | None) -> str:
    """Format a norm and radius: 'Linf 8/255'. Without a radius, `norm` names several threats: 'Linf:8/255,L1:12'."""
    return norm if pd.isna(eps) else f"{norm} {format_eps(eps)}"


def format_size(row: Any) -> str:
    """Format the size of a row's images: ' of 32 px', or '' if it was not recorded."""
    side = row.get("resolution")
    return "" if side is None or pd.isna(side) else f" of {side:.0f} px"


def format_interval(low: Any, high: Any) -> str:
    """Format a confidence interval of fractions in percent: '[47.9, 52.1]'."""
    return f"[{format_percent(low)}, {format_percent(high)}]"


def format_model_name(defense: Any, seed: Any, is_control: Any, selection: Any, verdict: Any = None) -> str:
    """Name a model after its defense: 'at', 'at (seed 1)', 'standard (control, seed 1)', 'at, best epoch'.

    Args:
        verdict: K/N, appended; other values, as of models without random outputs, are not.
    """
    marks = ["control"] if bool(is_control) else []
    marks += [f"seed {seed:g}"] if seed else []
    name = f"{defense} ({', '.join(marks)})" if marks else str(defense)
    judged = f", verdict {verdict}" if isinstance(verdict, str) else ""
    return f"{name}{SELECTION_MARKS.get(selection, '')}{judged}"


def training_name(name: str, selection: str) -> str:
    """Return a model's name without its selection: one name for the last and the averaged weights of a training."""
    return str(name).removesuffix(SELECTION_MARKS.get(selection, ""))


def format_budgets(rows: pd.DataFrame) -> pd.Series:
    """Return each row's attack budget as text, with ', bfloat16 search' where the attack ran in bfloat16."""
    bf16 = rows["search_precision"].astype(str) == "bf16"
    return rows["attack_budget"].astype(str) + bf16.map({True: ", bfloat16 search", False: ""})


def iter_groups(rows: pd.DataFrame, by: list[str]) -> Iterator[pd.DataFrame]:
    """Iterate over groups in order of first appearance. Missing values form a group; columns may be missing."""
    for _, group in rows.groupby([name for name in by if name in rows], dropna=False, sort=False):
        yield group


def iter_rows(rows: pd.DataFrame) -> Iterator[Any]:
    """Iterate over rows as named tuples."""
    yield from rows.itertuples()


def label_model(model_rows: pd.DataFrame) -> str:
    """Return a model's name from its rows, with '(transfer source)' if it was trained only for transfer examples."""
    name = format_model_name(*model_rows.iloc[0].reindex(NAME_COLUMNS))  # an older table lacks the verdict
    is_source = (model_rows["source_digest"].astype(str) == model_rows["weights_digest"].astype(str)).all()
    return f"{name} (transfer source)" if is_source else name


def named_models(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return (name, rows) of every model. Names are made unique with the architecture or a prime."""
    if "name" in rows:
        return [(str(group.iloc[0]["name"]), group) for group in iter_groups(rows, ["name"])]
    several = rows["model"].nunique() > 1
    out: dict[str, pd.DataFrame] = {}
    for group in iter_groups(rows, MODEL_COLUMNS):
        name = label_model(group) + (f" {group.iloc[0]['model']}" if several else "")
        while name in out:
            name += "'"
        out[name] = group
    return list(out.items())


def add_names(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with a column 'name', so that every table made from a part of them uses the same names."""
    parts = [group.assign(name=name) for name, group in named_models(rows)]
    return pd.concat(parts).loc[rows.index]


def threats(rows: pd.DataFrame) -> list[tuple[str, float]]:
    """List the (norm, eps) pairs of rows: Linf before L2, small radii first."""
    pairs = rows[["threat_norm", "threat_eps"]].drop_duplicates()
    pairs = pairs.sort_values(["threat_norm", "threat_eps"], ascending=[False, True])
    return list(pairs.itertuples(index=False, name=None))


def flag_notes(flags_of_models: Iterable[tuple[str, Iterable[str]]]) -> list[str]:
    """List every flag with the names of the models that have it, from (name, flags) of every model."""
    names: dict[str, list[str]] = {}
    for name, flags in flags_of_models:
        for flag in flags:
            names.setdefault(flag, []).append(name)
    return [f"flag {flag}: {', '.join(names[flag])}" for flag in sorted(names)]


def list_flags(rows: pd.DataFrame) -> list[str]:
    """List the flags that any of the rows has, sorted."""
    return sorted({flag for value in rows["flags"].dropna() for flag in str(value).split(",") if flag})
