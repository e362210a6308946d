"""Named bundles of plain values. What a defense or attack itself changes under a preset stands in its own file.

A preset may be laid over another (`over`), and have a variant for the large networks (`quick:large`), laid over it.
No torch is imported here.
"""

from __future__ import annotations

from typing import Any

from robobench.registry import unknown

LARGE = ("resnet50", "wrn50")

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "summary": "embedded data or first looks: 2 CPU cores, minutes",
        "run": {
            "image_size": 32,
            "attack_resolution": 32,
            "stem": "cifar",
            "attacks": ("pgd", "fgsm", "autoattack-l2", "jitter"),
        },
        "recipe": {
            "epochs": 12,
            "batch_size": 128,
            "lr": 0.1,
            "schedule": "one-cycle",
            "augment": "none",
            "eps_warmup": 1 / 3,
        },
    },
    "quick:large": {
        "run": {"stem": "imagenet", "train_images": 640, "examples": 64, "control": False},
        "recipe": {"epochs": 7, "batch_size": 32, "lr": 0.02},
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
        "recipe": {
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
        "recipe": {"epochs": 15},
    },
    "paper": {
        "summary": "the MACD paper's section 4.1: 224 px, its epochs, its radii; GPU days",
        "run": {
            "image_size": 224,
            "attack_resolution": 224,
            "stem": "imagenet",
            "pretrained": True,
            "chunk": 32,
            "attacks": ("pgd", "fgsm", "autoattack-l2", "jitter"),
            "l2_eps": ("8/255", "16/255"),  # the paper's own; in L2 almost nothing (388 times less at 224 px)
        },
        "recipe": {},  # every method's Config defaults are its published values
    },
}

_DEFAULTS = {"digits": "quick", "cifar10": "cifar", "cifar100": "cifar"}


def default_preset(dataset: str) -> str | None:
    """Return the preset a data set brings, or None where the user has to name one."""
    return _DEFAULTS.get(dataset)


def layers(preset: str, model: str) -> list[str]:
    """Return the names of the bundles that apply, weakest first; raises RequestError."""
    if preset not in PRESETS or ":" in preset:
        raise unknown("preset", preset, (name for name in PRESETS if ":" not in name))
    below, large = PRESETS[preset].get("over"), f"{preset}:large"
    return [*([below] if below else []), preset, *([large] if large in PRESETS and model in LARGE else [])]


def merged(preset: str, model: str, section: str) -> dict[str, Any]:
    """Lay the bundles' section ("run" or "recipe") over each other."""
    values: dict[str, Any] = {}
    for name in layers(preset, model):
        values.update(PRESETS[name].get(section, {}))
    return values
