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
        """Return the command that trains the network in folder `name` again and attacks it as its records say."""
        return shlex.join(["robobench", *self.words(name, examples=examples)])

    def words(self, name: str, *, examples: int) -> list[str]:
        """Return the words of that command after the program's name."""
        config, cells = self.configs[name], [r for r in self.cells.get(name, []) if r["examples"] == examples]
        preset, model = config["preset"], config["spec"]["name"]
        if config["defense"].startswith("external:"):
            flags = ["evaluate", "WEIGHTS", "--model", model]
        else:
            flags = ["run", "--defense", config["defense"], "--model", model]
            flags += [] if self._installed("defense", config["defense"]) else ["--plugin", "FILE"]
        flags += ["--dataset", config["dataset"], "--preset", preset, "--threads", str(config["threads"])]
        flags += ["--devices", str(config["devices"])] if config["devices"] > 1 else []
        flags += ["--examples", str(examples)]
        sets = self._run_values(config, cells)
        flags += ["--precision", cells[0]["precision"] if cells else config["precision"]]
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
        if spec["stem"] != "native":  # some networks have one stem, whatever the preset says
            used["stem"] = spec["stem"]
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
