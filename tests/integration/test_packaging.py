"""The wheel contains every file of the package folders. setuptools silently drops unlisted packages."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from robobench.plugins.template import TEMPLATES

ROOT = Path(__file__).parents[2]
FOLDERS = {"robobench": "robobench", "attacks": "robobench/attacks", "defenses": "robobench/defenses"}
DATA_PACKAGES = {"robobench.leaderboards", "robobench.plugins.templates"}


def sources() -> dict[str, Path]:
    """Return every .py file that must be installed, by its path in the wheel."""
    return {
        f"{target}/{path.relative_to(ROOT / folder)}": path
        for folder, target in FOLDERS.items()
        for path in (ROOT / folder).rglob("*.py")
    }


def test_every_package_folder_is_listed():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    needed = {str(Path(place).parent).replace("/", ".") for place in sources()} | DATA_PACKAGES
    assert listed == needed


def test_wheel_and_sdist_contain_every_file(tmp_path):
    pytest.importorskip("build")
    tree = tmp_path / "tree"
    skip = shutil.ignore_patterns(".git", ".venv", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, tree, ignore=skip)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        installed = set(archive.namelist())
    assert set(sources()) <= installed
    figures = (p for kind in ("*.csv", "*.json", "*.md") for p in (ROOT / "leaderboards").rglob(kind))
    assert {f"robobench/leaderboards/{path.relative_to(ROOT / 'leaderboards')}" for path in figures} <= installed
    assert {f"robobench/report/html/page.{kind}" for kind in ("html", "css", "js")} <= installed
    templates = {f"robobench/plugins/templates/{path.name}" for path in TEMPLATES.glob("*.tmpl")}
    assert len(templates) == 5 and templates <= installed
    stale = (
        {name for name in installed if name.endswith(".py")} - set(sources()) - {"robobench/leaderboards/__init__.py"}
    )
    assert not stale
    with tarfile.open(sdist) as tarball:
        packed = {name.split("/", 1)[-1] for name in tarball.getnames()}
    assert {str(path.relative_to(ROOT)) for path in sources().values()} <= packed
