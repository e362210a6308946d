"""The command that reproduces the rows of a stored model. It spells out every value that differs from the preset."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from robobench.core.numbers import format_radius
from robobench.errors import RequestError
from robobench.planning.presets import plugin_preset, preset_values
from robobench.planning.request import RunConfig
from robobench.plugins.discovery import discover, load_attack, load_plugin
from robobench.results.records import EvaluationRecord, source_keys
from robobench.store.artifacts import Store
from robobench.training.config import unused_services


class RecordWithRecipe(EvaluationRecord):
    """An evaluation record, and the recipe that its key is the hash of."""

    recipe: dict[str, Any]


def format_value(value: Any) -> str:
    """Write a value in the form that `--set` parses."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(format_value, value))
    return repr(value) if isinstance(value, float) else str(value)


def json_roundtrip(value: Any) -> Any:
    """Return a value as it comes back from JSON."""
    return json.loads(json.dumps(value))


def non_default_settings(kind: str, name: str, config: dict[str, Any], preset: str, model: str) -> list[str]:
    """Return NAME.FIELD=VALUE for every field of a plug-in's config that differs from its preset.

    For a plug-in that is not installed here, every field is returned.
    """
    given: dict[str, Any] = {}
    try:
        cls = load_plugin(kind, name.partition(":")[0])
        in_name = {cls.spec_field} if kind == "attack" else set()  # set by the name itself, as in transfer:FILE
        config = unused_services(cls.Config) | config  # config.json leaves them out
        config = {f.name: config[f.name] for f in fields(cls.Config) if f.init and f.name in config.keys() - in_name}
        values = plugin_preset(cls, preset, model)
        given = json_roundtrip(asdict(cls.Config(**values)))
    except (RequestError, TypeError, ValueError):
        pass
    return [
        f"{name}.{field}={format_value(value)}" for field, value in config.items() if given.get(field, ...) != value
    ]


def group_by_command(records: list[RecordWithRecipe]) -> list[list[RecordWithRecipe]]:
    """Split a model's records into lists that one command can make: one config per attack, one norm."""
    parts: list[list[RecordWithRecipe]] = [[]]
    for record in records:
        part = next((part for part in parts if all(_fit_together(record, other) for other in part)), None)
        if part is None:
            parts.append(part := [])
        part.append(record)
    return parts


def _fit_together(one: RecordWithRecipe, other: RecordWithRecipe) -> bool:
    first, second = one["recipe"], other["recipe"]
    if any(one[key] != other[key] for key in ("precision", "threads")):
        return False
    if any(one.get(key) != other.get(key) for key in ("eot", "verdict", "bpda")):
        return False
    if first["eval_batch_size"] != second["eval_batch_size"]:
        return False
    sources = first["transfer_source"], second["transfer_source"]
    if None not in sources and sources[0] != sources[1]:
        return False
    if one["attack"] == other["attack"] and first["attack"]["config"] != second["attack"]["config"]:
        return False
    return one["threat_norm"] == other["threat_norm"] or any(_fixed_norm(record["attack"]) for record in (one, other))


def _fixed_norm(attack: str) -> str | None:
    try:
        norm: str | None = load_attack(attack.partition(":")[0]).fixed_norm
    except RequestError:  # a plug-in that is not installed here
        return None
    return norm


