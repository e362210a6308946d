"""Generated pages name every method, command and function; the tutorial's commands run; the site builds."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import inspect
import io
import re
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import robobench
from robobench import api
from robobench.cli import main
from robobench.plugins.discovery import KINDS, discover
from tests.helpers import browser

DOCS = Path(__file__).parents[2] / "docs"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, *parts: object) -> None:
        """Write nothing."""


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_method_has_a_page_with_fields(generate):
    text, pages = generate.methods(), generate.pages()
    for kind in KINDS:
        for name, plugin in discover(kind).items():
            if plugin.origin == "robobench":
                assert f"[`{name}`]({kind}-{name}.md)" in text and f"methods/{kind}-{name}.md" in pages
    at, pgd = pages["methods/defense-at.md"](), pages["methods/attack-pgd.md"]()
    assert "| `inner_steps` | `10` | quick: `5`, quick:large: `3` |" in at
    assert "| `relative_step` | `0.25` |  | step size / eps; 2/255 at eps 8/255 |" in pgd


def test_cli_reference_lists_every_command(generate):
    text = generate.cli()
    assert {"run", "diagnose", "env", "reproduce", "store check", "paper table"} <= set(generate.commands())
    for command in generate.commands():
        section = text.split(f"## robobench {command}\n")[1].split("\n## ")[0]
        assert f"Usage: robobench {command} " in section


# Smaller values for the tutorial's commands, which are meant for a GPU.
SMALL = {"resnet18": "cnn", "pgd.steps=100": "pgd.steps=4", "pgd.restarts=5": "pgd.restarts=2", "0,1,2": "0,1"}
SHORT = [
    *("--epochs", "1", "--examples", "10", "--threads", "1", "--quiet"),
    *("--set", "run.train_images=20", "--set", "run.held_out=0"),
]


def test_tutorial_commands_run_in_order(tmp_path, monkeypatch, capsys):
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
    outputs = []
    for command in "".join(blocks).splitlines():
        program, *words = shlex.split(command)
        assert program == "robobench"
        words = [SMALL.get(word, word) for word in words]
        if words[0] == "compare":
            words += SHORT if "--attacks" in words else [*SHORT, "--attacks", "fgsm,pgd", "--set", "pgd.steps=2"]
        assert main(words) == 0, (command, capsys.readouterr().err)
        outputs.append((words, capsys.readouterr().out))
    assert not (tmp_path / "runs").exists() and len(outputs) == 8
    boards = [text for words, text in outputs if words[0] == "leaderboard"]
    assert all(name in boards[0] for name in ("standard", "trades", "Linf 8/255")) and "16/255" not in boards[0]
    assert re.search(r"^ *1 +at ", boards[1], re.MULTILINE) and "trades" not in boards[1]
    paired, again = (text for words, text in outputs if words[:3] == ["compare", "--defenses", "at,trades"])
    assert "trades - at" in paired and "exact McNemar" in paired and "over 2 trainings" in again
    assert (tmp_path / "cifar-report" / "report.html").is_file()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built in mkdocs' strict mode, which refuses broken links and unknown names."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason=f"{package} is not installed; uv sync --group docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_site_has_every_page_and_loads_nothing(site):
    for page in ("index.html", "methods/defense-trades/index.html", "reference/cli/index.html", "theory/index.html"):
        assert (site / page).is_file()
    pages = [path.read_text() for path in site.rglob("*.html")]
    assert not any(re.search(r'(src|href)="(https?:)?//[^"]*\.(js|css)', text) for text in pages)


def test_python_reference_has_every_function_and_field(site):
    text = (site / "reference" / "api" / "index.html").read_text()
    anchors = set(re.findall(r' id="([\w.]+)"', text))
    assert {f"robobench.{name}" for name in robobench.__all__ if name != "__version__"} <= anchors
    values = {name for name in api.__all__ if not (inspect.isclass(getattr(api, name)) or callable(getattr(api, name)))}
    assert {f"robobench.api.{name}" for name in set(api.__all__) - values} <= anchors
    for comment in ("images evaluated together", "fraction of training over which the training radius grows"):
        assert comment in text  # comments beside the fields of a config


@pytest.mark.skipif(browser.PROGRAM is None, reason="chromium is not installed; apt-get install chromium")
def test_site_in_browser_has_no_message_and_finds_kl(site, tmp_path):
    handler = functools.partial(QuietHandler, directory=str(site))
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        browser.Browser(tmp_path / "profile") as view,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
        for page in pages:
            view.open_url(address + page)
            assert not view.errors, (page, view.errors)
        assert view.evaluate("document.querySelectorAll('.md-tabs__item').length") <= 6
        view.open_url(address + "index.html?q=KL")
        until = time.monotonic() + 60
        found = "[...document.querySelectorAll('.md-search-result__link')].map((a) => a.href).join(' ')"
        while "defense-trades" not in view.evaluate(found):
            assert time.monotonic() < until, view.evaluate(found)
            time.sleep(0.2)
        assert not view.errors
        server.shutdown()
