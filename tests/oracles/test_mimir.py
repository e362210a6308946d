"""MIMIR: reconstruction of clean patches from attacked ones, the bottleneck, and ViTs whose tokens are dropped."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from robobench.defenses.mimir import (
    BANDWIDTH,
    MIMIR,
    RIDGE,
    MIMIRConfig,
    encode_visible,
    find_vit,
    gray_out,
    hsic,
)
from robobench.models.masked_autoencoder import patchify, unpatchify
from robobench.training.context import build_objective
from tests.helpers.defenses import THREAT, batch_of, setup_of
from tests.helpers.toys import color_blobs

SMALL = {"decoder_width": 16, "decoder_heads": 2, "patch": 2}
IMAGES, LABELS = color_blobs(6)
GRID = (4, 4)


class ViT(nn.Module):
    """A timm ViT of 8 px images with features and head, as robobench wraps them."""

    def __init__(self, **options):
        super().__init__()
        self.net = VisionTransformer(
            img_size=8, patch_size=2, embed_dim=16, depth=2, num_heads=2, num_classes=0, **options
        )
        self.head = nn.Linear(16, 3)

    def prepare(self, images):
        return images

    def features(self, images):
        return self.net(images)

    def forward(self, images):
        return self.head(self.features(images))


def pretraining(model=None, **changes):
    stage = MIMIR(MIMIRConfig(**SMALL, **changes)).stages(setup_of(model))[0]
    return build_objective(stage, "cpu")


def test_hsic_of_two_images_equals_hand_computed_value():
    """K - mean has one eigenvalue that is not 0, 1 - exp(-d^2 / (2 sigma^2 D)), and the same vector for both."""
    x, y = torch.tensor([[0.0, 0.0], [6.0, 8.0]]), torch.tensor([[1.0], [4.0]])
    product = 1.0
    for distance, dims in ((100.0, 2), (9.0, 1)):
        eigenvalue = 1 - torch.tensor(-distance / (2 * BANDWIDTH**2 * dims)).exp().item()
        product *= eigenvalue / (eigenvalue + 2 * RIDGE)
    assert hsic(x, y).item() == pytest.approx(product, rel=1e-4)


def test_hsic_is_zero_if_one_side_is_constant():
    assert hsic(torch.randn(8, 3), torch.ones(8, 5)).item() == pytest.approx(0, abs=1e-6)


def test_hsic_depends_on_pairing():
    """Equal arguments give the largest value: the rank of the centered kernel, at most B - 1."""
    x = 5 * torch.randn(8, 3)
    same, shuffled = hsic(x, x).item(), hsic(x, x[torch.randperm(8)] + torch.randn(8, 3)).item()
    assert shuffled < same <= 7


def test_gray_out_keeps_visible_patches():
    kept = torch.tensor([[0, 5]]).expand(6, -1)
    patches = patchify(gray_out(IMAGES, kept, 2, GRID), 2)
    torch.testing.assert_close(patches[:, [0, 5]], patchify(IMAGES, 2)[:, [0, 5]])
    others = [n for n in range(16) if n not in (0, 5)]
    assert (patches[:, others] == 0.5).all()


@pytest.mark.parametrize("vit", [True, False])
def test_error_is_that_of_removed_normalized_patches(vit):
    """The target's visible patches do not count, nor do its brightness and contrast."""
    objective = pretraining(ViT() if vit else None).eval()
    kept = torch.tensor([[0, 5, 9, 15]]).expand(6, -1)
    error = objective.errors(IMAGES, IMAGES, kept)[0]
    patches = patchify(IMAGES, 2)
    patches[:, [0, 5, 9, 15]] = 0.0
    changed = unpatchify(0.5 * patches + 0.2, 2, GRID)
    torch.testing.assert_close(objective.errors(IMAGES, changed, kept)[0], error, rtol=1e-3, atol=1e-4)
    assert (objective.errors(changed, IMAGES, kept)[0] - error).abs().max() > 1e-6  # the input does


def test_vit_with_all_tokens_equals_its_forward_pass():
    model = ViT().eval()
    everything = torch.arange(16).expand(6, -1)
    tokens = encode_visible(find_vit(model), IMAGES, everything)
    torch.testing.assert_close(tokens, model.net.forward_features(IMAGES))
    some = encode_visible(find_vit(model), IMAGES, everything[:, :3])
    assert some.shape == (6, 4, 16)


def test_vit_passes_cost_their_share_of_tokens():
    stages = MIMIR(MIMIRConfig(**SMALL)).stages(setup_of(ViT()))
    assert (stages[0].passes.forward, stages[0].passes.weight_grad) == (0.5, 0.25)
    assert MIMIR(MIMIRConfig(**SMALL)).stages(setup_of())[0].passes.forward == 2
    assert find_vit(ViT(class_token=False, global_pool="avg")) is None  # no prefix token: as any other model


def test_vit_that_normalizes_after_pooling_gets_own_norm():
    assert isinstance(pretraining(ViT(global_pool="avg")).norm, nn.LayerNorm)
    assert isinstance(pretraining(ViT()).norm, nn.Identity)


def test_attack_raises_reconstruction_error_of_attacked_image():
    objective, batch = pretraining(), batch_of(IMAGES, LABELS)
    adv, kept = objective.inner_maximization(batch), objective.draw_mask(batch.rng.child("attack-mask"))
    THREAT.check(adv, IMAGES, "mimir")
    start = THREAT.random_start(IMAGES, batch.rng.child("start"))
    before, after = (objective.eval().errors(x, x, kept)[0] for x in (start, adv))
    assert after.mean() > before.mean()
    assert not torch.equal(kept, objective.draw_mask(batch.rng.child("mask")))


def test_loss_is_pixel_loss_plus_weighted_dependence():
    loss = pretraining(bottleneck=0.1)(batch_of(IMAGES, LABELS))
    pixel_loss, dependence = loss.metrics["pixel_loss"].item(), loss.metrics["hsic"].item()
    assert loss.total.item() == pytest.approx(pixel_loss + 0.1 * dependence, rel=1e-5)
    assert 0 < dependence <= 5


def test_fine_tuning_trains_the_head_again():
    setup = setup_of()
    pretrain, tune = MIMIR(MIMIRConfig(**SMALL)).stages(setup)
    assert not any(p.requires_grad for p in setup.model.head.parameters())
    build_objective(tune, "cpu")
    assert all(p.requires_grad for p in setup.model.head.parameters())
    assert pretrain.whole_batch and not tune.whole_batch


def test_mask_that_keeps_no_patch_is_refused():
    with pytest.raises(ValueError, match="keeps 0 of 16 patches"):
        pretraining(mask_ratio=0.99)
