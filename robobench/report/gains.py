"""Every model beside a baseline: accuracy of last and averaged weights, gain with its p-value, cost as a multiple."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from robobench.core.registry import unknown_name
from robobench.errors import RequestError
from robobench.report.by_defense import SEED
from robobench.report.formatting import MISSING, format_percent, format_text, format_threat, training_name
from robobench.report.leaderboard import (
    filter_rows,
    rank_models,
    split_leaderboards,
    unranked_notes,
)
from robobench.report.leaderboard_formats import markdown, markdown_escape, split_table
from robobench.results.records import EvaluationRecord
from robobench.results.rows import make_frame
from robobench.results.statistics import holm, mcnemar
from robobench.results.union import MODEL_AND_IMAGES, WorstCases, one_threat_per_norm, union_of, worst_cases

FORMATS = ("table", "md", "csv", "json")
LEVEL = 0.05
SELECTIONS = {"last": "last", "best": "best", "average": "average", "best-average": "average of best"}  # in this order
RATIOS = {  # cost -> heading
    "total_train_seconds": "time",
    "total_train_cpu_seconds": "CPU time",
    "total_train_forwards": "passes",
    "total_train_flops": "FLOPs",
}
NOTE = (
    "Accuracies in percent; worst: white-box worst case per image. gain over {baseline}: difference of the worst case "
    "to that of {baseline} with the same kind of weights, in percentage points; in brackets the p-value of the exact "
    "McNemar test on the same images, Holm-corrected over the table. This compares trained models, not methods. Costs "
    "are multiples of {baseline}'s, with all models that a training required. A pass of another network, such as an "
    "autoencoder, counts as one of the model."
)


def gain_lines(records: list[EvaluationRecord], baseline: str, filters: Sequence[str] = ()) -> pd.DataFrame:
    """Compare every model with a baseline of the same seed and the same kind of weights.

    Args:
        records: of a store.
        baseline: name of a defense as leaderboards show it.
        filters: NAME=VALUE[,VALUE] each, as in `filter_rows`.

    Returns:
        The lines of `rank_models`, with `gain`, `p`, and the costs as multiples of the baseline's, `NAME_ratio`. `gain`
        is a difference of white-box worst cases and `p` its p-value, Holm-corrected over the leaderboard. Both are
        missing for the baseline, without a baseline, and for a line without a rank.

    Raises:
        RequestError: there are no results, or no model has the baseline's name.
    """
    if not records:
        raise RequestError("no results to compare; run attacks first, such as: robobench compare")
    rows = filter_rows(make_frame(records), filters)
    lines = rank_models(rows)
    own = lines["weights_digest"].isin(set(rows["source_digest"].dropna()))
    lines["transfer"] = lines["transfer"].astype(float).mask(own)  # of its own examples
    lines["defense"] = _names(lines)
    root = lines["defense"].str.replace(SEED, "", regex=True)
    if baseline not in set(root):
        raise unknown_name("baseline", baseline, root)
    lines["_base"] = root == baseline
    outcomes = worst_cases(records)
    parts = [_compare(part.reset_index(drop=True), outcomes) for _, part in split_leaderboards(lines)]
    return pd.concat(parts, ignore_index=True).drop(columns="_base")


def _names(lines: pd.DataFrame) -> list[str]:
    """Return the names of models without their selection: one name for the last and the averaged weights of a training.

    A prime marks another training of the same name.
    """
    names: dict[tuple[Any, ...], str] = {}
    taken: set[tuple[str, str]] = set()
    seen: dict[tuple[Any, ...], dict[str, int]] = {}
    out = []
    for line in lines.to_dict("records"):
        name = training_name(line["defense"], line["selection"])
        setting = (name, line["model"], line["precision"], line["config_digest"])
        weights = seen.setdefault((*setting, line["selection"]), {})
        nth = weights.setdefault(str(line["weights_digest"]), len(weights))  # two trainings with the same settings
        if (*setting, nth) not in names:
            while (name, line["model"]) in taken:
                name += "'"
            taken.add((name, line["model"]))
            names[(*setting, nth)] = name
        out.append(names[(*setting, nth)])
    return out


def _compare(part: pd.DataFrame, outcomes: dict[tuple[Any, ...], WorstCases]) -> pd.DataFrame:
    """Add gain, p-value, cost ratios and the union with other norms to the lines of one leaderboard."""
    here = [outcomes.get(key, {}) for key in part[MODEL_AND_IMAGES].itertuples(index=False, name=None)]
    threat = part.iloc[0]["threat_norm"], part.iloc[0]["threat_eps"]
    same = list(part[["model", "seed", "precision"]].itertuples(index=False, name=None))
    bases: dict[tuple[Any, ...], int] = {}  # (model, seed, precision, selection) -> line of the baseline
    for i in part.index[part["_base"]]:
        bases.setdefault((*same[i], part.loc[i, "selection"]), i)
    gains, raw = dict[int, float](), dict[int, float]()
    costs = {name: part[name].astype(float).tolist() for name in RATIOS}
    ratios = {f"{name}_ratio": [float("nan")] * len(part) for name in RATIOS}
    for i in part.index:
        base = bases.get((*same[i], part.loc[i, "selection"]))
        if base is None:
            continue
        for name in RATIOS:
            if costs[name][base] > 0:
                ratios[f"{name}_ratio"][i] = costs[name][i] / costs[name][base]
        if (part.loc[[i, base], "unranked"] == "").all() and not part.loc[i, "_base"]:
            mine, theirs = here[i][threat], here[base][threat]
            gains[i] = mine.accuracy - theirs.accuracy
            raw[i] = mcnemar(mine.count_lost_in(theirs), theirs.count_lost_in(mine))
    corrected = dict(zip(raw, holm(list(raw.values())), strict=True))
    part = part.assign(gain=pd.Series(gains, dtype=float), p=pd.Series(corrected, dtype=float), **ratios)
    threats = one_threat_per_norm(itertools.chain(*here), threat)
    unions = [union_of(found, threats) if len(threats) > 1 else None for found in here]
    part["union"] = [float("nan") if union is None else union.accuracy for union in unions]
    return part.assign(union_of=", ".join(format_threat(*one) for one in threats) if len(threats) > 1 else "")


def format_gains(part: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Format one leaderboard of `gain_lines` as text: a line for a training, a column for each kind of its weights."""
    kinds = _kinds(part)
    several = part["model"].nunique() > 1

    def heading(name: str, kind: str) -> str:
        return f"{name}, {SELECTIONS[kind]}" if len(kinds) > 1 else name

    out = []
    for _, own in part.groupby(["defense", "model"], sort=False):
        by_kind = {line["selection"]: line for line in own.to_dict("records")}
        first = own.iloc[0]
        line = {"defense": f"{first['defense']} {first['model']}" if several else first["defense"]}
        for name in ("clean", "worst", "union", "transfer"):
            line |= {heading(name, k): format_percent(by_kind[k][name]) if k in by_kind else MISSING for k in kinds}
        line |= {heading(f"gain over {baseline}", k): _format_gain(by_kind.get(k)) for k in kinds}
        for name, title in RATIOS.items():
            ratio = own[f"{name}_ratio"].max()
            line[f"{title} / {baseline}"] = MISSING if pd.isna(ratio) else f"{ratio:.2f}"
        line["flags"] = format_text(",".join(sorted({f for flags in own["flags"] for f in flags.split(",") if f})))
        out.append(line)
    table = pd.DataFrame(out)
    return table.loc[:, [name == "defense" or bool((table[name] != MISSING).any()) for name in table]]


