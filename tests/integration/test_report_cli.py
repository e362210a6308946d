"""The report of a real store: its pictures, the command that makes a row again, and the page in a browser."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
import subprocess

import pytest

from robobench.cli import main

TINY = ["--epochs", "1", "--examples", "30", "--set", "run.train_images=64", "--threads", "1", "--quiet"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "runs"
    sets = [
        "--attacks",
        "fgsm,pgd",
        "--set",
        "pgd.steps=2",
        "--set",
        "at.lr=0.05",
        "--eps",
        "8/255,0.1",
        "--out",
        str(out),
    ]
    assert main(["compare", "--defenses", "at", *TINY, *sets]) == 0
    return out


@pytest.fixture(scope="module")
def page(store):
    assert main(["report", str(store)]) == 0
    return store / "report.html"


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
    monkeypatch.setattr(interface, "execute", lambda request, reporter: plans.append(make_plan(request)) or 1 / 0)
    commands = [html.unescape(c) for c in re.findall(r'<pre tabindex="0"><code>(.*?)</code>', page.read_text())]
    assert len(commands) == 3  # at, the source, the control
    for command in commands:
        with pytest.raises(ZeroDivisionError):
            main(shlex.split(command)[1:])
    trained = {json.loads(p.read_text())["key"] for p in store.glob("*/config.json")}
    assert {plan.trainings[0].key for plan in plans} == trained
    stored = {p.name for p in (store / "artifacts" / "evaluations").iterdir()}
    for plan in plans:
        runner = Runner(plan, Reporter(-1))
        keys = {key_of(runner._recipe(*work)) for work in plan.work() if work[0].key == plan.trainings[0].key}
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
        [*base, "--enable-logging=stderr", "--dump-dom", clicked.as_uri()], capture_output=True, text=True, timeout=60
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    found = json.loads(html.unescape(re.search(r'<p id="result">(.*?)</p>', done.stdout).group(1)))
    assert found["down"] == sorted(found["down"], reverse=True) and found["up"] == sorted(found["up"])
    assert (found["sort"], found["said"]) == ("ascending", "sorted by clean, ascending")
    assert found["focused"]
    shot = tmp_path / "page.png"
    subprocess.run([*base, f"--screenshot={shot}", "--window-size=1200,2400", page.as_uri()], check=True, timeout=60)
    assert shot.stat().st_size > 20_000
