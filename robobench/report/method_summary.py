"""The table of a board's front page: a method a line, both protocols side by side, cost and flags."""

from __future__ import annotations

import statistics as numbers
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from robobench.report.formatting import MISSING, budget_texts, flags_of, groups, percent, point, seconds
from robobench.report.leaderboard import BETWEEN
from robobench.report.leaderboard_formats import markdown, markdown_escape
from robobench.results.records import EvaluationRecord
from robobench.results.rows import make_frame, read_records
from robobench.results.statistics import combine_worst_case, compact_letter_display

METHOD = ["model", "preset", "defense", "selection", "precision"]

SETTING = [*METHOD, "config_digest"]  # networks that differ in their seed only


class Point(NamedTuple):
    """A column group: test images, norm, radius, and the attacks with their budgets."""

    examples: int
    norm: str
    eps: float
    effort: str
    transfer_effort: str  # without the precision of the search: transfer examples are always made in float32


def front(place: Path) -> str:
    """Write the front table of a board or store, in Markdown, best white-box worst case first.

    For each norm and number of images the smallest radius is shown, that with the most attacks first. Several seeds:
    mean ± standard deviation of the trainings; one: the 95 % interval over images. Letters say which networks of one
    seed the images tell apart. Transfer leaves out the network the examples were made on.
    """
    records = read_records(place)
    rows = make_frame(records)
    parts = groups(rows[rows["status"] == "ok"], ["dataset", "data_digest"])
    return "\n\n".join(
        _table(part, [r for r in records if r["data_digest"] == part.iloc[0]["data_digest"]]) for part in parts
    )


def _table(rows: pd.DataFrame, records: list[EvaluationRecord]) -> str:
    """Write the table of networks that saw the same images, with its legend."""
    settings = rows.drop_duplicates(SETTING)[SETTING]
    rows = rows.merge(settings.assign(nth=settings.groupby(METHOD, dropna=False).cumcount()), on=SETTING)
    met = ["seed", "weights_digest", "examples", "threat_norm", "threat_eps", "protocol", "source_digest"]
    for column, budgets in (("effort", budget_texts(rows)), ("transfer_effort", rows["attack_budget"].astype(str))):
        rows[column] = rows["attack"] + " (" + budgets + ")"
        by = rows.groupby([*SETTING, *met], dropna=False)[column]
        rows[column] = by.transform(lambda each: BETWEEN.join(sorted(set(each))))
    points = _points(rows)
    methods = list(groups(rows, SETTING))
    several = {name: rows[name].nunique() > 1 for name in METHOD}
    methods.sort(key=lambda m: -(_mean(m, points[0]) or 0.0) if points else 0.0)
    ties = [_ties(records, methods, at) for at in points]
    sources = set(rows["source_digest"].dropna())
    lines = []
    for nth, method in enumerate(methods):
        first = method.iloc[0]
        name = ", ".join(
            str(first[c]) for c in ("defense", *(c for c in METHOD if c != "defense")) if c == "defense" or several[c]
        )
        line = {"defense": markdown_escape(name) + "'" * int(first["nth"]), "seeds": str(method["seed"].nunique())}
        for number, at in enumerate(points):
            letter = _letter(number)
            if at[0] not in [seen[0] for seen in points[:number]]:
                line[f"{letter} clean"] = _spread(method[method["examples"] == at[0]], "clean_accuracy", method)
            line[f"{letter} white-box"] = _worst(method, at, "white-box")
            if ties[number]:
                line[f"{letter} ties"] = ties[number].get(nth, "")
            shown = _worst(method, at, "transfer")
            is_control = shown != MISSING and bool(sources & set(method["weights_digest"]))
            line[f"{letter} transfer"] = shown + ", control" * is_control
        networks = method.drop_duplicates("weights_digest")
        for title, column in (
            ("own s", "train_seconds"),
            ("own CPU s", "train_cpu_seconds"),
            ("whole CPU s", "total_train_cpu_seconds"),
        ):
            line[title] = seconds(pd.to_numeric(networks[column]).mean())
        line["flags"] = _flags(method, points)
        lines.append(line)
    table = markdown(pd.DataFrame(lines).fillna(MISSING))
    legend = [
        f"{_letter(number)}: worst case over {effort} at {point(norm, eps)}, "
        f"{examples} images of {rows.iloc[0]['dataset']} (data {rows.iloc[0]['data_digest']})"
        for number, (examples, norm, eps, effort, _) in enumerate(points)
    ]
    note = (
        "In percent. Several seeds: mean ± standard deviation over trainings; one: 95 % interval over images. Transfer "
        "examples are made on one undefended network, which is left out of that column; what undefended networks of "
        "other seeds keep is the control: what transfer alone is worth."
    )
    if any(ties):
        note += (
            " Ties: networks that share a letter are not told apart by these images (exact McNemar in pairs, "
            "white-box, one seed, Holm-corrected over the column, 5 %); about these networks, not about the methods."
        )
    machine = rows[["hardware", "threads", "compiled"]].drop_duplicates().itertuples(index=False, name=None)
    told = sorted(f"{hardware}, threads: {threads}{', compiled' * bool(on)}" for hardware, threads, on in machine)
    return "\n".join([table, "", *(f"* {line}" for line in legend), "", f"{note} Hardware: {'; '.join(told)}."])


