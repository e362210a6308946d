"""The newcomer's page, walked from its first command to its last, and what stands in the report at its end."""

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
from robobench.core.registry import ATTACKS, DEFENSES
from robobench.plugins.discovery import _plugin_files
from tests.helpers import browser

NAMES = ["at", "smooth", "standard", "standard"]  # the control is the second undefended one
PAGE = Path(__file__).parents[2] / "docs" / "newcomer.md"


def forget_strangers():
    """Take back what files named with --plugin have registered in this process."""
    _plugin_files.clear()
    for registry in (ATTACKS, DEFENSES):
        for name in [n for n in registry if registry.get(n).__module__.startswith("robobench_plugin_")]:
            del registry._classes[name]
    for name in [n for n in sys.modules if n.startswith("robobench_plugin_")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """An empty folder in which every command of the page has run, in its order.

    The folder, what was printed, and the page's own account of it beside it.
    """
    folder = tmp_path_factory.mktemp("newcomer")
    forget_strangers()
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setenv("COLUMNS", "80")
    output, told = [], []
    try:
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
        for kind, text in blocks:
            assert kind in ("sh", "python", "text")
            if kind == "text":
                told.append((text, output[-1][1]))
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
        yield folder, output, told
    finally:
        patch.undo()
        forget_strangers()


@pytest.fixture
def store(walked):
    return walked[0] / "runs"


@pytest.fixture
def page(walked):
    return walked[0] / "my-report" / "report.html"


def test_every_command_runs_and_the_newcomer_s_defense_stands_on_the_board(walked):
    folder, output, told = walked
    (first, *_) = [text for command, text in output if command == "leaderboard"]
    assert re.search(r"^ *\d +smooth ", first, re.MULTILINE)
    ((text, printed),) = told  # figures may differ from one machine to the next in their last digit, ranks of ties too
    assert text.splitlines()[0] == printed.splitlines()[0] and text.splitlines()[-2:] == printed.splitlines()[-2:]
    assert all(sorted(re.findall(r"^\d  (\w+)", board, re.MULTILINE)) == NAMES for board in (text, printed))
    assert "at - smooth" in output[-3][1] or "smooth - at" in output[-3][1]
    assert (folder / "my-report" / "tables" / "leaderboard.tex").is_file() and (folder / "my-defense").is_dir()


def test_the_page_shows_stages_pictures_and_provenance(page):
    text = page.read_text()
    for mark in ("f1-eps-Linf", "f1-cost-Linf", "f1-stages", "f1-images", "Lost by most networks", "torch version"):
        assert mark in text
    assert "forward 6, input_grad 5, weight_grad 1" in text  # the stage's passes, as declared


def test_the_command_beside_a_row_plans_exactly_the_same_training_and_cells(page, store, monkeypatch):

    from robobench.core.console import Reporter
    from robobench.execution.evaluation_job import Runner
    from robobench.planning.planner import make_plan

    plans = []
    monkeypatch.setattr(interface, "work", lambda request, *rest: plans.append(make_plan(request)) or 1 / 0)
    commands = [html.unescape(c) for c in re.findall(r'<pre tabindex="0"><code>(.*?)</code>', page.read_text())]
    assert (
        len(commands) == 4 and sum("--plugin FILE" in c for c in commands) == 1
    )  # smooth.py: only its owner knows where
    for command in (c for c in commands if "--plugin" not in c):
        with pytest.raises(ZeroDivisionError):
            main(shlex.split(command)[1:])
    configs = [json.loads(p.read_text()) for p in store.glob("*/config.json")]
    trained = {config["key"] for config in configs if config["defense"] != "smooth"}
    assert {plan.trainings[0].key for plan in plans} == trained
    stored = {p.name for p in (store / "artifacts" / "evaluations").iterdir()}
    for plan in plans:
        runner = Runner(plan, Reporter(-1))
        keys = {runner.key(*work) for work in plan.work() if work[0].key == plan.trainings[0].key}
        assert keys and keys <= stored


def test_a_report_of_nothing_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none"), "--html", str(tmp_path / "x" / "p.html")]) == 2
    assert "no rows in" in capsys.readouterr().err and not (tmp_path / "x").exists()


# The worst contrast of a text with what lies under it, in this scheme (WCAG 2.1), and whose it is.
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
           seen: style.outlineStyle !== "none" && box.width > 0 && box.left >= 0,
           sort: e.closest("th")?.getAttribute("aria-sort") ?? null }; })()"""
COLUMN = """[...document.activeElement.closest("table").tBodies[0].rows].map(
  (row) => parseFloat(row.cells[document.activeElement.closest("th").cellIndex].textContent))"""


@pytest.mark.skipif(browser.PROGRAM is None, reason="no chromium here; apt-get install chromium")
def test_in_a_browser_the_page_sorts_by_keyboard_is_read_in_the_dark_and_prints(page, tmp_path):
    with browser.Browser(tmp_path / "profile") as seen:
        seen.open(page)
        seen.press("Tab")
        first = seen.evaluate(FOCUS)
        assert first["text"] == "To the tables" and first["seen"]
        seen.press("Enter")
        for _ in range(20):
            seen.press("Tab")
            here = seen.evaluate(FOCUS)
            assert here["seen"], here
            if here["text"] == "clean":
                break
        assert here["tag"] == "BUTTON"
        for order in ("descending", "ascending"):
            seen.press("Enter")
            column = seen.evaluate(COLUMN)
            assert column == sorted(column, reverse=order == "descending") and len(column) > 2
            assert seen.evaluate(FOCUS)["sort"] == order
            assert seen.evaluate("document.getElementById('said').textContent") == f"sorted by clean, {order}"
        for media, scheme in (("screen", "light"), ("screen", "dark"), ("print", "light")):
            seen.media(media, scheme)
            ratio, tag = seen.evaluate(CONTRAST)
            assert ratio >= 4.5, (media, scheme, tag, ratio)
        seen.resize(979)  # letter paper, landscape, less its margins, in CSS pixels
        assert seen.evaluate("document.documentElement.scrollWidth") <= 979
        assert seen.pdf()[:4] == b"%PDF"
        assert seen.evaluate("[...document.querySelectorAll('details')].every((part) => part.open)")
        assert seen.evaluate("[...document.images].length") == 0  # pictures are inside the figures
        seen.media("screen", "dark")
        assert len(seen.picture()) > 20_000
        assert not seen.complaints
