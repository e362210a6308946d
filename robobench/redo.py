"""The command that makes a stored network's rows again: every value that differs from its preset, spelled out."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from robobench import plugins, presets
from robobench.errors import RequestError
from robobench.radius import eps_text
from robobench.request import RunValues
from robobench.store import Store


def spelled(value: Any) -> str:
    """Spell a value as `--set` reads it back."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(spelled, value))
    return repr(value) if isinstance(value, float) else str(value)


def plain(value: Any) -> Any:
    """Give a value the form it has after JSON."""
    return json.loads(json.dumps(value))


def changes(kind: str, name: str, config: dict[str, Any], preset: str, model: str) -> list[str]:
    """List NAME.FIELD=VALUE of every field of a plug-in's config that its preset does not give by itself."""
    given: dict[str, Any] = {}
    try:
        cls = plugins.load(kind, name.partition(":")[0])
        told = {cls.argument} if kind == "attack" else set()  # by the name itself, as in transfer:FILE
        config = {f.name: config[f.name] for f in fields(cls.Config) if f.init and f.name in config.keys() - told}
        values = presets.merged(preset, model, "recipe") if kind == "defense" else {}
        for layer in presets.layers(preset, model):
            values.update(cls.presets.get(layer, {}))
        given = plain(asdict(cls.Config(**values)))
    except (RequestError, TypeError, ValueError):
        pass  # a stranger's plug-in that is not here: every field is spelled out
    return [f"{name}.{field}={spelled(value)}" for field, value in config.items() if given.get(field, ...) != value]


def radius(eps: float) -> str:
    """Spell a radius so that it is read back to the last bit."""
    from robobench.threat import parse_eps

    return eps_text(eps) if parse_eps(eps_text(eps), "L2") == eps else repr(eps)