def _letter(number: int) -> str:
    return chr(ord("A") + number)


def _points(rows: pd.DataFrame) -> list[Point]:
    """Choose the columns: for each number of images and norm the smallest radius, under the most attacks."""
    white = rows[rows["protocol"] == "white-box"]
    out = []
    for part in groups(white, ["examples", "threat_norm"]):
        eps, first = part["threat_eps"].min(), part.iloc[0]
        here = part[part["threat_eps"] == eps]
        effort = max(set(here["effort"]), key=lambda e: (e.count(BETWEEN), e))
        transfer_effort = here.loc[here["effort"] == effort, "transfer_effort"].iloc[0]
        point = (int(first["examples"]), str(first["threat_norm"]), float(eps), str(effort), str(transfer_effort))
        out.append(Point(*point))
    return sorted(out, key=lambda p: (-p.effort.count(BETWEEN), -p.examples, p.norm != "Linf", p.eps))


def _at(rows: pd.DataFrame, at: Point) -> pd.DataFrame:
    """Keep the rows of a point's images and radius."""
    return rows[(rows["examples"] == at[0]) & (rows["threat_norm"] == at[1]) & (rows["threat_eps"] == at[2])]


def _networks(method: pd.DataFrame, at: Point, protocol: str) -> pd.DataFrame:
    """One row a network that was measured at a point."""
    found = _at(method, at)
    column = "effort" if protocol == "white-box" else "transfer_effort"
    keep = (found["protocol"] == protocol) & (found[column] == getattr(at, column))
    if protocol == "transfer":
        keep &= found["source_digest"] != found["weights_digest"]
    networks: pd.DataFrame = found[keep].drop_duplicates("weights_digest")
    return networks


def _mean(method: pd.DataFrame, at: Point) -> float | None:
    found = _networks(method, at, "white-box")["worst_case_accuracy"]
    return float(pd.to_numeric(found).mean()) if len(found) else None


def _worst(method: pd.DataFrame, at: Point, protocol: str) -> str:
    found = _networks(method, at, protocol)
    if len(found) == 1:
        low, high = found.iloc[0]["worst_case_ci_low"], found.iloc[0]["worst_case_ci_high"]
        return f"{percent(found.iloc[0]['worst_case_accuracy'])} [{percent(low)}, {percent(high)}]"
    return _spread(found, "worst_case_accuracy", method)


def _spread(found: pd.DataFrame, column: str, method: pd.DataFrame) -> str:
    """Mean over networks, with the standard deviation where there are several, and their number where some lack."""
    values = [float(v) for v in found.drop_duplicates("weights_digest")[column]]
    if not values:
        return MISSING
    mean = percent(numbers.fmean(values))
    some = f" (n = {len(values)})" if 1 < len(values) < method["weights_digest"].nunique() else ""
    return f"{mean} ± {100 * numbers.stdev(values):.1f}{some}" if len(values) > 1 else mean


def _ties(records: list[EvaluationRecord], methods: list[pd.DataFrame], at: Point) -> dict[int, str]:
    """Give the methods (by number) letters: their networks of the lowest seed that all those measured have."""
    found = {nth: _networks(method, at, "white-box") for nth, method in enumerate(methods)}
    found = {nth: network for nth, network in found.items() if len(network)}
    seeds = set.intersection(*(set(network["seed"]) for network in found.values())) if found else set()
    if len(found) < 2 or not seeds:
        return {}
    bits = {}
    for nth, network in found.items():
        one = network[network["seed"] == min(seeds)].iloc[0]
        same = {name: one[name] for name in ("weights_digest", "examples", "threat_norm", "threat_eps", "precision")}
        same |= {"protocol": "white-box", "status": "ok"}
        combined = combine_worst_case(r for r in records if same.items() <= dict(r).items())
        assert combined is not None
        bits[nth] = combined
    return compact_letter_display(bits)


def _flags(method: pd.DataFrame, points: list[Point]) -> str:
    """List flags with the columns or radii they were raised at; one that every cell carries stands alone."""
    places: dict[str, list[str]] = {}
    for number, at in enumerate(points):
        for flag in flags_of(_at(method, at)):
            places.setdefault(flag, []).append(_letter(number))
    shown = {at[:3] for at in points}
    for part in groups(method, ["examples", "threat_norm", "threat_eps"]):
        first = part.iloc[0]
        if (first["examples"], first["threat_norm"], first["threat_eps"]) not in shown:
            for flag in flags_of(part):
                places.setdefault(flag, []).append(f"{point(first['threat_norm'], first['threat_eps'])}")
    each = method["flags"].fillna("").str.split(",")
    networks = method["weights_digest"].nunique()
    told = []
    for flag, where in sorted(places.items()):
        carried = each.map(lambda flags, flag=flag: flag in flags)
        some = method.loc[carried, "weights_digest"].nunique()
        where = [] if carried.all() else list(dict.fromkeys(where))
        where += [f"{some} of {networks} networks"] if some < networks else []
        told.append(f"{flag} ({', '.join(where)})" if where else flag)
    return ", ".join(told) or MISSING
