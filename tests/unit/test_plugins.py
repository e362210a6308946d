"""Plug-ins are found without an import, and a broken one says why."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from robobench.core.registry import ATTACKS
from robobench.errors import PluginError, RequestError
from robobench.plugins.discovery import add_plugin_file, code_digest, discover, load_attack, load_plugin_module

GOOD = '''
from robobench.api import ATTACKS, Attack

@ATTACKS.register("{name}")
class Mine(Attack):
    """Returns the clean images.

    And says more.
    """

    def perturb(self, model, images, labels, noise):
        return images.clone()
'''


def write(folder, text, name="mine.py"):
    path = folder / name
    path.write_text(text)
    return path


def test_our_own_attacks_are_listed_with_their_summaries():
    found = discover("attack")
    assert {"pgd", "fgsm", "jitter", "autoattack", "autoattack-l2", "torchattacks-pgd"} <= set(found)
    assert found["pgd"].summary == "Untargeted PGD on the cross-entropy."
    assert found["autoattack-l2"].module == "robobench.attacks.autoattack"
    assert found["pgd"].origin == "robobench"


def test_listing_imports_neither_torch_nor_a_plug_in():
    code = (
        "import sys; from robobench import plugins; plugins.found('attack'); plugins.found('defense'); "
        "assert not {'torch', 'torchattacks', 'robobench.attacks.pgd'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_stranger_s_file_is_listed_and_loaded(tmp_path):
    path = write(tmp_path, GOOD.format(name="mine"))
    add_plugin_file(path)
    seen = discover("attack")["mine"]
    assert (seen.summary, seen.origin) == ("Returns the clean images.", str(path))
    assert "mine" not in ATTACKS
    assert load_attack("mine").name == "mine"
    assert load_plugin_module(str(path)) == [("attack", "mine")]


def test_a_file_with_a_syntax_error_is_refused_when_it_is_named(tmp_path):
    path = write(tmp_path, "def broken(:\n")
    with pytest.raises(PluginError, match=r"plug-in '.*mine.py' is not valid Python: invalid syntax"):
        add_plugin_file(path)


def test_a_missing_file_and_one_that_registers_nothing_are_refused(tmp_path):
    with pytest.raises(RequestError, match=r"no plug-in file 'nowhere.py'; give the path of a .py file"):
        add_plugin_file("nowhere.py")
    with pytest.raises(RequestError, match="registers nothing; decorate a class"):
        add_plugin_file(write(tmp_path, "x = 1\n"))


def test_a_file_that_fails_to_import_is_listed_and_stops_only_who_asks_for_it(tmp_path):
    add_plugin_file(write(tmp_path, "import no_such_module\n" + GOOD.format(name="mine")))
    assert "mine" in discover("attack")
    assert load_attack("pgd").name == "pgd"
    with pytest.raises(PluginError, match="fails to import: ModuleNotFoundError: No module named 'no_such"):
        load_attack("mine")
    assert not [name for name in sys.modules if name.startswith("robobench_plugin_mine")]


def test_a_clash_names_both_places(tmp_path):
    add_plugin_file(write(tmp_path, GOOD.format(name="pgd")))
    with pytest.raises(RequestError, match=r"attack 'pgd' is already registered by robobench.attacks.pgd; rename"):
        discover("attack")


def test_two_files_of_one_name_in_different_folders_do_not_clash(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        add_plugin_file(write(tmp_path / name, GOOD.format(name=name)))
    assert {"one", "two"} <= set(discover("attack"))


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(RequestError, match="unknown attack 'pdg'; did you mean 'pgd'"):
        load_attack("pdg")


def test_an_entry_point_of_an_installed_package_is_listed(monkeypatch):
    package = SimpleNamespace(name="my-package", metadata={"Summary": "A stranger's attack"})
    entry = SimpleNamespace(name="far", module="my_package.far", dist=package)
    entries = {"robobench.attacks": [entry], "robobench.defenses": []}
    monkeypatch.setattr(plugins, "_entry_points", lambda group, path: entries[group])
    seen = discover("attack")["far"]
    assert (seen.summary, seen.module, seen.origin) == ("A stranger's attack", "my_package.far", "my-package")
    with pytest.raises(PluginError, match=r"module 'my_package.far' fails to import"):
        load_attack("far")


def test_the_digest_of_a_plug_in_follows_its_file_alone(tmp_path):
    path = write(tmp_path, GOOD.format(name="mine"))
    add_plugin_file(path)
    mine = load_attack("mine")
    before, pgd = code_digest(mine), code_digest(load_attack("pgd"))
    assert code_digest(mine) == before
    path.write_text(path.read_text() + "# one more byte\n")
    assert code_digest(mine) != before
    assert code_digest(load_attack("pgd")) == pgd


def test_a_registry_named_through_its_module_is_seen(tmp_path):
    text = GOOD.replace("import ATTACKS, Attack", "import Attack\nfrom robobench import api").replace(
        "@ATTACKS", "@api.ATTACKS"
    )
    add_plugin_file(write(tmp_path, text.format(name="through-module")))
    assert "through-module" in discover("attack")


def test_a_built_in_file_that_is_not_python_does_not_hide_the_others(tmp_path, monkeypatch):
    write(tmp_path, "def broken(:\n", "broken.py")
    write(tmp_path, GOOD.format(name="whole"), "whole.py")
    monkeypatch.setattr(plugins, "folder", lambda kind: tmp_path)
    found = discover("attack")
    assert "whole" in found and found["broken"].summary == "not valid Python: invalid syntax, line 1"
