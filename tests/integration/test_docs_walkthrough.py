"""Every command of the quick start page runs, in its order; and tests of the report that it ends with."""

from __future__ import annotations

import contextlib
import html
import io
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from robobench.cli import main
from robobench.core.console import Reporter
from robobench.core.registry import ATTACKS, DEFENSES
from robobench.execution.runner import Runner
from robobench.planning.planner import prepare
from robobench.plugins.discovery import _plugin_files
from tests.helpers import browser

NAMES = ["at", "smooth", "standard", "standard"]  # the second one is the undefended baseline
PAGE = Path(__file__).parents[2] / "docs" / "quickstart.md"


def unload_plugin_files():
    """Unregister and unload the plug-ins of files named with --plugin."""
    _plugin_files.clear()
    for registry in (ATTACKS, DEFENSES):
        for name in [n for n in registry if registry.get(n).__module__.startswith("robobench_plugin_")]:
            del registry._classes[name]
    for name in [n for n in sys.modules if n.startswith("robobench_plugin_")]:
        del sys.modules[name]


class PlannedError(Exception):
    """Stops a command after its request was planned."""


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """Run every command of the page in an empty folder.

    Returns the folder, the output of each command, and each output shown on the page with the real one.
    """
    folder = tmp_path_factory.mktemp("quickstart")
    unload_plugin_files()
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setenv("COLUMNS", "80")
    output, shown = [], []
    try:
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
        for kind, text in blocks:
            assert kind in ("sh", "python", "text")
            if kind == "text":
                shown.append((text, output[-1][1]))
                continue
            if kind == "python":
                assert len(text.splitlines()) <= 40
                Path(text.splitlines()[0].removeprefix("# ")).write_text(text)
                continue
            for command in text.splitlines():
                program, *arguments = shlex.split(command)
                assert program == "robobench"
                extra = ["--threads", "1"] if arguments[0] == "compare" else []
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    assert main([*arguments, *extra]) == 0, command
                output.append((arguments[0], out.getvalue()))
        yield folder, output, shown
    finally:
        patch.undo()
        unload_plugin_files()


@pytest.fixture
def store(walked):
    return walked[0] / "runs"


@pytest.fixture
def page(walked):
    return walked[0] / "my-report" / "report.html"


def test_commands_run_and_new_defense_is_ranked(walked):
    folder, output, shown = walked
    (first, *_) = [text for command, text in output if command == "leaderboard"]
    assert re.search(r"^ *\d +smooth ", first, re.MULTILINE)
    ((text, printed),) = shown  # the last digits and the order of equal ranks may differ between machines
    assert text.splitlines()[0] == printed.splitlines()[0] and text.splitlines()[-2:] == printed.splitlines()[-2:]
    assert all(sorted(re.findall(r"^ *\d+  (\w+)", table, re.MULTILINE)) == NAMES for table in (text, printed))
    assert "at - smooth" in output[-3][1] or "smooth - at" in output[-3][1]
    assert (folder / "my-report" / "tables" / "leaderboard.tex").is_file() and (folder / "my-defense").is_dir()


def test_report_has_stages_pictures_and_provenance(page):
    text = page.read_text()
    for mark in (
        "f1-eps-Linf",
        "f1-cost-Linf",
        "f1-stages",
        "f1-images",
        "Images that most models classify correctly",
        "torch version",
    ):
        assert mark in text
    assert "forward 6, input_grad 5, weight_grad 1" in text  # the stage's passes, as declared


