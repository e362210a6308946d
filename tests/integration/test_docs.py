"""The documentation is true: its generated pages name everything, the site builds."""

from __future__ import annotations

import importlib.util
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from robobench.cli import main
from robobench.plugins.discovery import KINDS, discover

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_method_cards_have_every_method_and_every_field_with_its_meaning(generate):
    text = generate.methods()
    for kind in KINDS:
        for name, plugin in discover(kind).items():
            if plugin.origin == "robobench":
                assert f"### {name}\n" in text
    assert "| `inner_steps` | `10` | quick: `5`, quick:large: `3` |" in text
    assert "| `relative_step` | `0.25` |  | of eps: 2/255 at 8/255 |" in text


def test_the_references_name_every_command_and_function(generate):
    cli, api = generate.cli(), generate.api()
    assert {"run", "diagnose", "store check", "paper table"} <= set(generate.commands())
    for command in generate.commands():
        section = cli.split(f"## robobench {command}\n")[1].split("\n## ")[0]
        assert f"Usage: robobench {command} " in section
    for name in ("run", "compare", "evaluate", "leaderboard", "load", "attack", "Defense", "IterativeAttack", "ascend"):
        assert f"### {name}\n" in api


# What stands in for a GPU and CIFAR-10 where a test walks the tutorial.
SMALL = {"resnet18": "cnn", "pgd.steps=100": "pgd.steps=4", "pgd.restarts=5": "pgd.restarts=2", "0,1,2": "0,1"}
SHORT = [
    *("--epochs", "1", "--examples", "10", "--threads", "1", "--quiet"),
    *("--set", "run.train_images=20", "--set", "run.held_out=0"),
]


def test_every_command_of_the_tutorial_runs_in_its_order(tmp_path, monkeypatch, capsys):
    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        pictures = []
        for pixels in draw.integers(0, 256, (20, 32, 32, 3), np.uint8):
            Image.fromarray(pixels).save(file := io.BytesIO(), "png")
            pictures.append({"bytes": file.getvalue(), "path": None})
        table = pa.table({"img": pictures, "label": [n % 10 for n in range(20)]})
        pq.write_table(table, tmp_path / f"{part}-00000-of-00001.parquet")
    for name, place in (("ROBOBENCH_DATA", tmp_path), ("XDG_CACHE_HOME", tmp_path / "cache")):
        monkeypatch.setenv(name, str(place))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```sh\n(.*?)^```", (DOCS / "tutorial.md").read_text(), re.DOTALL | re.MULTILINE)
    said = []
    for command in "".join(blocks).splitlines():
        program, *words = shlex.split(command)
        assert program == "robobench"
        words = [SMALL.get(word, word) for word in words]
        if words[0] == "compare":
            words += SHORT if "--attacks" in words else [*SHORT, "--attacks", "fgsm,pgd", "--set", "pgd.steps=2"]
        assert main(words) == 0, (command, capsys.readouterr().err)
        said.append((words, capsys.readouterr().out))
    assert not (tmp_path / "runs").exists() and len(said) == 8
    boards = [text for words, text in said if words[0] == "leaderboard"]
    assert all(name in boards[0] for name in ("standard", "trades", "Linf 8/255")) and "16/255" not in boards[0]
    assert re.search(r"^ *1 +at ", boards[1], re.MULTILINE) and "trades" not in boards[1]
    paired, again = (text for words, text in said if words[:3] == ["compare", "at", "trades"])
    assert "trades - at" in paired and "exact McNemar" in paired and "over 2 trainings" in again
    assert (tmp_path / "cifar-report" / "report.html").is_file()


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed; uv sync --group docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in ("index.html", "methods/index.html", "reference/cli/index.html", "theory/index.html"):
        assert (tmp_path / "site" / page).is_file()
    pages = [path.read_text() for path in (tmp_path / "site").rglob("*.html")]
    assert not any(re.search(r'(src|href)="(https?:)?//[^"]*\.(js|css)', text) for text in pages)