def together(cells: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Cut a network's cells into lists that one command makes: one config of each attack, one norm of those without."""
    parts: list[list[dict[str, Any]]] = [[]]
    for cell in cells:
        part = next((part for part in parts if all(_agree(cell, other) for other in part)), None)
        if part is None:
            parts.append(part := [])
        part.append(cell)
    return parts


def _agree(one: dict[str, Any], other: dict[str, Any]) -> bool:
    first, second = one["recipe"], other["recipe"]
    if any(one[key] != other[key] for key in ("precision", "threads")) or first["chunk"] != second["chunk"]:
        return False
    if None not in (first["source"], second["source"]) and first["source"] != second["source"]:
        return False
    if one["attack"] == other["attack"] and first["attack"]["config"] != second["attack"]["config"]:
        return False
    return one["threat_norm"] == other["threat_norm"] or any(_own_norm(cell["attack"]) for cell in (one, other))


def _own_norm(attack: str) -> str | None:
    try:
        norm: str | None = plugins.load_attack(attack.partition(":")[0]).own_norm
    except RequestError:  # a stranger's plug-in that is not here
        return None
    return norm


class Redo:
    """Commands for the networks of one store; raises ArtifactError where one of them is damaged."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.configs = {}
        for folder in self.store.manifests("model"):
            self.store.verify(folder, "config.json", "timing.json")
            self.configs[folder.name] = json.loads((folder / "config.json").read_text())
        self.cells: dict[str, list[dict[str, Any]]] = {}
        for folder in self.store.manifests("evaluations"):
            record = json.loads((folder / "record.json").read_text())
            record["recipe"] = self.store.manifest(folder)["recipe"]
            self.cells.setdefault(record["training"], []).append(record)

    def command(self, name: str, *, examples: int) -> str:
        """Return the command that trains the network in folder `name` again and attacks it as its records say.

        It is several lines where no single command makes all cells.
        """
        cells = [r for r in self.cells.get(name, []) if r["examples"] == examples]
        lines = [self.words(name, part, examples=examples) for part in together(cells)]
        return "\n".join(shlex.join(["robobench", *words]) for words in lines)

    def words(self, name: str, cells: list[dict[str, Any]], *, examples: int) -> list[str]:
        """Return the words of the command for some cells of a network, after the program's name."""
        config = self.configs[name]
        preset, model = config["preset"], config["spec"]["name"]
        if config["defense"].startswith("external:"):
            flags = ["evaluate", "WEIGHTS", "--model", model]
            flags += ["--mean", spelled(config["spec"]["mean"]), "--std", spelled(config["spec"]["std"])]
        else:
            flags = ["run", "--defense", config["defense"], "--model", model]
        used = [("defense", config["defense"])] if flags[0] == "run" else []
        used += [("attack", cell["attack"].partition(":")[0]) for cell in cells]
        flags += [] if all(self._installed(*plugin) for plugin in used) else ["--plugin", "FILE"]
        first = cells[0] if cells else config
        flags += ["--dataset", config["dataset"], "--preset", preset, "--threads", str(first["threads"])]
        flags += ["--devices", str(config["devices"])] if config["devices"] > 1 else []
        flags += ["--examples", str(examples)]
        sets = self._run_values(config, cells)
        flags += ["--precision", first["precision"]]
        if flags[0] == "run":
            flags += ["--seed", str(config["seed"])]
            flags += ["--compile", "on" if config["compiled"] else "off"]
            flags += self._trainings(name, cells, sets)
        flags += self._attacks(cells, sets, preset, model, external=flags[0] == "evaluate")
        for text in dict.fromkeys(sets):
            flags += ["--set", text]
        return flags

    @staticmethod
    def _installed(kind: str, name: str) -> bool:
        """Say whether a plug-in is found without `--plugin`; where its file lies, no record tells."""
        found = plugins.found(kind).get(name)
        return found is not None and not found.origin.endswith(".py")

    def _run_values(self, config: dict[str, Any], cells: list[dict[str, Any]]) -> list[str]:
        spec, preset = config["spec"], config["preset"]
        usual = plain(asdict(RunValues(**presets.merged(preset, spec["name"], "run"))))
        used = {
            "image_size": spec["image_size"],
            "attack_resolution": config["resolution"],
            "interpolation": spec["interpolation"],
            "pretrained": spec["pretrained"],
            "train_images": config["train_images"],
            "held_out": config["held_out"],
            "chunk": cells[0]["recipe"]["chunk"] if cells else usual["chunk"],
        }
        if config["sync_batchnorm"]:
            used["sync_batchnorm"] = True
        if spec["stem"] != "native" or spec["name"].startswith("timm:"):  # others have one, whatever the preset says
            used["stem"] = spec["stem"]
        keys = {cell["recipe"]["source"] for cell in cells}
        sources = [c["defense"] for c in self.configs.values() if c["key"] in keys]
        if sources and not config["defense"].startswith("external:"):
            used["source"] = sources[0]
            used["control"] = any(cell["control"] for cell in cells)  # another network to train, where it is not this
        if config["defense"].startswith("external:"):
            del used["train_images"], used["held_out"], used["pretrained"]
        selections = {cell["selection"] for cell in cells}
        if "best" in selections:
            used["selection"] = "both" if len(selections) == 2 else "best"
        return [f"run.{field}={spelled(value)}" for field, value in used.items() if usual[field] != value]

    def _trainings(self, name: str, cells: list[dict[str, Any]], sets: list[str]) -> list[str]:
        """Add the settings of a network, of all it required and of the source; return the flags of the threat."""
        timing = json.loads((self.store.folder("model", name) / "timing.json").read_text())
        keys = {cell["recipe"]["source"] for cell in cells}
        sources = [other for other, config in self.configs.items() if config["key"] in keys]
        threat = None
        for other in dict.fromkeys([name, *timing["required"], *sources]):
            config = self.configs.get(other)
            if config is None or config["defense"].startswith("external:"):
                continue
            threat = threat or config["threat"]
            sets += changes("defense", config["defense"], config["config"], config["preset"], config["spec"]["name"])
        brought = [role for role, seen in timing["teachers"].items() if seen["network"].startswith("external:")]
        teachers = [text for role in brought for text in ("--teacher", f"{role}=WEIGHTS")]
        if threat is None:
            return teachers
        return [*teachers, "--train-norm", threat["norm"], "--train-eps", radius(threat["eps"])]

    @staticmethod
    def _attacks(cells: list[dict[str, Any]], sets: list[str], preset: str, model: str, *, external: bool) -> list[str]:
        attacks = {cell["attack"]: cell["recipe"]["attack"]["config"] for cell in cells}
        for attack, config in sorted(attacks.items()):
            sets += changes("attack", attack, config, preset, model)
        flags = ["--attacks", ",".join(sorted(attacks))] if attacks else []
        norms = sorted({cell["threat_norm"] for cell in cells}, reverse=True)
        if norms:
            flags += ["--norm", norms[0]]
        for norm in norms:
            radii = sorted({cell["threat_eps"] for cell in cells if cell["threat_norm"] == norm})
            flags += ["--eps", f"{norm}:{','.join(map(radius, radii))}"]
        protocols = {cell["protocol"] for cell in cells}
        if external:
            return flags + (["--source", "MODEL=WEIGHTS"] if "transfer" in protocols else [])
        return [*flags, "--protocol", "both" if len(protocols) == 2 else protocols.pop()] if protocols else flags
