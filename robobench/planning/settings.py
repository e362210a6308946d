"""The settings of a run: preset values, `--set` values, device, precision and threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from robobench.core.device import resolve_device, resolve_precision
from robobench.core.numbers import canonical_norm
from robobench.core.registry import unknown_name
from robobench.data.info import DatasetInfo, dataset_info
from robobench.distributed import launch
from robobench.errors import RequestError
from robobench.planning.parsing import ALL_DEFENSES, build_config, parse_fields, parse_sets
from robobench.planning.presets import PRESETS, plugin_preset, preset_layers, preset_values
from robobench.planning.request import ExperimentConfig, RunConfig
from robobench.planning.validate import check_executor
from robobench.training.base import Defense


@dataclass
class Settings:
    """Settings of one run, and the notes about them that the user should read."""

    request: ExperimentConfig
    info: DatasetInfo
    preset: str
    run: RunConfig
    sets: dict[str, dict[str, str]]  # of --set, without the section "run"
    norm: str
    device: str
    precision: str
    devices: int
    threads: int
    given: frozenset[str] = frozenset()  # fields of `run` that --set or a flag names
    notes: list[str] = field(default_factory=list)
    used_names: set[str] = field(default_factory=set)  # plug-ins of this run, which --set may name
    defense_fields: set[str] = field(default_factory=set)  # of the defenses of this run, which --set "*" may name

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def plugin_config(self, cls: Any, name: str, base: Mapping[str, Any]) -> Any:
        """Build a plug-in's config: base values, then its preset values, flags, `--set` of all defenses, and its own.

        Args:
            cls: the class of a defense or an attack.
            name: as `--set` names it.
        """
        values = dict(base) | plugin_preset(cls, self.preset, self.request.model)
        if issubclass(cls, Defense):
            flags = {"epochs": self.request.epochs, "batch_size": self.request.batch_size}
            values.update({k: v for k, v in flags.items() if v is not None})
            names = {f.name for f in fields(cls.Config)}
            self.defense_fields |= names
            shared = {k: v for k, v in self.sets.get(ALL_DEFENSES, {}).items() if k in names}
            values.update(parse_fields(cls.Config, shared, name))
        values.update(parse_fields(cls.Config, self.sets.get(name, {}), name))
        self.used_names.add(name)
        return build_config(cls.Config, values, name)

    def check_sets_used(self) -> None:
        """Raise RequestError if `--set` names a plug-in that this run does not use, or a field that no defense has.

        Requests of an experiment file share settings, so there `prepare_all` looks at all of them.
        """
        for name in self.sets.get(ALL_DEFENSES, {}):
            if name not in self.defense_fields:
                raise unknown_name("field of every defense of this run", name, self.defense_fields)
        for name in self.sets.keys() - {ALL_DEFENSES}:
            if name not in self.used_names and self.request.study is None:
                raise unknown_name("name in --set", name, self.used_names | {"run"})


def resolve_settings(request: ExperimentConfig, *, dry: bool = False) -> Settings:
    """Resolve preset, `--set`, device, precision and threads; raises RequestError for a wrong value."""
    info = dataset_info(request.dataset)
    preset = request.preset or info.preset
    preset_layers(preset, request.model)
    sets = parse_sets(request.sets)
    values = preset_values(preset, request.model, "run")
    if info.resolution and (preset == "reference" or info.resolution > values.get("image_size", RunConfig.image_size)):
        large = (request.image_size or info.resolution) > 64
        values.update(image_size=info.resolution, attack_resolution=info.resolution)
        values.update(stem="imagenet" if large else "cifar")
    given = parse_fields(RunConfig, sets.pop("run", {}), "run")
    if request.image_size is not None:
        given |= _sizes(request.image_size, given)
    values.update(given)
    run: RunConfig = build_config(RunConfig, values, "run")
    device = resolve_device(request.device)
    check_executor(request, device)
    if run.sync_batchnorm and device == "cpu":
        raise RequestError("run.sync_batchnorm=true works on GPUs only; leave it out, or choose --device cuda")
    devices = launch.resolve_device_count(request.devices, device)
    share = 1 if launch.torchrun_world_size() else devices
    settings = Settings(
        request=request,
        info=info,
        preset=preset,
        run=run,
        sets=sets,
        norm=canonical_norm(request.norm),
        device=device,
        precision=resolve_precision(request.precision, device),
        devices=devices,
        threads=request.threads or max(1, torch.get_num_threads() // share),
        given=frozenset(given),
    )
    needed = PRESETS[preset].get("needs")
    if needed and request.defenses and getattr(request, needed) is None and not (needed == "init" and run.pretrained):
        settings.note(f"preset {preset} is meant for --{needed}, which is not given")
    if devices > 1 and dry:
        settings.note(f"times and memory are estimated for one device; {devices} share every batch")
    return settings


def _sizes(side: int, given: Mapping[str, Any]) -> dict[str, int]:
    """Return the run settings of --image-size; raises RequestError."""
    if side < 1:
        raise RequestError(f"--image-size must be 1 or more, got {side}")
    twice = [name for name in ("image_size", "attack_resolution") if name in given]
    if twice:
        raise RequestError(f"--image-size and --set run.{twice[0]} both give a size; leave one out")
    return {"image_size": side, "attack_resolution": side}
