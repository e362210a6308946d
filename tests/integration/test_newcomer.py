"""The newcomer's page, walked from its first command to its last, and what stands in the report at its end."""

from __future__ import annotations

import contextlib
import html
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from robobench import plugins
from robobench.api import ATTACKS, DEFENSES
from robobench.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "newcomer.md"


def forget_strangers():
    """Take back what files named with --plugin have registered in this process."""
    plugins._files.clear()
    for registry in (ATTACKS, DEFENSES):
        for name in [n for n in registry if registry.get(n).__module__.startswith("robobench_plugin_")]:
            del registry._classes[name]
    for name in [n for n in sys.modules if n.startswith("robobench_plugin_")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """An empty folder in which every command of the page has run, in its order: the folder and what was printed."""
    folder = tmp_path_factory.mktemp("newcomer")
    before = os.getcwd()
    forget_strangers()
    os.chdir(folder)
    output = []
    try:
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
        for kind, text in blocks:
            assert kind in ("sh", "python")
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
        yield folder, output
    finally:
        os.chdir(before)
        forget_strangers()


@pytest.fixture
def store(walked):
    return walked[0] / "runs"


@pytest.fixture
def page(walked):
    return walked[0] / "paper" / "report.html"


def test_every_command_runs_and_the_newcomer_s_defense_stands_on_the_board(walked):
    folder, output = walked
    (first, *_) = [text for command, text in output if command == "leaderboard"]
    assert re.search(r"^ *\d +smooth ", first, re.MULTILINE)
    assert (folder / "paper" / "tables" / "leaderboard.tex").is_file() and (folder / "my-defense").is_dir()


def test_the_page_shows_stages_pictures_and_provenance(page):
    text = page.read_text()
    for mark in ("f1-eps-Linf", "f1-cost-Linf", "f1-stages", "f1-images", "Lost by most networks", "torch version"):
        assert mark in text
    assert "forward 6, input_grad 5, weight_grad 1" in text  # the stage's passes, as declared


def test_the_command_beside_a_row_plans_exactly_the_same_training_and_cells(page, store, monkeypatch):
    from robobench import interface
    from robobench.planner import make_plan
    from robobench.progress import Reporter
    from robobench.runner import Runner
    from robobench.store import key_of

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
        keys = {key_of(runner.recipe(*work)) for work in plan.work() if work[0].key == plan.trainings[0].key}
        assert keys and keys <= stored


def test_a_report_of_nothing_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none"), "--html", str(tmp_path / "x" / "p.html")]) == 2
    assert "no rows in" in capsys.readouterr().err and not (tmp_path / "x").exists()


CLICK = """<script>
const worst = [...document.querySelectorAll("thead button")].find((b) => b.textContent === "clean");
const cells = () => [...worst.closest("table").tBodies[0].rows].map((r) => parseFloat(r.cells[3].textContent));
worst.focus(); worst.click(); const down = cells(); worst.click(); const up = cells();
document.body.insertAdjacentHTML("beforeend", `<p id="result">${JSON.stringify({
  down, up, sort: worst.closest("th").ariaSort, said: document.getElementById("said").textContent,
  focused: document.activeElement === worst, images: [...document.images].length })}</p>`);
</script></body>"""


def test_in_a_browser_headings_sort_and_nothing_is_logged(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium here; apt-get install chromium")
    clicked = tmp_path / "clicked.html"
    clicked.write_text(page.read_text().replace("</body>", CLICK))
    base = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*base, "--enable-logging=stderr", "--dump-dom", clicked.as_uri()], capture_output=True, text=True, timeout=300
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    found = json.loads(html.unescape(re.search(r'<p id="result">(.*?)</p>', done.stdout).group(1)))
    assert found["down"] == sorted(found["down"], reverse=True) and found["up"] == sorted(found["up"])
    assert (found["sort"], found["said"]) == ("ascending", "sorted by clean, ascending")
    assert found["focused"]
    shot = tmp_path / "page.png"
    subprocess.run([*base, f"--screenshot={shot}", "--window-size=1200,2400", page.as_uri()], check=True, timeout=300)
    assert shot.stat().st_size > 20_000
