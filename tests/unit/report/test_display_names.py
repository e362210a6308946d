import pytest

from robobench.report.display_names import display_attacks, display_model, display_name


@pytest.mark.parametrize(
    ("kind", "name", "shown"),
    [
        ("defense", "trades", "TRADES"),
        ("defense", "at", "AT"),
        ("defense", "fast-at", "Fast-AT"),
        ("defense", "rocl", "RoCL"),
        ("attack", "cw", "CW"),
        ("attack", "autoattack", "AutoAttack"),
        ("attack", "mifgsm", "MI-FGSM"),
        ("defense", "external:best_v2", "external:best_v2"),
    ],
)
def test_name_is_that_of_the_paper(kind, name, shown):
    assert display_name(kind, name) == shown


def test_steps_and_seeds_are_kept():
    assert display_attacks("fgsm: fixed; pgd: steps=40, restarts=1", "; ") == "FGSM, PGD-40"
    assert display_model("standard (control, seed 1)") == "Standard (control, seed 1)"
