"""Make the pictures in docs/images: the README's figure, and screenshots of the site and of a report.

python docs/pictures.py             the figure only
python docs/pictures.py --shots DIR also screenshots with Chromium, of the built site in DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

from robobench.report import figures
from robobench.report.leaderboard import filter_rows, rank_models, split_leaderboards
from robobench.results.rows import read_rows

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
BOARD = ROOT / "leaderboards" / "cifar10-jpeg-resnet20"
PAGES = {"site-start": "index.html", "site-trades": "methods/defense-trades/index.html"}


def plot_board() -> None:
    """Plot the models that the README's table shows: those under AutoAttack at Linf 8/255."""
    rows = filter_rows(read_rows(BOARD), ["norm=Linf", "eps=8/255", "examples=200"])
    boards = [lines for _, lines in split_leaderboards(rank_models(rows))]
    lines = next(lines for lines in boards if "autoattack" in lines.iloc[0]["attacks"].split(","))
    figure = figures.plot_clean_against_robust(lines)
    with figures.figure_style():
        figure.savefig(IMAGES / "clean-against-robust.png", dpi=110, facecolor="white", transparent=False)


def take_screenshots(site: Path) -> None:
    """Take screenshots of two pages of the site, and of the board's report at three widths, light and dark."""
    import tempfile

    from robobench.core.imports import import_file
    from robobench.report.export import write_report

    Browser = import_file("robobench_docs_browser", ROOT / "tests" / "helpers" / "browser.py").Browser  # noqa: N806
    with tempfile.TemporaryDirectory() as folder, Browser(Path(folder) / "profile") as browser:
        (report,) = write_report(read_rows(BOARD), BOARD, html=Path(folder) / "report.html")
        shots = [(name, site / page, 1280, "light") for name, page in PAGES.items()]
        shots += [(f"report-{width}", report, width, "light") for width in (400, 1280, 2000)]
        shots.append(("report-dark", report, 1280, "dark"))
        for name, page, width, scheme in shots:
            browser.set_media("screen", scheme)
            browser.resize(width)
            browser.open(page)
            (IMAGES / f"{name}.png").write_bytes(browser.screenshot(height=1400))


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    plot_board()
    if sys.argv[1:2] == ["--shots"]:
        take_screenshots(Path(sys.argv[2]))
