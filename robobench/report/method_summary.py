"""The summary table of a README: a row for every method, with both protocols, training cost and flags."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from robobench.report.formatting import (
    MISSING,
    format_budgets,
    format_interval,
    format_percent,
    format_seconds,
    format_threat,
    iter_groups,
    list_flags,
)
from robobench.report.leaderboard import BUDGET_SEPARATOR, HEADINGS
from robobench.report.leaderboard_formats import markdown, markdown_escape
from robobench.results.records import EvaluationRecord
from robobench.results.rows import make_frame, read_records
from robobench.results.statistics import combine_worst_case, compact_letter_display
from robobench.results.union import MODEL_AND_IMAGES, WorstCases, union_of, worst_cases

METHOD_COLUMNS = ["model", "preset", "defense", "selection", "precision"]
SETTING_COLUMNS = [*METHOD_COLUMNS, "config_digest"]  # models with the same values differ in their seed only

NOTE = (
    "Accuracies in percent. One seed: with the 95 % CI over images. Several seeds: mean ± standard deviation over "
    "trainings. n: number of test images. Transfer examples are made on one undefended model, which is left out of the "
    "transfer column. (control): undefended models of other seeds, which show the transfer accuracy without defense."
)
GROUPS_NOTE = (
    " Significance group: models that share a letter do not differ significantly (exact McNemar test of all pairs, "
    "white-box, one seed, Holm-corrected over a column, alpha = 0.05). This compares trained models, not methods."
)


class Threat(NamedTuple):
    """A group of columns: number of test images, norm, radius, and the attacks with their budgets."""

    examples: int
    norm: str
    eps: float
    attacks: str  # "pgd (steps=20); ..."
    transfer_attacks: str  # the same without the search precision: transfer examples are always made in float32

    @property
    def heading(self) -> str:
        """'pgd Linf 8/255 (n = 200)', or '3 attacks Linf 8/255 (n = 200)'."""
        count = self.attacks.count(BUDGET_SEPARATOR) + 1
        name = f"{count} attacks" if count > 1 else self.attacks.partition(" (")[0]
        return f"{name} {format_threat(self.norm, self.eps)} (n = {self.examples})"


def method_summary(place: Path) -> str:
    """Write the summary tables of a store or snapshot in Markdown, with the best white-box worst case first.

    For every norm and number of images, the smallest radius is shown with the largest set of attacks.
    """
    records = read_records(place)
    rows = make_frame(records)
    parts = iter_groups(rows[rows["status"] == "ok"], ["dataset", "data_digest"])
    return "\n\n".join(
        _summarize(part, [r for r in records if r["data_digest"] == part.iloc[0]["data_digest"]]) for part in parts
    )


def short_summary(place: Path) -> str:
    """Write a table of at most 8 columns: the data set with most models, under the strongest attacks at one radius."""
    records = read_records(place)
    rows = make_frame(records)
    parts = iter_groups(rows[rows["status"] == "ok"], ["dataset", "data_digest"])
    rows = _add_attacks(max(parts, key=lambda part: part["weights_digest"].nunique()))
    threat = _select_threats(rows)[0]
    methods = [m for m in iter_groups(rows, SETTING_COLUMNS) if len(_models_at(m, threat, "white-box"))]
    methods.sort(key=lambda method: -(_mean_worst_case(method, threat) or 0.0))
    letters = _significance_groups(
        [r for r in records if r["data_digest"] == rows.iloc[0]["data_digest"]], methods, threat
    )
    sources = set(rows["source_digest"].dropna())
    lines = []
    for number, method in enumerate(methods):
        models = method.drop_duplicates("weights_digest")
        here = method[method["examples"] == threat.examples]
        lines.append(
            {
                "defense": markdown_escape(str(method.iloc[0]["defense"])) + "'" * int(method.iloc[0]["nth"]),
                "clean": _format_spread(here, "clean_accuracy", here),
                "worst case, white-box": _format_worst_case(method, threat, "white-box"),
                "group": letters.get(number, MISSING),
                "transfer": _format_transfer(method, threat, sources),
                **{
                    HEADINGS[name]: format_seconds(pd.to_numeric(models[name]).mean())
                    for name in ("train_cpu_seconds", "total_train_cpu_seconds")
                },
                "flags": ", ".join(list_flags(_rows_at(method, threat, any_count=True))) or MISSING,
            }
        )
    first = rows.iloc[0]
    note = (
        f"{first['dataset']} (data {first['data_digest']}), {first['model']}, {threat.examples} test images, "
        f"{format_threat(threat.norm, threat.eps)}; worst case per image over {threat.attacks}. Accuracies in percent "
        "with the 95 % CI over images, or ± the standard deviation over seeds. group: models that share a letter do "
        "not differ significantly (exact McNemar test, Holm-corrected). transfer: examples made on an undefended "
        f"model, which is left out there; (control): undefended models of other seeds. flags: at this radius, with "
        f"any number of images. Hardware: {', '.join(sorted(set(rows['hardware'].astype(str))))}."
    )
    return "\n".join([markdown(pd.DataFrame(lines)), "", note])


def _summarize(rows: pd.DataFrame, records: list[EvaluationRecord]) -> str:
    """Write the table of all models on the same data, with its legend."""
    rows = _add_attacks(rows)
    threats = _select_threats(rows)
    methods = list(iter_groups(rows, SETTING_COLUMNS))
    methods.sort(key=lambda method: -(_mean_worst_case(method, threats[0]) or 0.0) if threats else 0.0)
    groups = [_significance_groups(records, methods, threat) for threat in threats]
    several = [name for name in METHOD_COLUMNS if name != "defense" and rows[name].nunique() > 1]
    sources = set(rows["source_digest"].dropna())
    unions = _unions(threats)
    found = worst_cases(records) if unions else {}
    lines = []
    for number, method in enumerate(methods):
        first = method.iloc[0]
        name = ", ".join(str(first[c]) for c in ("defense", *several))
        line = {"defense": markdown_escape(name) + "'" * int(first["nth"]), "seeds": str(method["seed"].nunique())}
        for threat, letters in zip(threats, groups, strict=True):
            clean = f"clean (n = {threat.examples})"
            if clean not in line:
                line[clean] = _format_spread(method[method["examples"] == threat.examples], "clean_accuracy", method)
            line[f"{threat.heading}: white-box"] = _format_worst_case(method, threat, "white-box")
            if letters:
                line[f"{threat.heading}: significance group"] = letters.get(number, "")
            line[f"{threat.heading}: transfer"] = _format_transfer(method, threat, sources)
        for heading, same in unions.items():
            line[heading] = _format_union(method, same, found)
        models = method.drop_duplicates("weights_digest")
        for column in ("train_seconds", "train_cpu_seconds", "total_train_cpu_seconds"):
            line[HEADINGS[column]] = format_seconds(pd.to_numeric(models[column]).mean())
        line["flags"] = _format_flags(method, threats)
        lines.append(line)
    data = f"on {rows.iloc[0]['dataset']} (data {rows.iloc[0]['data_digest']})"
    legend = [f"* {threat.heading}: worst case per image over {threat.attacks}, {data}" for threat in threats]
    machines = rows[["hardware", "threads", "compiled"]].drop_duplicates().itertuples(index=False, name=None)
    hardware = sorted(f"{name}, threads: {threads}{', compiled' * bool(on)}" for name, threads, on in machines)
    note = NOTE + GROUPS_NOTE * any(groups) + f" Hardware: {'; '.join(hardware)}."
    return "\n".join([markdown(pd.DataFrame(lines).fillna(MISSING)), "", *legend, "", note])


def _unions(threats: list[Threat]) -> dict[str, list[Threat]]:
    """Return the threats of different norms on the same images, by the heading of their union."""
    out: dict[str, list[Threat]] = {}
    for examples in dict.fromkeys(threat.examples for threat in threats):
        same = [threat for threat in threats if threat.examples == examples]
        if len(same) > 1:
            names = " and ".join(format_threat(threat.norm, threat.eps) for threat in same)
            out[f"union of {names} (n = {examples}): white-box"] = same
    return out


def _format_union(method: pd.DataFrame, threats: list[Threat], found: dict[tuple[Any, ...], WorstCases]) -> str:
    """Format the accuracy under the attacks of several threats at once, for the models that met all of them."""
    models = method[method["examples"] == threats[0].examples].drop_duplicates("weights_digest")
    at = [(threat.norm, threat.eps) for threat in threats]
    unions = [union_of(found.get(key, {}), at) for key in models[MODEL_AND_IMAGES].itertuples(index=False, name=None)]
    known = [union for union in unions if union is not None]
    if len(known) == 1:
        return f"{format_percent(known[0].accuracy)} {format_interval(*known[0].interval)}"
    values = pd.DataFrame({"weights_digest": range(len(known)), "union": [union.accuracy for union in known]})
    return _format_spread(values, "union", method)


def _add_attacks(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the attacks behind every worst case, and `nth`: the number of a method among those of the same name."""
    settings = rows.drop_duplicates(SETTING_COLUMNS)[SETTING_COLUMNS]
    nth = settings.groupby(METHOD_COLUMNS, dropna=False).cumcount()
    rows = rows.merge(settings.assign(nth=nth), on=SETTING_COLUMNS)
    at = ["seed", "weights_digest", "examples", "threat_norm", "threat_eps", "protocol", "source_digest"]
    for column, budgets in (("used", format_budgets(rows)), ("transfer_used", rows["attack_budget"].astype(str))):
        rows[column] = rows["attack"] + " (" + budgets + ")"
        by = rows.groupby([*SETTING_COLUMNS, *at], dropna=False)[column]
        rows[column] = by.transform(lambda each: BUDGET_SEPARATOR.join(sorted(set(each))))
    return rows


