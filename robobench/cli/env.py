"""What this machine has for robobench, and the next move where something is missing."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ATTACK_LIBRARIES = ("torchattacks", "pyautoattack")

LIBRARIES = ("torchvision", "timm", "pandas", "matplotlib")

EXTRAS = {"robustbench": "robustbench", "ray": "ray", "lightning-fabric": "distributed"}  # package -> our extra

LOW_DISK = 5.0  # GiB


def installed(package: str) -> str | None:
    """Return a package's version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment() -> list[tuple[str, str]]:
    """List what is here as (name, state; next move)."""
    lines = [("python", platform.python_version())]
    for package in ("robobench", *LIBRARIES, *ATTACK_LIBRARIES):
        lines.append((package, installed(package) or f"not installed; uv pip install {package}"))
    for package, extra in EXTRAS.items():
        lines.append((package, installed(package) or f"not installed; pip install 'robobench[{extra}]'"))
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
        out.append(("gpu", f"none seen ({built}); the presets cifar and paper want one, quick does not"))
    for device in [f"cuda:{number}" for number in range(count)] or ["cpu"]:
        has = has_bf16(device)
        move = "--precision auto trains in bf16" if has else "--precision auto trains in fp32"
        out.append((f"bf16 on {device}", f"{'yes' if has else 'no units'}; {move}"))
    return out


def _extras() -> list[tuple[str, str]]:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    return [
        ("docs (mkdocs)", installed("mkdocs") or "not installed; uv sync --group docs builds the site"),
        ("chromium", browser or "not found; only the test of the report's page wants it (apt-get install chromium)"),
    ]


def _data() -> list[tuple[str, str]]:
    from robobench.core.paths import data_root
    from robobench.data.cifar import ARCHIVES, FOLDERS

    root = data_root()
    by = "from ROBOBENCH_DATA" if os.environ.get("ROBOBENCH_DATA") else "ROBOBENCH_DATA or --data-dir names another"
    lines = [("data root", f"{root}{'' if root.is_dir() else ' (not there yet)'}; {by}"), ("digits", "embedded")]
    for name in FOLDERS:
        places = [root, root / name, root / "data", root / name / "data"]
        there = [
            place
            for place in places
            if (place / FOLDERS[name]).is_dir()
            or (place / ARCHIVES[name]).is_file()
            or any(place.glob("test-*.parquet"))
        ]
        found = f"found in {there[0]}" if there else "not found; --data-dir DIR, or the first run downloads it"
        lines.append((name, found))
    return lines


def _disk() -> list[tuple[str, str]]:
    from robobench.core.paths import data_root

    lines = []
    for name, place in (("disk here", Path.cwd()), ("disk of the data root", data_root())):
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free / 2**30
        move = "; stores of large networks may not fit: --out on another disk" if free < LOW_DISK else ""
        lines.append((name, f"{free:.0f} GiB free{move}"))
    return lines
