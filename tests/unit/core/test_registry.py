"""Registered names, conflicts and suggestions."""

import pytest

from robobench.core.registry import Registry, unknown_name
from robobench.errors import RequestError


@pytest.fixture
def registry():
    table = Registry("defense")
    for name in ("trades", "at", "standard"):
        table.register(name)(type(name, (), {"__module__": f"defenses.{name}"}))
    return table


def test_registered_class_is_found_by_name(registry):
    assert registry.get("trades").name == "trades"
    assert "at" in registry and "mart" not in registry
    assert list(registry) == ["at", "standard", "trades"]


def test_second_class_of_same_name_is_refused(registry):
    with pytest.raises(RequestError) as error:
        registry.register("trades")(type("Other", (), {"__module__": "my_pkg.trades"}))
    assert str(error.value) == (
        "defense 'trades' is already registered by defenses.trades; rename the one in my_pkg.trades"
    )


def test_same_class_may_be_registered_again(registry):
    again = type("trades", (), {"__module__": "defenses.trades"})
    assert registry.register("trades")(again) is again
    assert registry.get("trades") is again


def test_unknown_name_gets_suggestion_and_list(registry):
    with pytest.raises(RequestError) as error:
        registry.get("trade")
    assert str(error.value) == "unknown defense 'trade'; did you mean 'trades'? known: at, standard, trades"
    assert str(unknown_name("norm", "xyz", ["L2"])) == "unknown norm 'xyz'; known: L2"