def _select_threats(rows: pd.DataFrame) -> list[Threat]:
    """Select for every number of images and norm the smallest radius with the most attacks."""
    out = []
    for part in iter_groups(rows[rows["protocol"] == "white-box"], ["examples", "threat_norm"]):
        eps, first = part["threat_eps"].min(), part.iloc[0]
        here = part[part["threat_eps"] == eps]
        attacks = max(set(here["used"]), key=lambda used: (used.count(BUDGET_SEPARATOR), used))
        transfer_attacks = here.loc[here["used"] == attacks, "transfer_used"].iloc[0]
        out.append(
            Threat(int(first["examples"]), str(first["threat_norm"]), float(eps), str(attacks), str(transfer_attacks))
        )
    return sorted(out, key=lambda t: (-t.attacks.count(BUDGET_SEPARATOR), -t.examples, t.norm != "Linf", t.eps))


def _rows_at(rows: pd.DataFrame, threat: Threat, *, any_count: bool = False) -> pd.DataFrame:
    """Return the rows of a threat's radius and number of images, or of any number of images."""
    at = (rows["threat_norm"] == threat.norm) & (rows["threat_eps"] == threat.eps)
    return rows[at & (any_count | (rows["examples"] == threat.examples))]


def _models_at(method: pd.DataFrame, threat: Threat, protocol: str) -> pd.DataFrame:
    """Return one row for every model that was evaluated under a threat, without the transfer source under transfer."""
    rows = _rows_at(method, threat)
    used = (
        rows["used"] == threat.attacks if protocol == "white-box" else rows["transfer_used"] == threat.transfer_attacks
    )
    keep = (rows["protocol"] == protocol) & used & rows["worst_case_accuracy"].notna()
    if protocol == "transfer":
        keep &= rows["source_digest"] != rows["weights_digest"]
    models: pd.DataFrame = rows[keep].drop_duplicates("weights_digest")
    return models


