"""A plug-in's digest covers its code. Docstrings, comments, imports and formatting do not change it."""

import pytest

from robobench.plugins.digest import code_digest, source_digest
from robobench.plugins.discovery import add_plugin_file, load_attack

SOURCE = '''"""Module docstring."""

import torch

from robobench.api import ATTACKS, Attack

STEPS = 10


@ATTACKS.register("mine")
class Mine(Attack):
    """Class docstring."""

    component_names = ()

    def attack_full_budget(self, model, images, labels, rng, options=None, scale=0.5):
        """Method docstring."""
        # a comment
        adv = images + scale * self.threat.eps
        print(f"{self.name:<{STEPS}} {STEPS!r}")
        return adv.clamp(0, 1)  # another comment
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Module docstring", "Other words"),
        ('"""Module docstring."""\n', ""),
        ("Class docstring", "Other words"),
        ("Method docstring", "Other words"),
        ('        """Method docstring."""\n', ""),
        ("# a comment", "# other words"),
        ("        # a comment\n", ""),
        ("  # another comment", ""),
        ("import torch\n", "import torch\nimport math\n"),
        (
            "from robobench.api import ATTACKS, Attack",
            "from robobench.api import Attack\nfrom robobench.api import ATTACKS",
        ),
        ("adv = images + scale", "adv = (images   +   scale"),
        ("STEPS = 10\n", "STEPS = 10\n\n\n"),
    ],
)
def test_words_and_imports_keep_digest(old, new):
    assert SOURCE.count(old) == 1
    changed = SOURCE.replace(old, new)
    if "(images   +" in new:
        changed = changed.replace("self.threat.eps", "self.threat.eps)")
    assert changed != SOURCE and source_digest(changed) == source_digest(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("images + scale", "images - scale"),
        ("scale * self", "scale / self"),
        ("STEPS = 10", "STEPS = 11"),
        ("STEPS = 10", "STEPS = 10.0"),
        ("STEPS = 10", "STEPS = -10"),
        ("scale=0.5", "scale=0.25"),
        ("scale=0.5", "scale=None"),
        ("clamp(0, 1)", "clamp(1, 0)"),
        ('register("mine")', 'register("other")'),
        ("self.threat.eps", "self.threat.norm"),
        ("        return adv", "        adv = adv\n        return adv"),
        ("        # a comment\n", '        "a string that is no docstring"\n'),
        ("class Mine(Attack)", "class Mine(object)"),
    ],
)
def test_code_changes_digest(old, new):
    assert SOURCE.count(old) == 1
    assert source_digest(SOURCE.replace(old, new)) != source_digest(SOURCE)


def test_digest_is_same_in_every_python_version():
    """Digests are part of stored keys. The value was computed with Python 3.11, 3.12 and 3.13."""
    assert source_digest(SOURCE)[:16] == "4d4f963f5d34241b"


def test_digest_covers_only_own_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    add_plugin_file(path)
    mine = load_attack("mine")
    before, pgd = code_digest(mine), code_digest(load_attack("pgd"))
    assert code_digest(mine) == before
    path.write_text(SOURCE + "# one more comment\n")
    assert code_digest(mine) == before
    path.write_text(SOURCE + "ONE_MORE = 1\n")
    assert code_digest(mine) != before
    assert code_digest(load_attack("pgd")) == pgd


def test_digest_covers_components(tmp_path):
    """An ensemble's digest changes with the code of an attack that it runs."""
    part, whole = tmp_path / "part.py", tmp_path / "whole.py"
    part.write_text(SOURCE.replace('"mine"', '"part"'))
    whole.write_text(SOURCE.replace('"mine"', '"whole"').replace("component_names = ()", 'component_names = ("part",)'))
    for path in (part, whole):
        add_plugin_file(path)
    before = code_digest(load_attack("whole"))
    part.write_text(part.read_text().replace("scale=0.5", "scale=0.25"))
    assert code_digest(load_attack("whole")) != before


def test_digest_covers_every_file_of_package(tmp_path, monkeypatch):
    package = tmp_path / "digest_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("SCALE = 1\n")
    (package / "attack.py").write_text(SOURCE.replace('"mine"', '"packaged"'))
    monkeypatch.syspath_prepend(tmp_path)
    from digest_package.attack import Mine  # type: ignore[import-not-found]

    before = code_digest(Mine)
    (package / "helper.py").write_text("SCALE = 2\n")
    assert code_digest(Mine) != before
