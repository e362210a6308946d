"""What people have goes in rightly, or is refused in one true line: every case of docs/what_goes_in.md.

`WRITE_PAGE=1 pytest tests/inputs -k page` rewrites the page.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.inputs import data, models, weights, words

CASES = [*data.CASES, *weights.CASES, *models.CASES, *words.CASES]
PAGE = Path(__file__).parents[2] / "docs" / "what_goes_in.md"
INTRODUCTION = f"""# What goes in

Every line is a test. `read` means that the numbers are right and nothing is said, `read and said` that a note says what
was chosen or converted, `refused` that one line says what came, what is allowed and the next move, before anything is
trained or attacked. The last column is part of that line.

{len(CASES)} cases.
"""


def page():
    sections = dict.fromkeys(case.section for case in CASES)
    parts = [INTRODUCTION]
    for section in sections:
        rows = [case.row() for case in CASES if case.section == section]
        parts.append("\n".join([f"## {section}\n", "| given | what happens | said |", "|---|---|---|", *rows, ""]))
    return "\n".join(parts)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_input_is_read_or_refused(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case.check(tmp_path)


def test_page_lists_every_case():
    if os.environ.get("WRITE_PAGE"):
        PAGE.write_text(page())
    assert PAGE.read_text() == page(), "run: WRITE_PAGE=1 pytest tests/inputs -k page"
    assert len(CASES) >= 120 and max(Counter((case.section, case.given) for case in CASES).values()) == 1
