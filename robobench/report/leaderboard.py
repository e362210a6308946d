"""Leaderboards: models ranked by their white-box worst case, separately for every setting (data, threat, attacks)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from robobench.core.registry import unknown_name
from robobench.errors import RequestError
from robobench.report.formatting import (
    COMPARABLE_KEYS,
    MISSING,
    MODEL_COLUMNS,
    NAME_COLUMNS,
    format_budgets,
    format_count,
    format_interval,
    format_model_name,
    format_percent,
    format_seconds,
    format_size,
    format_text,
    format_threat,
    iter_groups,
)
from robobench.results.checks import CHECKS
from robobench.results.rows import OPTIONAL_COLUMNS

# Lines with the same values are ranked together.
LEADERBOARD_KEYS = [*COMPARABLE_KEYS, "threat_norm", "threat_eps", "attacks", "budgets"]
BUDGET_SEPARATOR = "; "  # between the budgets of two attacks
COSTS = (
    *("train_seconds", "total_train_seconds", "train_cpu_seconds", "total_train_cpu_seconds"),
    *("train_forwards", "total_train_forwards", "train_flops", "total_train_flops"),
)
LEADERBOARD = [
    *("defense", "model", "clean", "worst", "ci_low", "ci_high", "best", "transfer", "gap", *COSTS),
    *("flags", "preset", "seed", "precision", "hardware", "config_digest", "weights_digest", "reduced_budgets"),
    *("resolution", "selection", "unranked"),
]

# --sort: column -> ascending
SORTS = {**dict.fromkeys(("worst", "clean", "transfer", "gap"), False), **dict.fromkeys((*COSTS, "defense"), True)}

# --filter: name -> column of the rows
FILTERS = {
    **{name: name for name in ("dataset", "model", "preset", "defense", "seed", "precision", "hardware", "examples")},
    "norm": "threat_norm",
    "eps": "threat_eps",
}

CELL_FILTERS = {**FILTERS, "attack": "attack", "protocol": "protocol"}  # of `reproduce`, which attacks single cells

# --columns: name -> heading
HEADINGS = {
    **{name: name for name in ("rank", "defense", "model", "clean", "worst")},
    "ci": "95 % CI",
    "transfer": "transfer",
    "gap": "transfer - white-box",
    "train_seconds": "train time (s)",
    "total_train_seconds": "incl. teachers (s)",
    "train_cpu_seconds": "CPU time (s)",
    "total_train_cpu_seconds": "CPU incl. teachers (s)",
    "train_forwards": "train cost (forward equiv.)",
    "total_train_forwards": "cost incl. teachers (forward equiv.)",
    "train_flops": "train cost (FLOPs)",
    "total_train_flops": "cost incl. teachers (FLOPs)",
    **{name: name for name in ("flags", "preset", "seed", "precision", "hardware")},
    "n": "seeds",  # number of trainings; of `combine_seeds` only
}
WORST_HEADING = "worst-case robust acc. (white-box)"  # of "worst" where there is room
DEFAULT_COLUMNS = (
    *("rank", "defense", "model", "clean", "worst", "ci", "transfer", "gap"),
    *("train_seconds", "total_train_seconds", "flags"),
)


def rank_models(rows: pd.DataFrame) -> pd.DataFrame:
    """Rank models by their white-box worst case, separately for every threat, attack set, budgets and image count.

    A model is listed without a rank if one of its attacks failed or a check found its accuracy unreliable; `unranked`
    has the reason.

    Returns:
        One line per model and (norm, eps), with accuracies as fractions. `gap` is transfer minus worst-case accuracy.
        `best` marks the first of a leaderboard and all lines inside its 95 % CI, unless its accuracy is 0. Lines that
        differ in LEADERBOARD_KEYS are not comparable.
    """
    at = [*COMPARABLE_KEYS, *MODEL_COLUMNS, "threat_norm", "threat_eps"]
    rows = rows.assign(**{name: float("nan") for name in OPTIONAL_COLUMNS if name not in rows})  # of an older table
    rows = rows.assign(_model=rows.groupby(at, dropna=False, sort=False).ngroup())  # joins by number are much faster
    ok = rows["status"] == "ok"
    attempted = rows["weights_digest"].notna() | ok  # the model exists
    order = np.flatnonzero(attempted & (rows["protocol"] == "white-box"))
    white_box = rows.iloc[order[np.argsort(~ok.to_numpy()[order], kind="stable")]]
    out = white_box.drop_duplicates("_model").drop(columns="flags")
    transfer = rows.loc[ok & (rows["protocol"] == "transfer"), ["_model", "worst_case_accuracy"]]
    out["transfer"] = out["_model"].map(transfer.drop_duplicates("_model").set_index("_model")["worst_case_accuracy"])
    budgets = white_box["attack"] + ": " + format_budgets(white_box)
    out["budgets"] = _join_texts(out, white_box, budgets, BUDGET_SEPARATOR)
    reduced = white_box["budget_reduced"].astype(bool)
    out["reduced_budgets"] = _join_texts(out, white_box[reduced], budgets[reduced], BUDGET_SEPARATOR)
    flagged = rows.loc[rows["flags"].notna(), ["_model", "flags"]]
    flags = [
        ",".join(sorted(set(filter(None, text.split(","))))) for text in _join_texts(out, flagged, flagged["flags"])
    ]
    out["flags"] = flags
    failed = white_box[white_box["status"] != "ok"]
    why = failed["attack"] + " failed: " + failed["reason"].fillna("").astype(str)
    failures = _join_texts(out, failed, why, "; ")
    out["defense"] = [
        format_model_name(*values) for values in zip(*(out[n].tolist() for n in NAME_COLUMNS), strict=True)
    ]
    out = out.drop(columns=["ci_low", "ci_high"]).rename(
        columns={
            "worst_case_attacks": "attacks",
            "clean_accuracy": "clean",
            "worst_case_accuracy": "worst",
            "worst_case_ci_low": "ci_low",
            "worst_case_ci_high": "ci_high",
        }
    )
    numbers = ["clean", "worst", "ci_low", "ci_high", "transfer", *COSTS]
    out[numbers] = out[numbers].apply(pd.to_numeric)  # a column of only None is no number
    out["gap"] = out["transfer"] - out["worst"]
    out["unranked"] = list(map(_why_unranked, out["worst"].tolist(), failures, flags))
    return add_ranks(out)[["rank", *LEADERBOARD_KEYS, *LEADERBOARD]].reset_index(drop=True)


def _why_unranked(worst: float, failed: str, flags: str) -> str:
    """Return why a line has no rank; "" if it has one."""
    if pd.isna(worst):
        return failed or "no worst case"
    return ", ".join(flag for flag in flags.split(",") if flag in CHECKS and CHECKS[flag].unreliable)


def add_ranks(out: pd.DataFrame) -> pd.DataFrame:
    """Sort lines by leaderboard and worst case, those without a rank last; add the columns "rank" and "best"."""
    ranked = out["unranked"] == ""
    order = [*LEADERBOARD_KEYS, "_last", "worst", "clean"]
    ascending = [True] * (len(LEADERBOARD_KEYS) + 1) + [False, False]
    out = out.assign(_last=~ranked, _worst=out["worst"].where(ranked)).sort_values(
        order, ascending=ascending, kind="stable"
    )
    by = out.groupby(LEADERBOARD_KEYS, dropna=False)
    out["rank"] = by["_worst"].rank(ascending=False, method="min").astype("Int64")
    out["best"] = (out["_worst"] >= by["ci_low"].transform("first")) & (out["_worst"] > 0)
    return out.drop(columns=["_last", "_worst"])


def _join_texts(out: pd.DataFrame, rows: pd.DataFrame, texts: pd.Series, separator: str = ",") -> list[str]:
    """Return the distinct sorted texts of every line's rows, joined; '' if there are none.

    Args:
        texts: one for each of `rows`.
    """
    found: dict[int, set[str]] = {}
    for model, text in zip(rows["_model"].tolist(), texts.astype(str).tolist(), strict=True):
        found.setdefault(model, set()).add(text)
    return [separator.join(sorted(found.get(model, ()))) for model in out["_model"].tolist()]


def split_leaderboards(lines: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Split ranked lines into leaderboards and yield each with its title.

    A title names reduced budgets. It names all budgets where two leaderboards differ in nothing else.
    """
    keys = [key for key in LEADERBOARD_KEYS if key != "budgets"]
    several = lines.groupby(keys, dropna=False)["budgets"].transform("nunique") > 1
    for part in iter_groups(lines, LEADERBOARD_KEYS):
        first = part.iloc[0]
        models = sorted(set(part["model"]))
        title = (
            f"{first['dataset']}, {', '.join(models[:3])}{', ...' if len(models) > 3 else ''}, "
            f"{format_threat(first['threat_norm'], first['threat_eps'])}, "
            f"{first['examples']} images{format_size(first)}; worst case over {first['attacks']}"
        )
        budgets = first["budgets"] if several[part.index[0]] else first["reduced_budgets"]
        yield title + (f" ({budgets})" if budgets else ""), part


