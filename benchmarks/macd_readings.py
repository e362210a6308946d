"""The readings of MACD's paper, one changed at a time, on held-out training images. Test images are never used.

    python benchmarks/macd_readings.py --out FILE [--dataset digits] [--models cnn,resnet20] [--seeds 0,1,2]
        [--data-dir DIR] [--images 700] [--held-out 300] [--readings NAME;...] [--minutes M]

Every line of FILE is a trained model. The same command resumes: what FILE holds is not trained again. It then prints
the means over seeds and the paired differences to the default. `transfer` are PGD-10 examples made on the standard
model that the student starts from, as in the paper; `standard` of another seed is the undefended baseline. The
autoencoder has 4 + 2 layers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.core.module_state import attack_mode
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.core.timing import Stopwatch
from robobench.data import load_dataset
from robobench.data.info import dataset_info
from robobench.data.split import Split
from robobench.models.build import build_model
from robobench.models.spec import ModelSpec
from robobench.planning.presets import PRESETS
from robobench.plugins.discovery import load_defense
from robobench.training.base import Defense, DefenseSetup, FrozenModel, Precompute, PrecomputedArray
from robobench.training.context import TrainRuntime, build_objective
from robobench.training.inner_maximization import pgd_ascent
from robobench.training.loop import run_train
from robobench.training.precompute import run_precompute
from robobench.training.selection import quick_accuracy

READINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "Algorithm 2: no head phase": {"head_epochs": 0, "bn_recalibrate": False},
    "G15: statistics only": {"head_epochs": 0},
    "G15: head only": {"bn_recalibrate": False},
    "G14: labels in the head phase only": {"class_weight": 0.0},
    "G11: student-projector": {"feature_map": "student-projector"},
    "G12: KL, student first": {"kl_order": "student-first"},
    "G13: no second term": {"contrast_weight": 0.0},
    "G16: mean color": {"mask_fill": "mean"},
    "G19: flip": {"augment": "flip"},
    "G23: CLS token": {"teacher_feature": "cls"},
    "no masks (table 8)": {"mask": False},
}
MEASURES = ("clean", "transfer", "white_box")
SMALL = {"encoder_depth": 4, "decoder_depth": 2}
STEPS = 10  # of PGD


class Group:
    """The trainings of a data set, a model and a seed. They share the stages that do not depend on the reading."""

    def __init__(
        self, dataset: str, train: Split, held_out: Split, model: str, seed: int, autoencoders: dict[str, Any]
    ) -> None:
        info = dataset_info(dataset)
        self.train, self.held_out, self.seed, self.autoencoders = train, held_out, seed, autoencoders
        self.threat = ThreatModel("Linf", info.train_eps["Linf"])
        self.runtime = TrainRuntime("cpu", "fp32", seed)
        self.spec = ModelSpec(model, info.num_classes or 10, 32, stem="cifar", mean=info.mean, std=info.std)
        self.stages: dict[str, Any] = {}  # by the stage's name and the config it depends on
        self.standard = FrozenModel(self.train_standard(seed))
        self.transfer = self.attack(self.standard.module)

    def build(self, seed: int) -> nn.Module:
        """Build the untrained model."""
        return build_model(replace(self.spec, seed=seed))

    def train_standard(self, seed: int) -> nn.Module:
        """Train the undefended model of a seed with the preset quick."""
        cls, model = load_defense("standard"), self.build(seed)
        self.run(cls(cls.Config(**PRESETS["quick"]["training"])), model, {}, TrainRuntime("cpu", "fp32", seed))
        return model

    def run(self, defense: Defense, model: nn.Module, required: dict[str, FrozenModel], runtime: TrainRuntime) -> None:
        """Run the stages of a defense as `robobench run` does, or take the result of one that has run."""
        setup = DefenseSetup(
            model=model, threat=self.threat, num_classes=self.spec.num_classes, image_shape=(3, 32, 32),
            train_size=len(self.train), seed=runtime.seed, is_uint8_exact=self.train.is_uint8_exact,
            required_models=required,
        )  # fmt: skip
        values = asdict(defense.config)
        for stage in defense.stages(setup):
            known = self.autoencoders if stage.name.startswith("mae-") else self.stages
            key = json.dumps([stage.name, [values[n] for n in stage.config_fields or ()]])
            if isinstance(stage, Precompute):
                if stage.config_fields is None or key not in known:
                    known[key] = np.concatenate(run_precompute(runtime, stage, self.train, Stopwatch())[1])
                setup.precomputed[stage.name] = PrecomputedArray(known[key])
            elif stage.config_fields is not None and key in known:
                build_objective(stage, "cpu").load_state_dict(known[key])
            else:
                objective = run_train(runtime, stage, self.train, Stopwatch())[1]
                if stage.config_fields is not None:
                    known[key] = {name: value.clone() for name, value in objective.state_dict().items()}

    def attack(self, model: nn.Module) -> Tensor:
        """Return PGD examples of the held-out images; every image gets all steps."""
        index = torch.arange(len(self.held_out))
        images, labels = self.held_out.images(index), self.held_out.labels
        start = self.threat.random_start(images, KeyedRng.of(index, 0, "transfer"))
        with attack_mode(model):
            return pgd_ascent(
                lambda adv: F.cross_entropy(model(adv), labels, reduction="none"),
                start, images, self.threat, STEPS, 0.25 * self.threat.eps,
            )  # fmt: skip

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Return percentages of the held-out images."""
        found = quick_accuracy(self.runtime, model, self.held_out, self.threat, len(self.held_out))
        with torch.no_grad(), attack_mode(model):
            transfer = (model(self.transfer).argmax(1) == self.held_out.labels).float().mean().item()
        return {"clean": 100 * found.clean, "transfer": 100 * transfer, "white_box": 100 * found.pgd}

    def reading(self, name: str) -> dict[str, float]:
        """Train and measure a reading, or `standard` of another seed."""
        if name == "standard":
            return self.measure(self.train_standard(self.seed + 1000))
        cls = load_defense("macd")
        config = cls.Config(**{**cls.presets["quick"], **SMALL, **READINGS[name]})
        model = self.build(self.seed)
        self.run(cls(config), model, {"standard": self.standard}, self.runtime)
        return self.measure(model)


