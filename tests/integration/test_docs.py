"""The documentation is true: its commands run, its generated pages name everything, the site builds."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from robobench import plugins
from robobench.api import ATTACKS, DEFENSES
from robobench.cli import main

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def no_trace(monkeypatch):
    """What a test's own files register is gone after it; the built-in names stay."""
    monkeypatch.setattr(plugins, "_files", {})
    yield
    for registry in (ATTACKS, DEFENSES):
        for name in [n for n in registry if registry.get(n).__module__.startswith("robobench_plugin_")]:
            del registry._classes[name]
    for name in [n for n in sys.modules if n.startswith("robobench_plugin_")]:
        del sys.modules[name]


def test_every_command_of_the_newcomer_s_page_runs_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", (DOCS / "newcomer.md").read_text(), re.DOTALL | re.MULTILINE)
    assert [kind for kind, _ in blocks].count("python") == 1
    for kind, text in blocks:
        if kind == "python":
            name = text.splitlines()[0].removeprefix("# ")
            assert len(text.splitlines()) <= 40
            Path(name).write_text(text)
            continue
        for command in text.splitlines():
            program, *arguments = shlex.split(command)
            assert program == "robobench"
            extra = ["--threads", "1"] if arguments[0] == "compare" else []
            assert main([*arguments, *extra]) == 0, command
    out = capsys.readouterr().out
    assert re.search(r"^ *\d +smooth ", out, re.MULTILINE)  # on the board
    assert Path("paper/report.html").is_file() and Path("paper/tables/leaderboard.tex").is_file()


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