def unranked_notes(lines: pd.DataFrame) -> list[str]:
    """List the lines without a rank, with the reason."""
    several = lines["model"].nunique() > 1
    values = zip(*(lines[name].tolist() for name in ("defense", "model", "unranked")), strict=True)
    return [f"not ranked: {name}{f' {model}' if several else ''}: {why}" for name, model, why in values if why]


def filter_rows(
    rows: pd.DataFrame, filters: Sequence[str], known: Mapping[str, str] = MappingProxyType(FILTERS)
) -> pd.DataFrame:
    """Keep the rows that match every filter NAME=VALUE[,VALUE].

    Args:
        known: name -> column of the rows.

    Raises:
        RequestError: an unknown name or bad value, or no row matches.
    """
    for filter_ in filters:
        name, equals, values = (part.strip() for part in filter_.partition("="))
        if not equals or not values:
            raise RequestError(f"--filter '{filter_}' is not NAME=VALUE[,VALUE]; names: {', '.join(known)}")
        if name not in known:
            raise unknown_name("name in --filter", name, known)
        column = rows[known[name]]
        wanted = [value.strip() for value in values.split(",")]
        if name in ("eps", "seed", "examples"):
            try:
                numbers = [float(Fraction(value)) for value in wanted]
            except (ValueError, ZeroDivisionError):
                raise RequestError(f"--filter '{filter_}': {name} must be a number such as 8/255 or 1") from None
            keep = pd.Series(False, index=rows.index)
            for number in numbers:
                keep |= (column - number).abs() < 1e-9
        else:
            keep = column.astype(str).str.lower().isin([value.lower() for value in wanted])
        if not keep.any():
            found = ", ".join(sorted({f"{v:g}" if isinstance(v, float) else str(v) for v in column.dropna()})[:12])
            raise RequestError(f"--filter '{filter_}' matches no row; values: {found}")
        rows = rows[keep]
    return rows


