"""MACD's masked autoencoder: patches, masks, positions, FL, and the two phases of Algorithm 1."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from robobench.core.rng import KeyedRng
from robobench.defenses.macd import pretrain
from robobench.defenses.macd.config import MACDConfig
from robobench.defenses.macd.mae import MAE, FeatureLearning, pool_tokens
from robobench.models.masked_autoencoder import (
    Block,
    attend,
    count_kept,
    keep_tokens,
    patchify,
    positions,
    removed_mse,
    unpatchify,
)
from robobench.training.base import Batch, Train
from tests.helpers import defenses
from tests.helpers.macd import DEEPER, SHAPE
from tests.helpers.toys import color_blobs


def batch_of(images: Tensor, epoch: int = 0) -> Batch:
    return defenses.batch_of(images, torch.zeros(len(images), dtype=torch.long), epoch)


def random_images(count: int = 4) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def autoencoder(config: MACDConfig = DEEPER) -> MAE:
    return MAE(config, SHAPE, 0)


def stages_of(config: MACDConfig, mae: MAE) -> list[Train]:
    return pretrain.stages(defenses.setup_of(), config, mae)  # type: ignore[return-value]


# --- modules ------------------------------------------------------------------------------------


def test_block_matches_timm():
    from timm.models.vision_transformer import Block as Reference

    torch.manual_seed(5)
    ours = Block(16, 2)
    norm = partial(nn.LayerNorm, eps=1e-6)
    torch.manual_seed(5)
    theirs = Reference(16, 2, mlp_ratio=4, qkv_bias=True, norm_layer=norm)
    drawn, reference = ours.state_dict(), theirs.state_dict()
    assert list(drawn) == list(reference) and all(torch.equal(drawn[name], reference[name]) for name in drawn)
    tokens = torch.randn(2, 5, 16)
    assert torch.equal(ours(tokens), theirs(tokens))


# --- patches, masks, positions ------------------------------------------------------------------


def test_unpatchify_inverts_patchify():
    images = torch.rand(2, 3, 8, 12)
    torch.testing.assert_close(unpatchify(patchify(images, 4), 4, (2, 3)), images, rtol=0, atol=0)


def test_patches_are_in_raster_order():
    images = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)  # channel 1 is channel 0 plus 16
    patches = patchify(images, 2)
    assert patches[0, 1].tolist() == [2, 18, 3, 19, 6, 22, 7, 23]  # upper right
    assert patches[0, 2].tolist() == [8, 24, 9, 25, 12, 28, 13, 29]  # lower left


@pytest.mark.parametrize(
    ("count", "ratio", "kept"),
    [(196, 0.85, 29), (196, 0.75, 49), (784, 0.7, 235), (784, 0.85, 118), (100, 0.9, 10), (64, 0.85, 10)],
)
def test_number_of_kept_tokens_is_rounded(count, ratio, kept):
    assert count_kept(count, ratio) == kept


def test_kept_tokens_are_ascending_and_distinct():
    kept = keep_tokens(KeyedRng.of(torch.arange(50), "test"), 16, 0.75)
    assert kept.shape == (50, 4)
    assert bool((kept.diff(dim=1) > 0).all())
    assert set(kept.flatten().tolist()) == set(range(16))  # any token can be kept


def test_masks_depend_on_key_image_and_epoch():
    index = torch.arange(8)
    first = keep_tokens(KeyedRng.of(index, "seed", 0), 64, 0.75)
    assert torch.equal(first, keep_tokens(KeyedRng.of(index, "seed", 0), 64, 0.75))
    assert not torch.equal(first, keep_tokens(KeyedRng.of(index, "seed", 1), 64, 0.75))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first[3:5], keep_tokens(KeyedRng.of(index[3:5], "seed", 0), 64, 0.75))  # in any batch


def test_positions_of_2x2_grid_equal_hand_computed_values():
    s, c = math.sin(1), math.cos(1)
    small_s, small_c = math.sin(0.01), math.cos(0.01)  # second rate: 10000 ** -(1 / 2)
    zero, one = [0, 0, 1, 1], [s, small_s, c, small_c]  # sines, then cosines, of place 0 and place 1
    by_hand = [zero + zero, one + zero, zero + one, one + one]  # horizontal axis first, raster order
    torch.testing.assert_close(positions((2, 2), 8), torch.tensor(by_hand, dtype=torch.float32))


# --- modules ------------------------------------------------------------------------------------


def test_encoder_depends_only_on_kept_patches():
    encoder, images = autoencoder().encoder, random_images()
    kept = keep_tokens(KeyedRng.of(torch.arange(4), "test"), 16, 0.75)
    removed = torch.ones(4, 16, dtype=torch.bool).scatter(1, kept, False)
    patches = patchify(images, 2)
    removed_changed = unpatchify(torch.where(removed[..., None], 1 - patches, patches), 2, (4, 4))
    kept_changed = unpatchify(torch.where(removed[..., None], patches, 1 - patches), 2, (4, 4))
    cls, tokens = encoder(images, kept)
    assert cls.shape == (4, 1, 16) and tokens.shape == (4, 4, 16)
    for a, b in zip(encoder(removed_changed, kept), (cls, tokens), strict=True):
        assert torch.equal(a, b)
    assert not torch.allclose(encoder(kept_changed, kept)[1], tokens)


def test_keeping_all_tokens_equals_no_mask():
    encoder, images = autoencoder().encoder, random_images()
    everything = torch.arange(16).expand(4, -1)
    torch.testing.assert_close(encoder(images, everything)[1], encoder(images)[1])


def test_decoder_places_kept_and_mask_tokens():
    config = replace(DEEPER, decoder_width=16)
    decoder = MAE(config, SHAPE, 0).decoder
    decoder.embed = decoder.blocks = decoder.to_pixels = nn.Identity()
    kept = keep_tokens(KeyedRng.of(torch.arange(3), "test"), 16, 0.5)
    visible = torch.randn(3, 8, 16)
    tokens = decoder(torch.zeros(3, 1, 16), visible, kept) - decoder.positions
    for image in range(3):
        for place in range(16):
            if place in kept[image].tolist():
                expected = visible[image, kept[image].tolist().index(place)]
            else:
                expected = decoder.mask_token[0, 0]
            torch.testing.assert_close(tokens[image, place], expected, rtol=0, atol=1e-6)


def test_initial_weights_depend_on_seed_only():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one = MAE(DEEPER, SHAPE, 5)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)
    same, other = MAE(DEEPER, SHAPE, 5), MAE(DEEPER, SHAPE, 6)
    assert torch.equal(one.encoder.cls, same.encoder.cls)
    assert not torch.equal(one.encoder.cls, other.encoder.cls)


def test_pooled_fusion_equals_hand_computed_value():
    visible = torch.tensor([[[1.0], [2.0]]])
    whole = torch.tensor([[[0.0], [2.0], [1.0], [3.0]]])  # pooled to two tokens: 1 and 2
    weight = math.e / (math.e + math.e**2)
    fused = FeatureLearning(1, 1, "pooled")(visible, whole)
    torch.testing.assert_close(fused, torch.tensor([[[1 + weight], [2 + 2 * (1 - weight)]]]))


def test_pooling_to_same_number_is_identity():
    """A self gate is then the softmax of the visible tokens."""
    visible = torch.randn(2, 5, 8)
    torch.testing.assert_close(pool_tokens(visible, 5), visible)
    fused = FeatureLearning(8, 2, "pooled")(visible, visible)
    torch.testing.assert_close(fused, visible * (1 + visible.softmax(dim=1)))


def test_cross_attention_ignores_order_of_keys():
    fusion = FeatureLearning(8, 2, "cross_attention")
    visible, whole = torch.randn(2, 3, 8), torch.randn(2, 7, 8)
    fused = fusion(visible, whole)
    assert fused.shape == visible.shape
    torch.testing.assert_close(fusion(visible, whole.flip(1)), fused)
    torch.testing.assert_close(fusion(visible.flip(1), whole), fused.flip(1))


# --- training -----------------------------------------------------------------------------------


def test_pixel_loss_averages_over_removed_patches():
    target, kept = torch.zeros(2, 4, 3), torch.tensor([[0, 2], [1, 3]])
    predicted = torch.zeros(2, 4, 3)
    predicted[0, 1] = 2.0  # removed: squared error 4 on one of four removed patches
    assert removed_mse(predicted, target, kept).item() == pytest.approx(1.0)
    predicted[0, 0] = predicted[1, 3] = 100.0  # kept
    assert removed_mse(predicted, target, kept).item() == pytest.approx(1.0)


def test_biases_and_1d_parameters_have_no_decay():
    mae = autoencoder()
    optimizer = pretrain.adamw(DEEPER, DEEPER.mae_lr)(mae)
    decayed, spared = optimizer.param_groups
    names = {id(p): name for name, p in mae.named_parameters()}
    assert decayed["weight_decay"] == 0.05 and spared["weight_decay"] == 0
    assert decayed["betas"] == (0.9, 0.95)
    assert all(p.dim() <= 1 for p in spared["params"]) and all(p.dim() > 1 for p in decayed["params"])
    spared_names = {names[id(p)] for p in spared["params"]}
    assert {name for name in names.values() if name.endswith("bias")} <= spared_names
    assert {"encoder.cls", "decoder.mask_token"} <= {names[id(p)] for p in decayed["params"]}  # they are 3-D
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_lr_warms_up_then_follows_half_cosine():
    factor = pretrain.warmup_cosine(DEEPER, 100)
    assert [factor(0), factor(5), factor(10)] == [0, 0.5, 1]
    assert factor(55) == pytest.approx(0.5) and factor(100) == pytest.approx(0)
    assert MACDConfig().mae_lr == pytest.approx(3.75e-5)


def test_pixel_phase_learns_without_fl():
    mae, (images, _) = autoencoder(), color_blobs(24)
    stage = stages_of(DEEPER, mae)[0]
    objective = stage.objective
    assert isinstance(objective, nn.Module)
    assert not any(name.startswith("fusion") for name, _ in objective.named_parameters())
    optimizer = stage.optimizer(objective)
    losses = []
    for epoch in range(60):
        loss = objective(batch_of(images, epoch))
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.total.item())
    assert losses[-1] < 0.25 * losses[0]


def feature_gradient(config: MACDConfig, edit: bool = False) -> Tensor:
    """Gradient of the feature term with respect to the embedding's weight."""
    mae = autoencoder()
    objective = pretrain.FeatureObjective(mae, config)
    if edit:  # the literal target, detached by hand
        target = objective._target
        objective._target = lambda images, whole: target(images, whole).detach()  # type: ignore[method-assign]
    loss = objective(batch_of(random_images()))
    loss.metrics["feature_loss"].backward()
    assert mae.encoder.embed.weight.grad is not None
    return mae.encoder.embed.weight.grad


