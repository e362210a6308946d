from torch import nn


def speed_up_tiny_maps(model: nn.Module) -> None:
    pass
