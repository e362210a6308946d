"""`robobench env`: what this machine has for robobench, and what to do about the rest."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from robobench.cli.list_ import print_columns
from robobench.core.imports import EXTRAS, install_hint

HELP = "Show what this machine has. Versions, devices, data sets, free disk space, and what to do about missing parts."
EPILOG = """
Examples:

  robobench env
"""

ATTACK_LIBRARIES = ("pyautoattack",)

LIBRARIES = ("torchvision", "timm", "pandas", "matplotlib")


LOW_DISK = 5.0  # GiB


def main() -> int:
    """Print name and state of each part to stdout."""
    print_columns(environment())
    return 0


def installed(package: str) -> str | None:
    """Return a package's version; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment() -> list[tuple[str, str]]:
    """Return (name, state; next step) of everything robobench can use."""
    lines = [("python", platform.python_version())]
    lines.append(("robobench", installed("robobench") or "not installed; uv sync in its clone"))
    for package in (*LIBRARIES, *ATTACK_LIBRARIES):
        lines.append((package, installed(package) or f"not installed; uv pip install {package}"))
    for package in EXTRAS:
        lines.append((package, installed(package) or f"not installed; {install_hint(package)}"))
    return [*lines[:2], *_torch(), *lines[2:], *_extras(), *_data(), *_disk()]


def _torch() -> list[tuple[str, str]]:
    import torch

    from robobench.core.device import has_bf16
    from robobench.core.provenance import hardware

    out = [("torch", torch.__version__), ("cpu", f"{hardware('cpu')}; {torch.get_num_threads()} threads, --threads N")]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(count):
        free, total = torch.cuda.mem_get_info(number)
        device = f"cuda:{number}"
        out.append((device, f"{hardware(device)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"))
    if not count:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        out.append(("gpu", f"none found ({built}); the presets cifar and paper need one, quick does not"))
    for device in [f"cuda:{number}" for number in range(count)] or ["cpu"]:
        has = has_bf16(device)
        advice = "--precision auto trains in bf16" if has else "--precision auto trains in fp32"
        out.append((f"bf16 on {device}", f"{'yes' if has else 'not supported'}; {advice}"))
    return out


def _extras() -> list[tuple[str, str]]:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    return [
        ("docs (mkdocs)", installed("mkdocs") or "not installed; uv sync --group docs builds the site"),
        ("chromium", browser or "not found; only a test of the HTML report uses it (apt-get install chromium)"),
    ]


def _data() -> list[tuple[str, str]]:
    from robobench.core.paths import data_root
    from robobench.data.cifar import FOLDERS, find_cifar
    from robobench.data.imagenet import find_imagenet, find_tiny_imagenet
    from robobench.data.torchvision_sets import MARKERS, find_torchvision_set

    root = data_root()
    by = (
        "from $ROBOBENCH_DATA" if os.environ.get("ROBOBENCH_DATA") else "set $ROBOBENCH_DATA or --data-dir to change it"
    )
    lines = [("data root", f"{root}{'' if root.is_dir() else ' (does not exist yet)'}; {by}"), ("digits", "embedded")]
    places = {name: find_cifar(name, root) for name in FOLDERS}
    places |= {name: find_torchvision_set(name, root) for name in MARKERS}
    places |= {"tiny-imagenet": find_tiny_imagenet(root), "imagenet": find_imagenet(root)}
    for name, place in places.items():
        missing = "--data-dir DIR" + (", or the first run downloads it" if name != "imagenet" else "")
        lines.append((name, f"found in {place}" if place else f"not found; {missing}"))
    return lines


def _disk() -> list[tuple[str, str]]:
    from robobench.core.paths import data_root

    lines = []
    for name, place in (("disk here", Path.cwd()), ("disk of the data root", data_root())):
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free / 2**30
        advice = "; too little for stores of large models: choose another disk with --out" if free < LOW_DISK else ""
        lines.append((name, f"{free:.0f} GiB free{advice}"))
    return lines