def _kinds(part: pd.DataFrame) -> list[str]:
    """Return the kinds of weights of these lines, in the order of SELECTIONS."""
    found = set(part["selection"])
    return [name for name in SELECTIONS if name in found]


def _union_note(part: pd.DataFrame) -> list[str]:
    """Say what the column of unions holds, if there is one."""
    text = part["union_of"].iloc[0] if part["union"].notna().any() else ""
    return [f"union: images that are correct under every attack at all of {text}"] if text else []


def _format_gain(line: dict[Any, Any] | None) -> str:
    if line is None or pd.isna(line["gain"]):
        return MISSING
    p = f"{line['p']:.2g}" if line["p"] >= 1e-4 else "<1e-4"
    return f"{100 * line['gain']:+.1f} ({p})"


def gain_statements(part: pd.DataFrame, baseline: str) -> list[str]:
    """Say which models are more and less robust than the baseline at p < 0.05, and which are undecided."""
    kinds = _kinds(part)
    out = []
    for kind in kinds:
        some = part[(part["selection"] == kind) & part["p"].notna()]
        significant = some["p"] < LEVEL
        groups = {
            f"more robust than {baseline}": some[significant & (some["gain"] > 0)],
            "less robust": some[significant & (some["gain"] < 0)],
            f"undecided (p >= {LEVEL})": some[~significant],
        }
        texts = [f"{what}: {', '.join(found['defense']) or 'none'}" for what, found in groups.items()]
        out.append((f"{SELECTIONS[kind]}: " if len(kinds) > 1 else "") + "; ".join(texts))
    return out


def gains(records: list[EvaluationRecord], baseline: str, form: str = "table", filters: Sequence[str] = ()) -> str:
    """Write the comparison of all models with a baseline as text, a table for every leaderboard.

    Args:
        form: one of FORMATS.

    Raises:
        RequestError: an unknown format or filter, or no model has the baseline's name.
    """
    if form not in FORMATS:
        raise unknown_name("format with --baseline", form, FORMATS)
    lines = gain_lines(records, baseline, filters)
    if form == "csv":
        return lines.to_csv(index=False)
    if form == "json":
        return json.dumps(json.loads(lines.to_json(orient="records")), indent=1) + "\n"
    console = Console(file=io.StringIO())
    parts, note = [], NOTE.format(baseline=baseline)
    for title, part in split_leaderboards(lines):
        table = format_gains(part, baseline)
        notes = [*_union_note(part), *gain_statements(part, baseline), *unranked_notes(part)]
        if form == "md":
            bullets = "\n".join("* " + markdown_escape(line) for line in notes)
            parts.append(f"**{markdown_escape(title)}**\n\n{markdown(table.map(markdown_escape))}\n\n{bullets}")
        else:
            console.print(Text(title), *split_table(table, console), *map(Text, notes), "")
    if form == "md":
        return "\n\n".join([*parts, markdown_escape(note)]) + "\n"
    console.print(Text(note))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
