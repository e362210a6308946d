"""The table of a board's front page: a method a line, both protocols side by side, cost and flags."""

from __future__ import annotations

import statistics as numbers
from pathlib import Path
from typing import Any

import pandas as pd

from robobench import results
from robobench.report.board import BETWEEN
from robobench.report.formats import markdown, markdown_escape
from robobench.report.text import MISSING, flags_of, groups, is_reduced, percent, point, seconds
from robobench.statistics import WORST, pairs

METHOD = ["model", "preset", "defense", "selection", "precision"]
SETTING = [*METHOD, "config_digest"]  # networks that differ in their seed only


def front(place: Path) -> str:
    """Write the front table of a board or store, in Markdown, best white-box worst case first.

    For each norm and number of images the smallest radius is shown. Several seeds: mean ± standard deviation of the
    trainings; one: the 95 % interval over images. Transfer leaves out the network the examples were made on. `p`
    compares the first line's network with each other one of the same seed, image by image.
    """
    records = results.records(place)
    rows = results.frame(records)
    parts = groups(rows[rows["status"] == "ok"], ["dataset", "data_digest"])
    return "\n\n".join(
        _table(part, [r for r in records if r["data_digest"] == part.iloc[0]["data_digest"]]) for part in parts
    )


def _table(rows: pd.DataFrame, records: list[dict[str, Any]]) -> str:
    """Write the table of networks that saw the same images, with its legend."""
    settings = rows.drop_duplicates(SETTING)[SETTING]
    rows = rows.merge(settings.assign(nth=settings.groupby(METHOD, dropna=False).cumcount()), on=SETTING)
    said = rows["attack"] + ": " + rows["budget"].astype(str)
    met = ["seed", "weights_digest", "examples", "threat_norm", "threat_eps", "protocol", "source_digest"]
    by = rows.assign(effort=said).groupby([*SETTING, *met], dropna=False)["effort"]
    rows["effort"] = by.transform(lambda each: BETWEEN.join(sorted(set(each))))
    points = _points(rows)
    methods = list(groups(rows, SETTING))
    several = {name: rows[name].nunique() > 1 for name in METHOD}
    methods.sort(key=lambda m: -(_mean(m, points[0]) or 0.0) if points else 0.0)
    alike = not any(several[c] for c in METHOD if c != "defense")
    p = _p_values(records, methods, points[0]) if alike and points else {}
    lines = []
    for method in methods:
        first = method.iloc[0]
        name = ", ".join(
            str(first[c]) for c in ("defense", *(c for c in METHOD if c != "defense")) if c == "defense" or several[c]
        )
        line = {"defense": markdown_escape(name) + "'" * int(first["nth"]), "seeds": str(method["seed"].nunique())}
        line["clean"] = _spread(method, "clean_accuracy")
        for number, at in enumerate(points):
            for protocol in ("white-box", "transfer"):
                line[f"{_letter(number)} {protocol}"] = _worst(method, at, protocol)
            if number == 0 and p:
                line["p"] = next((p[digest] for digest in method["weights_digest"] if digest in p), "")
        networks = method.drop_duplicates("weights_digest")
        for title, column in (
            ("own s", "own_seconds"),
            ("own CPU s", "own_cpu_seconds"),
            ("whole CPU s", "whole_cpu_seconds"),
        ):
            line[title] = seconds(pd.to_numeric(networks[column]).mean())
        line["flags"] = ", ".join(flags_of(method)) or MISSING
        lines.append(line)
    table = markdown(pd.DataFrame(lines).fillna(MISSING))
    legend = [
        f"{_letter(number)}: worst case over {_attacks(effort)} at {point(norm, eps)}, "
        f"{examples} images of {rows.iloc[0]['dataset']} (data {rows.iloc[0]['data_digest']})"
        for number, (examples, norm, eps, effort) in enumerate(points)
    ]
    note = (
        "In percent. Several seeds: mean ± standard deviation over trainings; one: 95 % interval over images. Transfer "
        "examples are made on one undefended network, which is left out of that column."
    )
    if p:
        note += (
            " p: exact McNemar against the first line, A white-box, networks of one seed, Holm-corrected; about these "
            "networks, not about the methods."
        )
    hardware = "; ".join(sorted({str(h) for h in rows["hardware"].dropna()}))
    return "\n".join([table, "", *(f"* {line}" for line in legend), "", f"{note} Hardware: {hardware}."])


