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


@pytest.mark.slow
@pytest.mark.network
def test_wheel_runs_in_an_empty_environment(tmp_path):
    """Plain pip resolves to packages of today; robobench runs, and names the extra where one is needed."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", str(wheel)], check=True)
    subprocess.run([*pip, "check"], check=True)

    def robobench(*words):
        return subprocess.run([str(python), "-m", "robobench", *words], cwd=tmp_path, capture_output=True, text=True)

    has_requests = (
        "import importlib.metadata as m; print(next((d.version for d in m.distributions(name='requests')), ''))"
    )
    found = subprocess.run([str(python), "-c", has_requests], capture_output=True, text=True, check=True).stdout.strip()
    assert found == "" or tuple(map(int, found.split(".")[:2])) >= (2, 31)
    small = ("--dataset", "digits", "--epochs", "1", "--set", "run.train_images=128", "--examples", "16")
    done = robobench("run", "--defense", "standard", *small, "--attacks", "fgsm")
    assert done.returncode == 0, done.stderr
    for words, extra in (
        (("run", "--defense", "standard", *small, "--attacks", "torchattacks-pgd"), "torchattacks"),
        (("run", "--defense", "standard", *small, "--executor", "ray"), "ray"),
        (("evaluate", "--model", "robustbench:Wong2020Fast", *small[:2]), "robustbench"),
    ):
        refused = robobench(*words)
        assert refused.returncode == 2 and f"uv sync --extra {extra}" in refused.stderr, refused.stderr