def test_reproduction_command_plans_same_training_and_cells(page, store, monkeypatch):
    runners = []

    def only_plan(requests, *rest, **options):
        runners.extend(Runner(*prepare(request), Reporter(-1)) for request in requests)
        raise PlannedError

    monkeypatch.setattr("robobench.execution.run.execute_requests", only_plan)
    commands = [html.unescape(c) for c in re.findall(r'<pre tabindex="0"><code>(.*?)</code>', page.read_text())]
    assert len(commands) == 4
    assert sum("--plugin FILE" in c for c in commands) == 1  # the page does not know where smooth.py is
    for command in (c for c in commands if "--plugin" not in c):
        with pytest.raises(PlannedError):
            main(shlex.split(command)[1:])
    configs = [json.loads(p.read_text()) for p in store.glob("*/config.json")]
    trained = {config["key"] for config in configs if config["defense"] != "smooth"}
    assert {runner.plan.models[0].key for runner in runners} == trained
    stored = {p.name for p in (store / "artifacts" / "evaluations").iterdir()}
    for runner in runners:
        cells = [cell for cell in runner.plan.cells() if cell.model.key == runner.plan.models[0].key]
        keys = {runner.evaluator.key(cell) for cell in cells}
        assert keys and keys <= stored


def test_report_of_empty_store_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none"), "--html", str(tmp_path / "x" / "p.html")]) == 2
    assert "no rows in" in capsys.readouterr().err and not (tmp_path / "x").exists()


# The lowest contrast (WCAG 2.1) of a text with its background in the current color scheme, and its element.
CONTRAST = """(() => {
  const parse = (c) => { const n = c.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, share, i) => {
    const v = c[i] / 255; return sum + share * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); }, 0);
  const under = (e) => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c[3] > 0) return c; } return [255, 255, 255, 1]; };
  const found = [...document.querySelectorAll("body, body *")].filter((e) => !e.closest("script, style")
    && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())).map((e) => {
      const s = getComputedStyle(e), own = parse(e.closest("svg") ? s.fill : s.color);
      const [low, high] = [light(own), light(under(e))].sort((x, y) => x - y);
      return [(high + 0.05) / (low + 0.05), e.tagName]; });
  return found.sort((x, y) => x[0] - y[0])[0];
})()"""
FOCUS = """(() => { const e = document.activeElement, style = getComputedStyle(e), box = e.getBoundingClientRect();
  return { tag: e.tagName, text: e.textContent.trim(),
           visible: style.outlineStyle !== "none" && box.width > 0 && box.left >= 0,
           sort: e.closest("th")?.getAttribute("aria-sort") ?? null }; })()"""
COLUMN = """[...document.activeElement.closest("table").tBodies[0].rows].map(
  (row) => parseFloat(row.cells[document.activeElement.closest("th").cellIndex].textContent))"""


@pytest.mark.skipif(browser.PROGRAM is None, reason="chromium is not installed; apt-get install chromium")
def test_page_in_browser_sorts_has_contrast_and_prints(page, tmp_path):
    with browser.Browser(tmp_path / "profile") as page_view:
        page_view.open(page)
        page_view.press("Tab")
        first = page_view.evaluate(FOCUS)
        assert first["text"] == "Skip to the tables" and first["visible"]
        page_view.press("Enter")
        for _ in range(20):
            page_view.press("Tab")
            here = page_view.evaluate(FOCUS)
            assert here["visible"], here
            if here["text"] == "clean":
                break
        assert here["tag"] == "BUTTON"
        for order in ("descending", "ascending"):
            page_view.press("Enter")
            column = page_view.evaluate(COLUMN)
            assert column == sorted(column, reverse=order == "descending") and len(column) > 2
            assert page_view.evaluate(FOCUS)["sort"] == order
            assert page_view.evaluate("document.getElementById('sorted').textContent") == f"sorted by clean, {order}"
        for media, scheme in (("screen", "light"), ("screen", "dark"), ("print", "light")):
            page_view.set_media(media, scheme)
            ratio, tag = page_view.evaluate(CONTRAST)
            assert ratio >= 4.5, (media, scheme, tag, ratio)
        page_view.resize(979)  # CSS pixels between the margins of landscape letter paper
        assert page_view.evaluate("document.documentElement.scrollWidth") <= 979
        assert page_view.pdf()[:4] == b"%PDF"
        assert page_view.evaluate("[...document.querySelectorAll('details')].every((part) => part.open)")
        assert page_view.evaluate("[...document.images].length") == 0  # pictures are parts of the SVG figures
        page_view.set_media("screen", "dark")
        assert len(page_view.screenshot()) > 20_000
        assert not page_view.errors