class ReproCommands:
    """Commands for the models of one store.

    Args:
        keys: of the records to read; default: all.

    Raises:
        ArtifactError: a model's config or timing is damaged.
    """

    def __init__(self, root: Path, keys: Iterable[str] | None = None) -> None:
        self.store = Store(root)
        self.configs = {}
        for folder in self.store.iter_artifacts("model"):
            self.store.verify(folder, "config.json", "timing.json")
            self.configs[folder.name] = json.loads((folder / "config.json").read_text())
        self.records: dict[str, list[RecordWithRecipe]] = {}  # by folder of the model
        names = (self.store.folder("evaluations", key) for key in sorted(keys)) if keys is not None else None
        for folder in names or self.store.iter_artifacts("evaluations"):
            record = json.loads((folder / "record.json").read_text())
            record["recipe"] = self.store.manifest(folder)["recipe"]
            self.records.setdefault(record["training"], []).append(record)

    def command(self, name: str, *, examples: int) -> str:
        """Return the command that trains the model in folder `name` and attacks it as its records say.

        It has several lines if no single command makes all records.

        Args:
            examples: number of test images of the records.
        """
        records = [r for r in self.records.get(name, []) if r["examples"] == examples]
        lines = [self.arguments(name, part, examples=examples) for part in group_by_command(records)]
        return "\n".join(shlex.join(["robobench", *words]) for words in lines)

    def arguments(self, name: str, records: list[RecordWithRecipe], *, examples: int) -> list[str]:
        """Return the arguments of the command for some records of a model."""
        config = self.configs[name]
        preset, model = config["preset"], config["spec"]["name"]
        external = config["defense"].startswith("external:")
        if external:
            flags = ["evaluate", "WEIGHTS", "--model", model]
            flags += ["--mean", format_value(config["spec"]["mean"]), "--std", format_value(config["spec"]["std"])]
        else:
            flags = ["run", "--defense", config["defense"], "--model", model]
        used = [] if external else [("defense", config["defense"])]
        used += [("attack", record["attack"].partition(":")[0]) for record in records]
        flags += [] if all(_is_installed(*plugin) for plugin in set(used)) else ["--plugin", "FILE"]
        first = records[0] if records else config
        flags += ["--dataset", config["dataset"], "--preset", preset, "--threads", str(first["threads"])]
        flags += ["--devices", str(config["devices"])] if config["devices"] > 1 else []
        until = records[0]["recipe"].get("until") if records else None
        flags += ["--examples", str(records[0]["population"] if until else examples)]
        flags += ["--until", f"{until:g}"] if until else []
        sets = self._run_settings(config, records)
        flags += ["--precision", first["precision"]]
        flags += [word for key in ("eot", "verdict") if key in first for word in (f"--{key}", str(first[key]))]
        flags += ["--bpda", "MODEL=WEIGHTS"] if "bpda" in first else []
        if not external:
            flags += ["--seed", str(config["seed"])]
            flags += ["--compile", "on" if config["compiled"] else "off"]
            flags += self._training_flags(name, records, sets)
        flags += _attack_flags(records, sets, preset, model, external=external)
        for text in dict.fromkeys(sets):
            flags += ["--set", text]
        return flags

    def _run_settings(self, config: dict[str, Any], records: list[RecordWithRecipe]) -> list[str]:
        """Return run.FIELD=VALUE for every run setting that differs from the preset."""
        spec, preset = config["spec"], config["preset"]
        usual = json_roundtrip(asdict(RunConfig(**preset_values(preset, spec["name"], "run"))))
        if ":" in config["dataset"]:  # the default is the size of the data
            usual["image_size"] = usual["attack_resolution"] = None
        used = {
            "image_size": spec["image_size"],
            "attack_resolution": config["resolution"],
            "interpolation": spec["interpolation"],
            "pretrained": spec["pretrained"],
            "train_images": config["train_images"],
            "held_out": config["held_out"],
            **({"extra_fraction": config["extra_fraction"]} if "extra" in config else {}),
            "eval_batch_size": records[0]["recipe"]["eval_batch_size"] if records else usual["eval_batch_size"],
        }
        if config["sync_batchnorm"]:
            used["sync_batchnorm"] = True
        if spec["stem"] != "native" or spec["name"].startswith("timm:"):  # other models have one stem only
            used["stem"] = spec["stem"]
        sources = [self.configs[name]["defense"] for name in self._source_folders(records)]
        if config["defense"].startswith("external:"):
            del used["train_images"], used["held_out"], used["pretrained"]
        elif sources:
            used["transfer_source"] = sources[0]
            used["transfer_seeds"] = max(len(source_keys(record["recipe"])) for record in records)
            # Another model to train, unless this one is the baseline itself.
            used["baseline_control"] = any(record["is_control"] for record in records)
        selections = {record["selection"] for record in records}
        if selections != {"last"}:
            several = "both" if selections == {"last", "best"} else "all"
            used["selection"] = next(iter(selections)) if len(selections) == 1 else several
        return [f"run.{field}={format_value(value)}" for field, value in used.items() if usual[field] != value]

    def _source_folders(self, records: list[RecordWithRecipe]) -> list[str]:
        """Return the folders of the records' transfer sources."""
        keys = {key for record in records for key in source_keys(record["recipe"])}
        return [name for name, config in self.configs.items() if config["key"] in keys]

    def _training_flags(self, name: str, records: list[RecordWithRecipe], sets: list[str]) -> list[str]:
        """Return flags for teachers and training threat; add the settings of all models that are trained to `sets`."""
        timing = json.loads((self.store.folder("model", name) / "timing.json").read_text())
        threat = None
        for other in dict.fromkeys([name, *timing["required"], *self._source_folders(records)]):
            config = self.configs.get(other)
            if config is None or config["defense"].startswith("external:"):
                continue
            threat = threat or config["threat"]
            sets += non_default_settings(
                "defense", config["defense"], config["config"], config["preset"], config["spec"]["name"]
            )
        given = [role for role, seen in timing["teachers"].items() if seen["network"].startswith("external:")]
        teachers = [text for role in given for text in ("--teacher", f"{role}=WEIGHTS")]
        starts = self.configs[name]
        teachers += [text for flag in ("init", "extra") if flag in starts for text in (f"--{flag}", flag.upper())]
        if threat is None:
            return teachers
        if threat["eps"] is None:  # several norms: Linf:8/255,L1:12
            norms, radii = zip(*(part.split(":") for part in threat["norm"].split(",")), strict=True)
            return [*teachers, "--train-norm", ",".join(norms), "--train-eps", ",".join(radii)]
        return [*teachers, "--train-norm", threat["norm"], "--train-eps", format_radius(threat["eps"])]


def _is_installed(kind: str, name: str) -> bool:
    """Return whether a plug-in is found without `--plugin`. No record says where its file is."""
    found = discover(kind).get(name)
    return found is not None and not found.origin.endswith(".py")


def _attack_flags(
    records: list[RecordWithRecipe], sets: list[str], preset: str, model: str, *, external: bool
) -> list[str]:
    """Return flags for attacks, radii and protocol; add the attacks' settings to `sets`."""
    attacks = {record["attack"]: record["recipe"]["attack"]["config"] for record in records}
    for attack, config in sorted(attacks.items()):
        sets += non_default_settings("attack", attack, config, preset, model)
    flags = ["--attacks", ",".join(sorted(attacks))] if attacks else []
    norms = sorted({record["threat_norm"] for record in records}, reverse=True)
    if norms:
        flags += ["--norm", norms[0]]
    for norm in norms:
        radii = sorted({record["threat_eps"] for record in records if record["threat_norm"] == norm})
        flags += ["--eps", f"{norm}:{','.join(map(format_radius, radii))}"]
    protocols = {record["protocol"] for record in records}
    if external:
        count = max((len(source_keys(record["recipe"])) for record in records), default=0)
        return flags + ["--transfer-source", "MODEL=WEIGHTS"] * count
    return [*flags, "--protocol", "both" if len(protocols) == 2 else protocols.pop()] if protocols else flags
