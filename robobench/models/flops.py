"""FLOPs of a forward pass, so that the cost of different models compares."""

from __future__ import annotations

from dataclasses import replace

from robobench.models.build import build_model
from robobench.models.spec import ModelSpec


def count_forward_flops(spec: ModelSpec, resolution: int) -> int | None:
    """Return the floating-point operations of a forward pass of one image: two for each multiplication and addition.

    Convolutions, matrix products and attention are counted (torch's FlopCounterMode); activations and normalization are
    not.

    Args:
        resolution: side of the image in pixels, before the model's own resizing.

    Returns:
        None if the model cannot take one such image.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    try:
        model = build_model(replace(spec, pretrained=False)).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, resolution, resolution))
    except Exception:  # a user's model may need more than one image, or a GPU
        return None
    return int(counter.get_total_flops()) or None
