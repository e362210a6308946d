"""Experiment files: the flags of a run in a TOML file. A list where one value belongs spans a grid. No torch.

    defenses = ["at", "trades"]
    model = ["cnn", "resnet20"]
    seeds = [0, 1, 2]

    [set]
    trades.beta = [3, 6]

Several [[run]] tables are several grids; each has the values above it and its own.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_origin, get_type_hints

from robobench.core.registry import match_name, unknown_name
from robobench.errors import RequestError
from robobench.planning.parsing import ALL_DEFENSES, parse_value
from robobench.planning.request import ExperimentConfig, RunConfig
from robobench.plugins.discovery import add_plugin_file, discover, load_plugin

MAX_REQUESTS = 10_000
LISTS = (
    "defenses",
    "seeds",
    "attacks",
    "eps",
    "teachers",
    "plugins",
    "slurm",
    "track",
)  # hold several values; a list of lists spans
# One value for the whole grid:
FIXED = (
    *("plugins", "data_dir", "out", "device", "devices", "threads", "executor", "address", "gpus_per_task"),
    *("checkpoint_minutes", "overwrite", "slurm", "track"),
)
EXTERNAL = ("external", "weights", "weights_key", "transfer_source", "mean", "std", "name")  # of `evaluate`
TOP_KEYS = ("baseline", "run")  # of the whole file, not of a [[run]] table
SPELLINGS = MappingProxyType(  # of the flags
    {"defense": "defenses", "seed": "seeds", "teacher": "teachers", "plugin": "plugins", "set": "sets"}
)

Axis = tuple[str, str]  # name and value of one coordinate of the grid


@dataclass(frozen=True)
class Point:
    """One request of a grid, and its place in the grid."""

    request: ExperimentConfig
    axes: tuple[Axis, ...] = ()  # of the names that differ between the points; not of defenses and seeds

    @property
    def label(self) -> str:
        """Text such as 'model=cnn, trades.beta=3'; '' in a grid of one point."""
        return ", ".join(f"{name}={value}" for name, value in self.axes)


@dataclass(frozen=True)
class Study:
    """The requests of an experiment file, and the baseline of its paired comparisons."""

    points: tuple[Point, ...]
    baseline: str | None = None


def read_study(file: Path, overrides: Mapping[str, Any] = MappingProxyType({})) -> Study:
    """Read an experiment file.

    Args:
        overrides: fields of ExperimentConfig that replace those of the file. "sets" replaces single settings.

    Raises:
        RequestError: the file is missing or no TOML, a key is unknown, or a value has the wrong type.
    """
    try:
        data = tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise RequestError(f"no experiment file '{file}'; see docs/howto/studies.md for one to start from") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
        raise RequestError(f"'{file}' is not a TOML file: {err}") from None
    runs = data.pop("run", [{}])
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise RequestError(
            f"'{file}': run is a list of tables, written [[run]]; settings belong to [set], as run.FIELD"
        )
    if not runs or (not data and not any(runs)):
        raise RequestError(f"'{file}' holds no keys, or no [[run]]; see docs/howto/studies.md for a file to start from")
    baseline = data.pop("baseline", None)
    if not isinstance(baseline, str | None):
        raise RequestError(f"'{file}': baseline takes the name of a defense, got {baseline!r}")
    tables = [_values(data, file), *(_values(run, file) for run in runs), dict(overrides)]
    for plugin in {str(name) for table in tables for name in _parts("plugins", table.get("plugins", ()))}:
        add_plugin_file(plugin)
    above, *grids = ({**t, "sets": _match_settings(t.get("sets", {}), f"[set] of '{file}'")} for t in tables[:-1])
    last = {**tables[-1], "sets": _match_settings(tables[-1].get("sets", {}), "--set")}
    requests = [r for grid in grids for r in _span(_merge(_merge(above, grid), last), file)]
    if len(requests) > 1 and any(request.overwrite for request, _ in requests):
        raise RequestError(f"--overwrite does not work with '{file}' of {len(requests)} requests; use a new --out")
    texts = [{name: _show(value) for name, value in values.items()} for _, values in requests]
    names = dict.fromkeys(name for values in texts for name in values if name not in ("defenses", "seeds", "out"))
    axes = [name for name in names if len({values.get(name) for values in texts}) > 1]
    points = [
        Point(request, tuple((name, values[name]) for name in axes if name in values))
        for (request, _), values in zip(requests, texts, strict=True)
    ]
    return Study(tuple(points), baseline)


def _match_settings(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return settings NAME.FIELD with the names of plug-ins in their known spelling.

    Raises:
        RequestError: there is no plug-in of that name.
    """
    known = [*discover("defense"), *discover("attack"), "run", ALL_DEFENSES]
    out = {}
    for name, value in settings.items():
        section, _, field = name.rpartition(".")
        head, colon, rest = section.partition(":")
        matched = match_name(head, known)
        if matched not in known:
            raise unknown_name(f"name in {where}", head, known)
        out[f"{matched}{colon}{rest}.{field}"] = value
    return out