Point = tuple[int, str, float, str]  # images, norm, radius, attacks of the worst case with their budgets


def _letter(number: int) -> str:
    return chr(ord("A") + number)


def _attacks(effort: str) -> str:
    """List the attacks of a point, with their budgets where these are reduced or rounded."""
    parts = (part.split(": ", 1) for part in effort.split(BETWEEN))
    return ", ".join(f"{attack} ({b})" if is_reduced(b) or "bfloat16" in b else attack for attack, b in parts)


def _points(rows: pd.DataFrame) -> list[Point]:
    """Choose the columns: for each number of images and norm the smallest radius, under the most attacks."""
    white = rows[rows["protocol"] == "white-box"]
    out = []
    for part in groups(white, ["examples", "threat_norm"]):
        eps, first = part["threat_eps"].min(), part.iloc[0]
        effort = max(set(part.loc[part["threat_eps"] == eps, "effort"]), key=lambda e: (e.count(BETWEEN), e))
        out.append((int(first["examples"]), str(first["threat_norm"]), float(eps), str(effort)))
    return sorted(out, key=lambda p: (-p[0], p[1] != "Linf", p[2]))


def _networks(method: pd.DataFrame, at: Point, protocol: str) -> pd.DataFrame:
    """One row a network that was measured at a point."""
    examples, norm, eps, effort = at
    keep = (method["examples"] == examples) & (method["threat_norm"] == norm) & (method["threat_eps"] == eps)
    keep &= (method["protocol"] == protocol) & (method["effort"] == effort)
    if protocol == "transfer":
        keep &= method["source_digest"] != method["weights_digest"]
    return method[keep].drop_duplicates("weights_digest")


def _mean(method: pd.DataFrame, at: Point) -> float | None:
    found = _networks(method, at, "white-box")["worst_case_accuracy"]
    return float(pd.to_numeric(found).mean()) if len(found) else None


def _worst(method: pd.DataFrame, at: Point, protocol: str) -> str:
    found = _networks(method, at, protocol)
    if len(found) == 1:
        low, high = found.iloc[0]["worst_case_ci_low"], found.iloc[0]["worst_case_ci_high"]
        return f"{percent(found.iloc[0]['worst_case_accuracy'])} [{percent(low)}, {percent(high)}]"
    return _spread(found, "worst_case_accuracy")


def _spread(found: pd.DataFrame, column: str) -> str:
    """Mean over networks, with the standard deviation where there are several; of most images where that differs."""
    if found.empty:
        return MISSING
    found = found.sort_values("examples", ascending=False, kind="stable").drop_duplicates("weights_digest")
    values = [float(v) for v in found[column]]
    mean = percent(numbers.fmean(values))
    return f"{mean} ± {100 * numbers.stdev(values):.1f}" if len(values) > 1 else mean


def _p_values(records: list[dict[str, Any]], methods: list[pd.DataFrame], at: Point) -> dict[str, str]:
    """Compare the first method's network with the others of its lowest seed at a point: p by weights digest."""
    examples, norm, eps, _ = at
    first = methods[0].sort_values("seed", kind="stable").iloc[0]
    same = [r for r in records if r["examples"] == examples and r["seed"] == first["seed"]]
    named = [{**r, "defense": r["weights_digest"], "selection": "last"} for r in same]  # each network by itself
    found = pairs(named, str(first["weights_digest"]))
    return {pair.network: f"{pair.p:.2g}" for pair in found if pair.column == (WORST, norm, eps)}
