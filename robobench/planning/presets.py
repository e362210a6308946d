"""Presets: named values of run settings and training settings. A plug-in's own preset values are in its own file.

A preset may extend another one (`over`). "PRESET:large" applies automatically on top of PRESET for large models; a note
of the run then has its text `reduces`. No torch is imported here.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from robobench.core.registry import unknown_name
from robobench.planning.recipes import RECIPES

LARGE_MODELS = ("resnet50", "wrn50")  # get the ":large" variant of a preset

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "summary": "embedded data or first looks: 2 CPU cores, minutes",
        "run": {
            "image_size": 32,
            "attack_resolution": 32,
            "stem": "cifar",
            "attacks": ("pgd", "fgsm", "autoattack-l2", "jitter", "apgd-t"),
            "all_radii": True,
        },
        "training": {
            "epochs": 12,
            "batch_size": 128,
            "lr": 0.1,
            "schedule": "one-cycle",
            "augment": "none",
            "eps_rampup": 1 / 3,
        },
    },
    "quick:large": {
        "reduces": "fewer epochs, smaller autoencoders, fewer attack steps and one radius",
        "run": {"stem": "imagenet", "train_images": 640, "examples": 64, "all_radii": False},
        "training": {"epochs": 7, "batch_size": 32, "lr": 0.02},
    },
    "cifar": {
        "summary": "native 32 px, modern recipe, one GPU, hours",
        "run": {
            "image_size": 32,
            "attack_resolution": 32,
            "stem": "cifar",
            "attacks": ("pgd", "fgsm", "autoattack-l2", "jitter", "autoattack"),
            "held_out": 1000,
        },
        "training": {
            "epochs": 50,
            "batch_size": 128,
            "lr": 0.2,
            "schedule": "one-cycle",
            "weight_decay": 5e-4,
            "augment": "crop-flip",
        },
    },
    "fast": {
        "summary": "cifar in the 15 epochs of arXiv:2001.03994, for a first at or trades",
        "over": "cifar",
        "training": {"epochs": 15},
    },
    "paper": {
        "summary": "the MACD paper's section 4.1: 224 px, its epochs, its radii; GPU days",
        "run": {
            "image_size": 224,
            "attack_resolution": 224,
            "stem": "imagenet",
            "pretrained": True,
            "eval_batch_size": 32,
            "attacks": ("pgd", "fgsm", "autoattack-l2", "jitter", "apgd-dlr"),
            "all_radii": True,
            "all_norms": True,
            "l2_eps": ("8/255", "16/255"),  # the paper's own; in L2 almost nothing (388 times less at 224 px)
        },
        "training": {},  # every method's Config defaults are its published values
    },
    "reference": {
        "summary": "the default of `evaluate`: FGSM, PGD-20 and the standard AutoAttack, at full strength",
        "run": {
            "image_size": 32,
            "attack_resolution": 32,
            "stem": "cifar",
            "attacks": ("fgsm", "pgd", "autoattack", "autoattack-l2"),
        },
        "training": {},
    },
    **RECIPES,
}


def preset_layers(preset: str, model: str) -> list[str]:
    """Return the names of the presets that apply, the base first; raises RequestError."""
    if preset not in PRESETS or ":" in preset:
        raise unknown_name("preset", preset, (name for name in PRESETS if ":" not in name))
    below, large = PRESETS[preset].get("over"), f"{preset}:large"
    return [*([below] if below else []), preset, *([large] if large in PRESETS and model in LARGE_MODELS else [])]


def plugin_preset(cls: Any, preset: str, model: str) -> dict[str, Any]:
    """Return the values of a preset for a plug-in: of all defenses, of those that attack every batch, and its own."""
    names = {f.name for f in fields(cls.Config)}
    values: dict[str, Any] = {}
    for name in preset_layers(preset, model):
        if hasattr(cls, "stages"):  # a defense
            values.update(PRESETS[name].get("training", {}))
            if "inner_steps" in names:
                values.update({k: v for k, v in PRESETS[name].get("adversarial", {}).items() if k in names})
            values.update(PRESETS[name].get("defenses", {}).get(cls.name, {}))
    for name in preset_layers(preset, model):
        values.update(cls.presets.get(name, {}))
    return values


def preset_values(preset: str, model: str, section: str) -> dict[str, Any]:
    """Return the merged values of a section ("run" or "training") of the presets that apply."""
    values: dict[str, Any] = {}
    for name in preset_layers(preset, model):
        values.update(PRESETS[name].get(section, {}))
    return values
