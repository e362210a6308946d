import torch

import robobench
from tests.helpers.toys import LinearTwoClass


def test_more_samples_never_raise_the_gap():
    model, images = LinearTwoClass((3, 6, 6)).requires_grad_(False), torch.full((4, 3, 6, 6), 0.5)
    gaps = [
        model.gap(robobench.attack("noise", model, images, torch.zeros(4).long(), eps=0.05, samples=samples))
        for samples in (1, 2, 40)
    ]
    assert (gaps[1] <= gaps[0]).all() and (gaps[2] < gaps[0]).all()