def _mean_worst_case(method: pd.DataFrame, threat: Threat) -> float | None:
    found = _models_at(method, threat, "white-box")["worst_case_accuracy"]
    return float(pd.to_numeric(found).mean()) if len(found) else None


def _format_worst_case(method: pd.DataFrame, threat: Threat, protocol: str) -> str:
    """Format the worst case with its 95 % CI for one model, or with the standard deviation for several."""
    found = _models_at(method, threat, protocol)
    if len(found) == 1:
        row = found.iloc[0]
        interval = format_interval(row["worst_case_ci_low"], row["worst_case_ci_high"])
        return f"{format_percent(row['worst_case_accuracy'])} {interval}"
    return _format_spread(found, "worst_case_accuracy", method)


def _format_transfer(method: pd.DataFrame, threat: Threat, sources: set[str]) -> str:
    """Format transfer accuracy; '(control)' marks undefended models of other seeds than the source."""
    transfer = _format_worst_case(method, threat, "transfer")
    is_control = transfer != MISSING and bool(sources & set(method["weights_digest"]))
    return transfer + " (control)" * is_control


def _format_spread(found: pd.DataFrame, column: str, method: pd.DataFrame) -> str:
    """Format the mean over models and the standard deviation; with the number of models if some were not evaluated."""
    values = [float(v) for v in found.drop_duplicates("weights_digest")[column]]
    if not values:
        return MISSING
    mean = format_percent(statistics.fmean(values))
    some = f" ({len(values)} seeds)" if 1 < len(values) < method["weights_digest"].nunique() else ""
    return f"{mean} ± {100 * statistics.stdev(values):.1f}{some}" if len(values) > 1 else mean