def test_literal_target_has_gradient_and_stopgrad_none():
    both, stopped = replace(DEEPER, feature_target="both"), replace(DEEPER, feature_target="stopgrad")
    torch.testing.assert_close(feature_gradient(both, edit=True), feature_gradient(stopped))
    assert not torch.allclose(feature_gradient(both), feature_gradient(stopped))


def test_frozen_target_is_encoder_after_pixel_phase():
    mae = autoencoder()
    build = stages_of(DEEPER, mae)[1].objective
    with torch.no_grad():
        mae.encoder.embed.bias += 1.0  # as if the pixel phase had learned it
    images, trained = random_images(), copy.deepcopy(mae.encoder)
    objective = build()  # type: ignore[operator]
    with torch.no_grad():
        mae.encoder.embed.bias -= 3.0
    torch.testing.assert_close(objective._target(images, torch.empty(0)), trained(images)[1])
    assert not any("anchor" in name for name in objective.state_dict())
    loss = objective(batch_of(images))
    loss.total.backward()
    assert all(p.grad is None for p in objective.anchor.module.parameters())
    assert loss.total.item() == pytest.approx(sum(v.item() for v in loss.metrics.values()))  # weights 1 and 1


@pytest.mark.parametrize("fusion", ["pooled", "cross_attention"])
def test_all_parameters_of_feature_phase_get_gradient(fusion):
    mae = autoencoder(replace(DEEPER, fusion=fusion))
    objective = pretrain.FeatureObjective(mae, replace(DEEPER, fusion=fusion))
    objective(batch_of(random_images())).total.backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None] == []


