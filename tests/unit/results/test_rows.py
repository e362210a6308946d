import pytest

from robobench.errors import RequestError
from robobench.results.rows import count_forwards, group_by_model, make_rows, read_rows, transfer_only, worst_case
from robobench.results.statistics import PerImageOutcomes
from tests.helpers.records import evaluation_record as record


def test_worst_case_is_per_image():
    group = [record("pgd", robust="0011"), record("fgsm", robust="0101")]
    worst = worst_case(group, group[0], "white-box")
    assert worst is not None and worst.values == (False, False, False, True)
    rows = make_rows(group)
    assert [r["robust_accuracy"] for r in rows] == [0.5, 0.5]
    assert {r["worst_case_accuracy"] for r in rows} == {0.25}  # below both accuracies
    assert rows[0]["worst_case_attacks"] == "fgsm,pgd"


def test_transfer_sources_have_separate_worst_cases():
    group = [
        record("pgd", "transfer", robust="0011", source_digest="a"),
        record("fgsm", "transfer", robust="0110", source_digest="b"),
        record("pgd", robust="0001"),
    ]
    rows = make_rows(group)
    assert [r["worst_case_accuracy"] for r in rows] == [0.5, 0.5, 0.25]
    assert [r["worst_case_attacks"] for r in rows] == ["pgd", "fgsm", "pgd"]


def test_other_test_images_are_another_group():
    first, other = record(robust="0011"), record(robust="1100", data_digest="other")
    assert len(group_by_model([first, other])) == 2


def test_failed_attack_leaves_no_worst_case():
    failed = record("jitter", status="failed", reason="it broke", robust_bits=None, clean_bits=None)
    rows = make_rows([record("pgd", robust="0111"), failed])
    assert rows[1]["robust_accuracy"] is None and rows[1]["reason"] == "it broke"
    assert rows[0]["robust_accuracy"] == 0.75 and rows[0]["worst_case_accuracy"] is None
    assert rows[0]["reason"] == "no worst case: jitter: it broke"
    assert rows[0]["worst_case_attacks"] == "jitter,pgd"
    again = [record("pgd", robust="0111"), failed, record("jitter", robust="0101")]
    assert make_rows(again)[0]["worst_case_accuracy"] == 0.5  # a later result with the same budget


def test_transfer_examples_bound_the_worst_case():
    """They lie in the same ball: two lost images refute a white-box figure, one does not raise the check."""
    white = record("pgd", robust="0111")
    assert make_rows([white, record("pgd", "transfer", robust="0100")])[0]["worst_case_accuracy"] == 0.25
    assert make_rows([white, record("pgd", "transfer", robust="0110")])[0]["worst_case_accuracy"] == 0.75


def outcomes(count: int, of: int = 200) -> PerImageOutcomes:
    return PerImageOutcomes.parse("1" * count + "0" * (of - count))


@pytest.mark.parametrize(
    ("clean", "white", "transfer", "flag"),
    [(180, 18, 90, True), (180, 19, 90, False), (180, 18, 89, False), (180, 0, 180, True)],
)
def test_transfer_only_thresholds(clean, white, transfer, flag):
    assert transfer_only(outcomes(clean), outcomes(white), outcomes(transfer)) is flag


def test_transfer_only_needs_images_and_protocols():
    """At least 200 images, and results under both protocols."""
    assert not transfer_only(outcomes(199, 199), outcomes(0, 199), outcomes(199, 199))
    assert not transfer_only(outcomes(200), outcomes(0), None)


def test_file_without_row_columns_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RequestError, match="lacks dataset"):
        read_rows(tmp_path)


def test_forwards_weigh_declared_passes():
    """They are unknown if one stage declares none."""
    stage = {"images": 100, "passes": {"forward": 6, "input_grad": 5, "weight_grad": 1, "teacher_forward": 1}}
    assert count_forwards({"stages": [stage, stage]}) == 2 * 100 * (6 + 5 + 2 * 1 + 1)
    assert count_forwards({"stages": [stage, {**stage, "passes": None}]}) is None
    assert count_forwards({}) is None