def print_table(lines: list[dict[str, Any]]) -> None:
    """Print means over seeds, and mean and range of the paired differences of clean accuracy to the default."""
    print("| data | model | reading | seeds | clean | transfer | white-box | clean minus default |")
    print("|---|---|---|---|---|---|---|---|")
    for dataset, model in dict.fromkeys((line["dataset"], line["model"]) for line in lines):
        own = [line for line in lines if (line["dataset"], line["model"]) == (dataset, model)]
        base = {line["seed"]: line["clean"] for line in own if line["reading"] == "default"}
        for name in ("standard", *READINGS):
            some = [line for line in own if line["reading"] == name]
            if not some:
                continue
            means = " | ".join(f"{statistics.mean(line[m] for line in some):.1f}" for m in MEASURES)
            gaps = [line["clean"] - base[line["seed"]] for line in some if line["seed"] in base]
            paired = f"{statistics.mean(gaps):+.1f} [{min(gaps):+.1f}, {max(gaps):+.1f}]" if gaps else "-"
            print(f"| {dataset} | {model} | {name} | {len(some)} | {means} | {paired} |")


def main() -> None:
    """Train what FILE lacks, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--models", default="cnn,resnet20")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--images", type=int, default=700)
    parser.add_argument("--held-out", type=int, default=300)
    parser.add_argument("--readings", default=";".join(("standard", *READINGS)))
    parser.add_argument("--minutes", type=float, default=1e9, help="start no training after this time")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    torch.set_num_threads(1)
    lines = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    data = load_dataset(options.dataset, data_dir=options.data_dir, resolution=32).train
    assert data is not None
    names = [n for n in options.readings.split(";") if options.dataset != "digits" or n != "G19: flip"]
    for seed in map(int, options.seeds.split(",")):
        autoencoders: dict[str, Any] = {}  # they do not depend on the model
        for model in options.models.split(","):
            place = {"dataset": options.dataset, "model": model, "seed": seed}
            done = {line["reading"] for line in lines if place.items() <= line.items()}
            if done >= {*names} or time.monotonic() > end:
                continue
            held_out = data.last(options.held_out)
            group = Group(options.dataset, data.first(options.images), held_out, model, seed, autoencoders)
            for name in (name for name in names if name not in done and time.monotonic() < end):
                lines.append({**place, "reading": name, **group.reading(name)})
                with options.out.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
                print(lines[-1], flush=True)
    print_table(lines)


if __name__ == "__main__":
    main()
