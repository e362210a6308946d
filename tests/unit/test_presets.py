"""Bundles of values that lie over each other."""

import pytest

from robobench.errors import RequestError
from robobench.presets import layers, merged


def test_fast_is_cifar_in_fewer_epochs():
    assert merged("fast", "resnet18", "recipe") == {**merged("cifar", "resnet18", "recipe"), "epochs": 15}
    assert merged("fast", "resnet18", "run") == merged("cifar", "resnet18", "run")


def test_methods_see_the_weakest_layer_first():
    assert layers("fast", "wrn50") == ["cifar", "fast"]
    assert layers("quick", "wrn50") == ["quick", "quick:large"]
    assert layers("quick", "cnn") == ["quick"]


@pytest.mark.parametrize("name", ["quick:large", "fsat"])
def test_only_whole_presets_can_be_named(name):
    with pytest.raises(RequestError, match="known: cifar, fast, paper, quick"):
        layers(name, "cnn")