def _values(table: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return a table of the file by fields of ExperimentConfig; "sets" as {NAME.FIELD: value}."""
    names = [f.name for f in fields(ExperimentConfig) if f.name not in (*EXTERNAL, "study")]
    known = [*names, *SPELLINGS, *TOP_KEYS]
    out: dict[str, Any] = {}
    for key, value in table.items():
        name = match_name(key, known)
        name = SPELLINGS.get(name, name)
        if name in TOP_KEYS:
            raise RequestError(f"'{file}': {name} belongs to the whole file; write it above the first [[run]]")
        if name not in names:
            raise unknown_name(f"key of '{file}'", key, set(known) - {"sets", "overwrite"})
        if name == "overwrite":
            raise RequestError(f"'{file}': overwrite is a flag of one call; add --overwrite")
        if name in out:
            raise RequestError(f"'{file}' gives {name} twice, as '{key}' too; leave one out")
        out[name] = dict(_flatten(value, file)) if name == "sets" else value
    return out


def _flatten(value: Any, file: Path, before: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flatten(inner, file, f"{before}.{name}" if before else name)
    elif "." not in before:
        raise RequestError(
            f"'{file}': [set] holds NAME.FIELD = VALUE, such as trades.beta = 3, got '{before or value}'"
        )
    else:
        yield before, value


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of both; those of `above` win, settings one by one."""
    sets = {**below.get("sets", {}), **above.get("sets", {})}
    return {**below, **above, "sets": sets}


def _span(grid: dict[str, Any], file: Path) -> Iterator[tuple[ExperimentConfig, dict[str, Any]]]:
    """Iterate over the requests of a grid, each with its values by name, the last name fastest."""
    sets = grid.pop("sets")
    choices: dict[str, list[Any]] = {}  # field, or NAME.FIELD of a setting -> its values
    for name, value in grid.items():
        choices[name] = [_parse(name, one, file) for one in _alternatives(name, value, name in LISTS, file)]
    for name, value in sets.items():
        several = _alternatives(name, value, isinstance(value, list) and _takes_list(name), file)
        choices[name] = [_text(one, f"'{file}': {name}") for one in several]
    count = math.prod(map(len, choices.values()))
    if count > MAX_REQUESTS:
        raise RequestError(f"'{file}' spans {count:,} requests, at most {MAX_REQUESTS:,} are allowed; split the file")
    for chosen in itertools.product(*choices.values()):
        values = dict(zip(choices, chosen, strict=True))
        texts = tuple(f"{name}={values[name]}" for name in sets)
        yield ExperimentConfig(**{name: values[name] for name in grid}, sets=texts, study=file), values


def _alternatives(name: str, value: Any, is_list: bool, file: Path) -> list[Any]:
    """Return the values that a name takes in the grid.

    Args:
        is_list: whether one value is a list, so that only a list of lists spans.
    """
    spans = isinstance(value, list) and (not is_list or (bool(value) and all(isinstance(v, list) for v in value)))
    if value == []:
        raise RequestError(f"'{file}': {name} is an empty list; give a value, or leave the key out")
    if spans and name in FIXED:
        raise RequestError(f"'{file}': {name} takes one value for all runs, got {value}")
    if not spans:
        return [value]
    different = [v for number, v in enumerate(value) if v not in value[:number]]
    if len(different) < len(value):
        raise RequestError(f"'{file}': {name} lists a value twice: {value}")
    return different


def _parse(name: str, value: Any, file: Path) -> Any:
    """Return one value of a field, in the field's type."""
    kind, what = get_type_hints(ExperimentConfig)[name], f"'{file}': {name}"
    if name in LISTS:
        of = int if name == "seeds" else str
        return tuple(parse_value(_text(part, what), of, what) for part in _parts(name, value))
    text = _text(value, what)
    return Path(text) if Path in (kind, *get_args(kind)) else parse_value(text, kind, what)


def _parts(name: str, value: Any) -> list[Any]:
    """Split a text at commas, as the flags do; radii are split later."""
    if isinstance(value, list | tuple):
        return list(value)
    if not isinstance(value, str) or name in ("eps", "teachers", "plugins"):
        return [value]
    return [part.strip() for part in value.split(",") if part.strip()]


def _takes_list(name: str) -> bool:
    """Return whether a setting NAME.FIELD holds several values; raises RequestError for an unknown field."""
    section, _, field = name.rpartition(".")
    plugin = section.partition(":")[0]
    kinds = [kind for kind in ("defense", "attack") if plugin in discover(kind)]
    configs: list[Any]
    if plugin == ALL_DEFENSES:
        configs = [load_plugin("defense", name).Config for name in discover("defense")]
    else:
        configs = [RunConfig if plugin == "run" else load_plugin(kinds[0], plugin).Config]
    hints = {f.name: get_type_hints(config)[f.name] for config in configs for f in fields(config)}
    if field not in hints:
        raise unknown_name(f"field of {section}", field, hints)
    return any(get_origin(kind) is tuple for kind in (hints[field], *get_args(hints[field])))


def _text(value: Any, what: str) -> str:
    """Write a value of the file as a flag's text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and not any(isinstance(part, list | dict) for part in value):
        return ",".join(_text(part, what) for part in value)
    if not isinstance(value, str | int | float | Path):
        raise RequestError(f"{what} takes text, a number, true or false, got {value!r}")
    return repr(value) if isinstance(value, float) else str(value)


def _show(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