def test_bf16_attention_matches_fused_up_to_rounding():
    draw = torch.Generator().manual_seed(0)
    fused = [torch.randn(4, 2, 17, 8, generator=draw).bfloat16().float().requires_grad_() for _ in range(3)]
    written = [x.detach().bfloat16().requires_grad_() for x in fused]
    outs = [attend(*fused), attend(*written).float()]
    grads = [torch.autograd.grad(out.square().sum(), x) for out, x in zip(outs, (fused, written), strict=True)]
    for exact, near in zip((outs[0], *grads[0]), (outs[1], *grads[1]), strict=True):
        assert (near.float() - exact).norm() <= 0.02 * exact.norm()  # bfloat16 has 8 bits: 0.004 per rounding


@pytest.mark.parametrize(("width", "exact"), [(32, True), (64, False)])
def test_narrow_blocks_stay_in_float32_under_autocast(width, exact):
    block, tokens = Block(width, 2), torch.randn(2, 5, width)
    alone = block(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block(tokens), alone) is exact


def test_bf16_losses_are_float32_and_finite():
    mae = autoencoder()
    for objective in (pretrain.PixelObjective(mae, DEEPER), pretrain.FeatureObjective(mae, DEEPER)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective(batch_of(random_images()))
        assert loss.total.dtype == torch.float32 and bool(loss.total.isfinite())


# --- monitor ------------------------------------------------------------------------------------


def test_between_image_cosine_averages_over_image_pairs():
    assert pretrain.between_image_cosine(torch.tensor([[1.0, 0], [2, 0]])) == pytest.approx(1)
    assert pretrain.between_image_cosine(torch.tensor([[1.0, 0], [0, 3], [-1, 0]])) == pytest.approx(-1 / 3)


def test_constant_teacher_is_flagged():
    mae, images = autoencoder(), random_images(32)
    stages = stages_of(DEEPER, mae)
    with torch.no_grad():
        mae.encoder.embed.weight.mul_(20)  # patches outweigh the positions
    metrics, flags = stages[1].final_metrics(images)  # type: ignore[misc]
    assert metrics["between_image_cosine"] < 0.95 and flags == []
    with torch.no_grad():
        mae.encoder.embed.weight.zero_()
        mae.encoder.positions.zero_()
    metrics, flags = stages[1].final_metrics(images)  # type: ignore[misc]
    assert metrics["between_image_cosine"] > 0.999 and flags == ["teacher-collapsed"]
    metrics, flags = stages[0].final_metrics(images)  # type: ignore[misc]
    assert metrics["between_image_cosine"] > 0.999 and flags == []  # only reported
