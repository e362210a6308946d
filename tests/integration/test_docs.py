"""The documentation is true: its generated pages name everything, the site builds."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from robobench import plugins

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_method_cards_have_every_method_and_every_field_with_its_meaning(generate):
    text = generate.methods()
    for kind in plugins.KINDS:
        for name, plugin in plugins.found(kind).items():
            if plugin.origin == "robobench":
                assert f"### {name}\n" in text
    assert "| `inner_steps` | `10` | quick: `5`, quick:large: `3` |" in text
    assert "| `relative_step` | `0.25` |  | of eps: 2/255 at 8/255 |" in text


def test_the_references_name_every_command_and_function(generate):
    cli, api = generate.cli(), generate.api()
    for command in generate.COMMANDS:
        assert f"## robobench {command}\n" in cli
    for name in ("run", "compare", "evaluate", "leaderboard", "load", "attack", "Defense", "IterativeAttack", "ascend"):
        assert f"### {name}\n" in api


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed; uv sync --group docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in ("index.html", "methods/index.html", "reference/cli/index.html", "theory/index.html"):
        assert (tmp_path / "site" / page).is_file()
    pages = [path.read_text() for path in (tmp_path / "site").rglob("*.html")]
    assert not any(re.search(r'(src|href)="(https?:)?//[^"]*\.(js|css)', text) for text in pages)
