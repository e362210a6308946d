from robobench.report.matrix import budget_notes, failure_notes, matrix, split_columns
from robobench.results.rows import make_frame
from tests.helpers.records import evaluation_record as record
from tests.helpers.rows import ATTACKS, make_table_rows


def test_reduced_budgets_are_marked_and_failures_are_dashes():
    rows = make_frame(
        [
            record("pgd"),
            record("autoattack", attack_budget="reduced: apgd-ce 5", budget_reduced=True, robust="0001"),
            record("jitter", status="failed", reason="x", robust_bits=None, clean_bits=None),
        ]
    )
    (line,) = matrix(rows, "white-box").to_dict("records")
    assert line["pgd Linf 0.1"] == "50.0"
    assert line["autoattack Linf 0.1"] == "25.0*"
    assert line["jitter Linf 0.1"] == "-"
    assert line["clean"] == "75.0"
    assert budget_notes(rows) == ["* autoattack: reduced: apgd-ce 5"]
    assert failure_notes(rows) == ["failed: at, jitter, white-box: x"]


def test_matrix_is_split_between_radii_without_losing_columns():
    threats = (("Linf", 0.1), ("Linf", 0.2), ("L2", 0.5))
    table = matrix(make_table_rows({"at": 0.5}, ATTACKS, threats), "white-box")
    parts = split_columns(table, 90)
    assert len(parts) == 3 and [c for p in parts for c in p.columns if c != "clean"] == [
        c for radius in ("Linf 0.1", "Linf 0.2", "L2 0.5") for c in table.columns if c.endswith(radius)
    ]
    assert len(split_columns(table, 400)) == 1
