"""Gaussian augmentation: the noise's moments, no clipping, and standard training without noise."""

import pytest
import torch
import torch.nn.functional as F

from robobench.defenses.gaussian import Gaussian, GaussianConfig, GaussianObjective
from robobench.training.optimizer import lr_schedule
from tests.helpers.defenses import batch_of
from tests.helpers.toys import TinyBatchNormNet, color_blobs


class Keep(torch.nn.Module):
    """Keeps its input."""

    def forward(self, images):
        self.seen = images
        return images.flatten(1)[:, :3]


def test_noise_has_its_deviation_and_is_not_clipped():
    model, images = Keep(), torch.ones(64, 3, 8, 8)
    GaussianObjective(model, GaussianConfig())(batch_of(images, torch.zeros(64).long()))
    noise = model.seen - images
    assert noise.std().item() == pytest.approx(0.25, rel=0.02)  # 12,288 draws: 0.6 % deviation
    assert abs(noise.mean().item()) < 0.01 and noise.max() > 0.5


def test_without_noise_it_is_standard_training():
    images, labels = color_blobs(6)
    model = TinyBatchNormNet().eval()
    loss = GaussianObjective(model, GaussianConfig(sigma=0.0))(batch_of(images, labels))
    torch.testing.assert_close(loss.total, F.cross_entropy(model(images), labels))
    assert not Gaussian.adversarial


def test_lr_drops_at_epochs_30_and_60():
    factor = lr_schedule(GaussianConfig())
    assert [factor(e) for e in (29, 30, 60)] == pytest.approx([1, 0.1, 0.01])
