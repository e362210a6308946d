"""Presets and their layers."""

import pytest

from robobench.errors import RequestError
from robobench.planning.presets import preset_layers, preset_values


def test_fast_is_cifar_in_fewer_epochs():
    cifar = preset_values("cifar", "resnet18", "training")
    assert preset_values("fast", "resnet18", "training") == {**cifar, "epochs": 15}
    assert preset_values("fast", "resnet18", "run") == preset_values("cifar", "resnet18", "run")


def test_methods_see_the_weakest_layer_first():
    assert preset_layers("fast", "wrn50") == ["cifar", "fast"]
    assert preset_layers("quick", "wrn50") == ["quick", "quick:large"]
    assert preset_layers("quick", "cnn") == ["quick"]


@pytest.mark.parametrize("name", ["quick:large", "fsat"])
def test_only_whole_presets_can_be_named(name):
    with pytest.raises(RequestError, match=r"known: awp2020, cifar, fast, fastat2026, finetune.*paper, quick"):
        preset_layers(name, "cnn")