def sort_rows(lines: pd.DataFrame, by: str) -> pd.DataFrame:
    """Sort the lines of every leaderboard by a name of SORTS. Ranks do not change."""
    if by not in SORTS:
        raise unknown_name("column to sort by", by, SORTS)
    ascending = [True] * len(LEADERBOARD_KEYS) + [SORTS[by]]
    return lines.sort_values([*LEADERBOARD_KEYS, by], ascending=ascending, kind="stable")


def default_columns(lines: pd.DataFrame) -> tuple[str, ...]:
    """Return DEFAULT_COLUMNS, with the number of seeds after `combine_seeds`; without columns that hold nothing."""
    chosen: tuple[str, ...] = DEFAULT_COLUMNS
    if "n" in lines:
        chosen = tuple(part for name in chosen for part in ((name, "n") if name == "defense" else (name,)))
    empty = {name for name in ("transfer", "gap", *COSTS) if lines[name].isna().all()}
    empty |= {"flags"} if (lines["flags"] == "").all() else set()
    return tuple(name for name in chosen if name not in empty)


def check_columns(columns: Sequence[str], lines: pd.DataFrame) -> None:
    """Raise RequestError for a name that is not in HEADINGS, or that these lines lack."""
    for name in columns:
        if name not in HEADINGS:
            raise unknown_name("column", name, HEADINGS)
        if name == "n" and "n" not in lines:
            raise RequestError("column 'n' is the number of seeds; add --by defense")


def format_leaderboard(lines: pd.DataFrame, columns: Sequence[str] = DEFAULT_COLUMNS, mark: str = "") -> pd.DataFrame:
    """Format one leaderboard as text with headings; `mark` follows the worst case of the best lines.

    Args:
        columns: names of HEADINGS.

    Raises:
        RequestError: an unknown column.
    """
    check_columns(columns, lines)
    formats: dict[str, Callable[[Any], str]] = {
        **dict.fromkeys(("clean", "worst", "transfer", "gap"), format_percent),
        **dict.fromkeys(("train_seconds", "total_train_seconds"), format_seconds),
        **dict.fromkeys(("train_cpu_seconds", "total_train_cpu_seconds"), format_seconds),
        **dict.fromkeys([name for name in COSTS if name.endswith(("forwards", "flops"))], format_count),
        "flags": lambda flags: format_text(flags).replace(",", ", "),
        "rank": lambda rank: MISSING if pd.isna(rank) else f"{rank:g}",
        "seed": lambda seed: MISSING if pd.isna(seed) else seed if isinstance(seed, str) else f"{seed:g}",
    }
    out = {}
    for name in columns:
        if f"{name}_std" in lines:
            pairs = zip(lines[name].tolist(), lines[f"{name}_std"].tolist(), strict=True)
            values = [f"{format_percent(v)} ± {100 * d:.1f}" if pd.notna(d) else format_percent(v) for v, d in pairs]
        elif name == "ci":
            values = list(map(format_interval, lines["ci_low"].tolist(), lines["ci_high"].tolist()))
        else:
            values = list(map(formats.get(name, format_text), lines[name].tolist()))
        if name == "worst":
            values = [value + (mark if best else "") for value, best in zip(values, lines["best"], strict=True)]
        out[interval_heading(lines) if name == "ci" else HEADINGS[name]] = values
    return pd.DataFrame(out, dtype=object)  # the texts themselves; another type converts each twice


def interval_heading(lines: pd.DataFrame) -> str:
    """Return the heading of the intervals: of combined seeds, they are mean ± standard deviation."""
    several = lines["n"] > 1 if "n" in lines else pd.Series([False])
    return "mean ± std" if several.all() else f"{HEADINGS['ci']} or mean ± std" if several.any() else HEADINGS["ci"]
