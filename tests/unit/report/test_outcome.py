import json

import pytest

from robobench.errors import RequestError
from robobench.report.outcome import Gate, evaluation_summary, outcome_sentences
from robobench.results.rows import make_frame
from tests.helpers.records import evaluation_record as record


def rows(**more):
    """Two attacks on four images: three correct when clean, one under both attacks together."""
    same = {"clean": "1110", "threat_eps": 8 / 255}
    return make_frame([record("fgsm", robust="1100", **same), record("pgd", robust="0110", **same, **more)])


def test_sentence_counts_images():
    assert outcome_sentences(rows()) == [
        "Of 4 images 3 are classified correctly, 1 still after changes of at most 8/255 (Linf; fgsm,pgd)."
    ]


def test_gate_compares_worst_case():
    assert Gate.parse("0.25@Linf:8/255").failure(rows()) is None
    assert "worst case 0.2500 at Linf 8/255 is below 0.3" in Gate.parse("0.30@linf:8/255").failure(rows())


def test_failed_attack_misses_the_gate():
    failed = rows(status="failed", reason="out of memory")
    assert "no complete result at Linf 8/255 (pgd: out of memory)" in Gate.parse("0@Linf:8/255").failure(failed)
    assert "not attacked" in Gate.parse("0@L2:0.5").failure(rows())


@pytest.mark.parametrize("text", ["0.3", "30@Linf:8/255", "x@Linf:8/255", "0.3@Linf", "-0.1@Linf:8/255"])
def test_wrong_gate_is_refused(text):
    with pytest.raises(RequestError, match="ACCURACY@NORM:EPS"):
        Gate.parse(text)


def test_summary_is_json_with_eps_as_text():
    found = json.loads(json.dumps(evaluation_summary(rows())))
    (model,) = found["models"]
    assert model["worst_case"][0]["eps"] == "8/255" and model["worst_case"][0]["accuracy"] == 0.25
    assert [cell["status"] for cell in model["cells"]] == ["ok", "ok"] and found["examples"] == 4