def _significance_groups(
    records: list[EvaluationRecord], methods: list[pd.DataFrame], threat: Threat
) -> dict[int, str]:
    """Return the letters of every method (by its number), from models of the lowest seed that all methods have."""
    found = {number: _models_at(method, threat, "white-box") for number, method in enumerate(methods)}
    found = {number: models for number, models in found.items() if len(models)}
    seeds = set.intersection(*(set(models["seed"]) for models in found.values())) if found else set()
    if len(found) < 2 or not seeds:
        return {}
    outcomes = {}
    for number, models in found.items():
        one = models[models["seed"] == min(seeds)].iloc[0]
        same = {name: one[name] for name in ("weights_digest", "examples", "threat_norm", "threat_eps", "precision")}
        same |= {"protocol": "white-box", "status": "ok"}
        combined = combine_worst_case(r for r in records if same.items() <= dict(r).items())
        assert combined is not None
        outcomes[number] = combined
    return compact_letter_display(outcomes)


def _format_flags(method: pd.DataFrame, threats: list[Threat]) -> str:
    """List flags with the threats and the number of models that have them; a flag of all rows stands alone."""
    first = [(t.examples, t.norm, t.eps) for t in threats]
    rest = method[["examples", "threat_norm", "threat_eps"]].drop_duplicates().itertuples(index=False, name=None)
    places: dict[str, list[str]] = {}
    for examples, norm, eps in dict.fromkeys([*first, *rest]):
        at = (method["examples"] == examples) & (method["threat_norm"] == norm) & (method["threat_eps"] == eps)
        for flag in list_flags(method[at]):
            places.setdefault(flag, []).append(f"{format_threat(norm, eps)}, n = {examples}")
    flags_of_rows = method["flags"].fillna("").str.split(",")
    models = method["weights_digest"].nunique()
    out = []
    for flag, where in sorted(places.items()):
        has_flag = flags_of_rows.map(lambda flags, flag=flag: flag in flags)
        count = method.loc[has_flag, "weights_digest"].nunique()
        details = [] if has_flag.all() else where
        details += [f"{count} of {models} models"] if count < models else []
        out.append(f"{flag} ({'; '.join(details)})" if details else flag)
    return ", ".join(out) or MISSING
