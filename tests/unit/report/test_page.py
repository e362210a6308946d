import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from robobench.report import figures
from robobench.report.export import write_report
from robobench.report.html import page as page_module
from tests.helpers.rows import ATTACKS, make_table_rows

INJECTION = '<script>alert("x")</script>&$_^'


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colors, #rgb or #rrggbb. Source: WCAG 2.1, relative luminance."""

    def luminance(color: str) -> float:
        digits = color[1:] if len(color) == 7 else "".join(2 * c for c in color[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return float(np.dot((0.2126, 0.7152, 0.0722), linear))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_page_colors_have_enough_contrast():
    """In light mode, in dark mode and in print."""
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.478, 1e-3)
    css = (Path(page_module.__file__).parent / "page.css").read_text()
    schemes = [dict(re.findall(r"--(\w+): (#\w+);", block)) for block in re.findall(r":root \{(.*?)\}", css)]
    assert len(schemes) == 3 and len({tuple(scheme) for scheme in schemes}) == 1
    for scheme in schemes:
        for text in ("ink", "soft", "link"):
            assert min(contrast(scheme[text], scheme[paper]) for paper in ("paper", "stripe")) >= 4.5
        assert contrast(scheme["ink"], scheme["best"]) >= 4.5
        assert contrast(scheme["link"], scheme["paper"]) >= 3  # outline of the element with focus
    assert not re.search(r"#[0-9a-fA-F]{3,6}\b", re.sub(r":root \{.*?\}", "", css))  # only the named colors
    assert re.search(r":focus-visible \{ outline: 2px", css)


def test_page_is_offline_escaped_and_exports_everything(tmp_path):
    rows = make_table_rows({INJECTION: 0.5, "at": 0.4}, flags="transfer-only", model="<img src=x onerror=alert(1)>")
    page, *files = write_report(rows, tmp_path, export=tmp_path / "all")
    text = page.read_text()
    assert page == tmp_path / "all" / "report.html"
    assert text.count("<script>") == 1 and "<img" not in text
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;&amp;$_^" in text
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#|data:)|@import|url\((?!#|"?data:)""", text)
    assert len(set(re.findall(r'\bid="([^"]+)"', text))) == len(re.findall(r'\bid="([^"]+)"', text))
    assert "currentColor" in text and figures.INK not in text.split("</style>")[1]
    assert "No command: there are no records" in text
    assert all(f.stat().st_size for f in files) and {f.parent.name for f in files} == {"figures", "tables"}
    names = {f.name for f in files}
    assert {"f1-eps-Linf.png", "f1-cost-Linf.svg", "leaderboard.tex", "leaderboard.robustbench.json"} <= names
    assert {"leaderboard.csv", "matrix-1-white-box.md", "matrix-1-transfer.csv"} <= names


def test_page_of_a_thousand_rows_is_small(tmp_path):
    rows = make_table_rows({f"d{i}": 0.9 - i / 100 for i in range(63)}, ATTACKS)
    start = time.process_time()
    (page,) = write_report(rows.head(1000), tmp_path)
    assert page.stat().st_size < 2e6
    assert time.process_time() - start < 40  # 20 s on an idle machine


def test_leaderboards_alone_import_no_torch():
    code = "import sys, robobench.report.export; sys.exit(bool({'torch', 'matplotlib'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)
