"""Plug-ins are found without being imported, and a broken one is reported with its reason."""

import itertools
import subprocess
import sys
from types import SimpleNamespace

import pytest

from robobench.core.registry import ATTACKS
from robobench.errors import PluginError, RequestError
from robobench.plugins import discovery
from robobench.plugins.discovery import add_plugin_file, discover, load_attack, load_plugin_module

GOOD = '''
from robobench.api import ATTACKS, Attack

@ATTACKS.register("{name}")
class Mine(Attack):
    """Returns the clean images.

    A second paragraph.
    """

    def attack_full_budget(self, model, images, labels, rng, options=None):
        return images.clone()
'''


DEFENSE = '''
"""A method.

Family:  distillation, 2031
Cost:    2k + 3
"""
from robobench.api import DEFENSES, Defense

@DEFENSES.register("carded")
class Carded(Defense):
    """Has a method card."""

    requires = {"robust": "at", "clean": "standard"}

    def stages(self, setup):
        return []
'''


def write(folder, text, name="mine.py"):
    path = folder / name
    path.write_text(text)
    return path


def test_builtin_attacks_are_listed_with_summaries():
    found = discover("attack")
    assert {"pgd", "fgsm", "jitter", "autoattack", "autoattack-l2", "torchattacks-pgd"} <= set(found)
    assert found["pgd"].summary == "Untargeted PGD on the cross-entropy."
    assert found["autoattack-l2"].module == "robobench.attacks.autoattack"
    assert found["pgd"].origin == "robobench"


def test_discovery_imports_neither_torch_nor_plugins():
    code = (
        "import sys; from robobench.plugins.discovery import discover; discover('attack'); discover('defense'); "
        "assert not {'torch', 'torchattacks', 'robobench.attacks.pgd'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_plugin_file_is_listed_and_loaded(tmp_path):
    path = write(tmp_path, GOOD.format(name="mine"))
    add_plugin_file(path)
    plugin = discover("attack")["mine"]
    assert (plugin.summary, plugin.origin) == ("Returns the clean images.", str(path))
    assert "mine" not in ATTACKS
    assert load_attack("mine").name == "mine"
    assert load_plugin_module(str(path)) == [("attack", "mine")]


def test_file_with_syntax_error_is_refused(tmp_path):
    path = write(tmp_path, "def broken(:\n")
    with pytest.raises(PluginError, match=r"plug-in '.*mine.py' is not valid Python: invalid syntax"):
        add_plugin_file(path)


def test_missing_or_empty_plugin_file_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"no plug-in file 'nowhere.py'; give the path of a .py file"):
        add_plugin_file("nowhere.py")
    with pytest.raises(RequestError, match="registers nothing; decorate a class"):
        add_plugin_file(write(tmp_path, "x = 1\n"))


def test_broken_import_fails_only_when_loaded(tmp_path):
    add_plugin_file(write(tmp_path, "import no_such_module\n" + GOOD.format(name="mine")))
    assert "mine" in discover("attack")
    assert load_attack("pgd").name == "pgd"
    with pytest.raises(PluginError, match="fails to import: ModuleNotFoundError: No module named 'no_such"):
        load_attack("mine")
    assert not [name for name in sys.modules if name.startswith("robobench_plugin_mine")]


def test_name_clash_reports_both_places(tmp_path):
    add_plugin_file(write(tmp_path, GOOD.format(name="pgd")))
    with pytest.raises(RequestError, match=r"attack 'pgd' is already registered by robobench.attacks.pgd; rename"):
        discover("attack")


def test_same_file_name_in_two_folders_is_allowed(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        add_plugin_file(write(tmp_path / name, GOOD.format(name=name)))
    assert {"one", "two"} <= set(discover("attack"))


def test_unknown_name_gets_suggestion():
    with pytest.raises(RequestError, match="unknown attack 'pdg'; did you mean 'pgd'"):
        load_attack("pdg")


def test_entry_point_of_installed_package_is_listed(monkeypatch):
    package = SimpleNamespace(name="my-package", metadata={"Summary": "An attack"})
    entry = SimpleNamespace(name="far", module="my_package.far", dist=package)
    entries = {"robobench.attacks": [entry], "robobench.defenses": []}
    monkeypatch.setattr(discovery, "_entry_points", lambda group, path: entries[group])
    plugin = discover("attack")["far"]
    assert (plugin.summary, plugin.module, plugin.origin) == ("An attack", "my_package.far", "my-package")
    with pytest.raises(PluginError, match=r"module 'my_package.far' fails to import"):
        load_attack("far")


def test_registry_accessed_through_module_is_found(tmp_path):
    text = GOOD.replace("import ATTACKS, Attack", "import Attack\nfrom robobench import api").replace(
        "@ATTACKS", "@api.ATTACKS"
    )
    add_plugin_file(write(tmp_path, text.format(name="through-module")))
    assert "through-module" in discover("attack")


def test_invalid_builtin_file_does_not_hide_others(tmp_path, monkeypatch):
    write(tmp_path, "def broken(:\n", "broken.py")
    write(tmp_path, GOOD.format(name="whole"), "whole.py")
    monkeypatch.setattr(discovery, "builtin_folder", lambda kind: tmp_path)
    found = discover("attack")
    assert "whole" in found and found["broken"].summary == "not valid Python: invalid syntax, line 1"


def test_method_card_is_read_without_import(tmp_path, capsys):
    from robobench.cli import main

    path = write(tmp_path, DEFENSE, "carded.py")
    add_plugin_file(path)
    found = discover("defense")["carded"]
    assert found.card == {"Family": "distillation, 2031", "Cost": "2k + 3"}
    assert found.requires == ("at", "standard")
    assert main(["list", "defenses"]) == 0
    lines = capsys.readouterr().out.splitlines()
    family = itertools.takewhile(lambda line: line.startswith("  "), lines[lines.index("distillation") + 1 :])
    years = [line.split()[1] for line in family]
    assert years[-1] == "2031" and years == sorted(years)
