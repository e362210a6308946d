"""Write an experiment file that trains the models of a store again and attacks them as their records say."""

from __future__ import annotations

import json
import re
from typing import Any

from robobench.planning.repro_command import ReproCommands, group_by_command

HEADER = """# Trains every model of '{name}' again, and attacks it as its records say:
#   robobench compare study.toml --out NEW-STORE
"""
PLACES = "# Replace the words in capitals by your files: {words}.\n"


def study_text(repro: ReproCommands, name: str) -> str:
    """Return the text of an experiment file for all models of a store that were trained there.

    Args:
        name: of the store, for the first line.
    """
    runs: list[dict[str, Any]] = []
    external = []
    for folder, config in repro.configs.items():
        records = repro.records.get(folder, [])
        for examples in sorted({record["examples"] for record in records}):
            same = [record for record in records if record["examples"] == examples]
            for part in group_by_command(same):
                words = repro.arguments(folder, part, examples=examples)
                if words[0] == "run":
                    runs.append(_values(words[1:]))
        if config["defense"].startswith("external:"):
            external.append(folder)
    runs = _combine_seeds(runs)
    shared = {key: value for key, value in (runs[0] if runs else {}).items() if all(r.get(key) == value for r in runs)}
    own = [{key: value for key, value in run.items() if key not in shared} for run in runs]
    texts = [HEADER.format(name=name)]
    places = sorted({word for run in runs for word in re.findall(r"\b(?:WEIGHTS|FILE|INIT|EXTRA)\b", json.dumps(run))})
    texts += [PLACES.format(words=", ".join(places))] if places else []
    texts += [f"# Not trained here, see `robobench evaluate`: {folder}\n" for folder in external]
    texts.append("\n" + _table(shared))
    texts += [f"\n[[run]]\n{_table(run)}" for run in own if len(runs) > 1]
    return "".join(texts)


def _values(words: list[str]) -> dict[str, Any]:
    """Return the flags of a command as keys and values of the file."""
    out: dict[str, Any] = {"set": {}}
    for flag, text in zip(words[::2], words[1::2], strict=True):
        key = flag.removeprefix("--").replace("-", "_")
        if key == "set":
            setting, _, value = text.partition("=")
            out["set"][setting] = value
        elif key in ("eps", "teacher", "plugin"):
            out.setdefault(key, []).append(text)
        else:
            out[key] = int(text) if text.isdigit() else text
    return out


def _combine_seeds(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs with one entry for runs that differ in their seed only."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        seed = run.pop("seed")
        same = found.setdefault(json.dumps(run, sort_keys=True), {**run, "seeds": []})
        same["seeds"] = sorted({*same["seeds"], seed})
    return list(found.values())


def _table(values: dict[str, Any]) -> str:
    """Write keys and values in TOML, settings last."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if key != "set"]
    for setting, value in values.get("set", {}).items():
        section, _, field = setting.rpartition(".")
        name = section if re.fullmatch(r"[A-Za-z0-9_-]+", section) else json.dumps(section)
        lines.append(f"set.{name}.{field} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"
