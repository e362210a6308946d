"""The masked autoencoder: encoder E, decoder D and the feature-learning module FL.

Paper:   He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, arXiv:2111.06377, for E and
         D; section 3.1 of the MACD paper for FL.
Differs: kept tokens stay in raster order, so that they correspond to FL's pooled tokens (G7); how many are
         kept is rounded (G3).

L is the number of patches of an image, n the number of them that are kept, P the values of a patch.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import KeyedRng, seed_from

from .config import MACDConfig

# --- patches and masks --------------------------------------------------------------------------


def grid_of(image_shape: tuple[int, int, int], patch: int, what: str) -> tuple[int, int]:
    """Count the rows and columns of patches; raises ValueError where they do not fill the image."""
    height, width = image_shape[1:]
    if height % patch or width % patch:
        raise ValueError(f"{what} must divide the image size {height} x {width}, got {patch}")
    return height // patch, width // patch


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut images (B, C, H, W) into raster-ordered patches (B, L, P), each as (row, column, channel)."""
    count, channels, height, width = images.shape
    tiles = images.reshape(count, channels, height // patch, patch, width // patch, patch)
    return tiles.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, patch * patch * channels)


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """Put patches (B, L, P) back together: the inverse of `patchify`."""
    (count, _, values), (rows, columns) = patches.shape, grid
    tiles = patches.reshape(count, rows, columns, patch, patch, values // patch**2)
    return tiles.permute(0, 5, 1, 3, 2, 4).reshape(count, -1, rows * patch, columns * patch)


def count_kept(count: int, mask_ratio: float) -> int:
    """Number of tokens that stay visible: rounded, since truncation of binary floats loses tokens."""
    return round(count * (1 - mask_ratio))


def keep_tokens(rng: KeyedRng, count: int, mask_ratio: float) -> Tensor:
    """Draw which of `count` tokens each image keeps: (B, n) int64, ascending."""
    order = rng.uniform(count).argsort(dim=1, stable=True)
    return order[:, : count_kept(count, mask_ratio)].sort(dim=1).values


def take(tokens: Tensor, kept: Tensor) -> Tensor:
    """Pick tokens (B, L, D) by index (B, n): (B, n, D)."""
    return tokens.gather(1, kept.unsqueeze(2).expand(-1, -1, tokens.shape[2]))


def positions(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed positions (L, D): half the width an axis, the horizontal first; sines, then cosines."""
    rows, columns = torch.meshgrid(*(torch.arange(float(n)) for n in grid), indexing="ij")
    rates = 10_000.0 ** (-torch.arange(width // 4) / (width // 4))
    angles = [axis.reshape(-1, 1) * rates for axis in (columns, rows)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


# --- networks -----------------------------------------------------------------------------------


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Mix values by softmax attention: three (B, H, n, D) -> (B, H, n, D).

    PyTorch's fused kernel, but for bfloat16 on a CPU, where it is slow: on two Zen 4 cores, forward and backward of 4
    blocks (width 192, 65 tokens, batch 128) take 722 ms with it, 452 ms so, 879 ms in float32.
    """
    if queries.dtype != torch.bfloat16 or queries.device.type != "cpu":
        return F.scaled_dot_product_attention(queries, keys, values)
    weights = (queries * queries.shape[3] ** -0.5 @ keys.mT).softmax(3, dtype=torch.float32)
    mixed: Tensor = weights.to(values.dtype) @ values
    return mixed


NARROW = 64  # width of a block that stays in float32 below: casts would cost more than bfloat16's products save


class Block(nn.Module):
    """A pre-norm ViT block: self-attention, then a perceptron four times as wide. Layers are named as timm's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, n, D) to as many."""
        device = tokens.device.type
        if tokens.shape[2] < NARROW and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return cast(Tensor, self(tokens.float()))
        qkv = self.attn["qkv"](self.norm1(tokens)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        tokens = tokens + self.attn["proj"](attend(*qkv.unbind(0)).transpose(1, 2).flatten(2))
        return cast(Tensor, tokens + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(tokens)))))


def _blocks(width: int, depth: int, heads: int) -> nn.Sequential:
    """Transformer blocks, then a LayerNorm."""
    return nn.Sequential(*(Block(width, heads) for _ in range(depth)), nn.LayerNorm(width, eps=1e-6))


def _initialize(net: Encoder | Decoder) -> None:
    """Linear layers: Xavier-uniform weights, zero biases (G21)."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


class Encoder(nn.Module):
    """E: a ViT on the visible patches only; a removed patch is never embedded."""

    positions: Tensor

    def __init__(self, image_shape: tuple[int, int, int], patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patch, self.width = patch, width
        self.grid = grid_of(image_shape, patch, "teacher_patch")
        self.count = self.grid[0] * self.grid[1]  # L
        self.embed = nn.Linear(image_shape[0] * patch**2, width)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.register_buffer("positions", positions(self.grid, width), persistent=False)
        self.blocks = _blocks(width, depth, heads)
        _initialize(self)

    def share(self, mask_ratio: float) -> float:
        """Say which part of an image's tokens masking leaves."""
        return count_kept(self.count, mask_ratio) / self.count

    def forward(self, images: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode the patches in `kept` (B, n), or all of them.

        Returns:
            The CLS token (B, 1, D) and the patch tokens (B, n, D), which do not contain it (G23).
        """
        patches, places = patchify(images, self.patch), self.positions
        if kept is not None:
            patches, places = take(patches, kept), places[kept]
        tokens = self.embed(patches) + places
        tokens = self.blocks(torch.cat((self.cls.expand(len(tokens), -1, -1), tokens), dim=1)).float()
        return tokens[:, :1], tokens[:, 1:]


class Decoder(nn.Module):
    """D: the visible tokens and a shared mask token for each removed patch, to pixels."""

    positions: Tensor

    def __init__(self, encoder: Encoder, values: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.register_buffer("positions", positions(encoder.grid, width), persistent=False)
        self.blocks = _blocks(width, depth, heads)
        self.to_pixels = nn.Linear(width, values)
        _initialize(self)

    def forward(self, cls: Tensor, visible: Tensor, kept: Tensor) -> Tensor:
        """Predict every patch: CLS (B, 1, D), tokens (B, n, D) at `kept` (B, n) -> (B, L, P)."""
        cls, visible = self.embed(cls), self.embed(visible)
        places = kept.unsqueeze(2).expand(-1, -1, visible.shape[2])
        tokens = self.mask_token.to(visible.dtype).expand(len(kept), len(self.positions), -1)
        tokens = tokens.scatter(1, places, visible) + self.positions
        tokens = self.blocks(torch.cat((cls, tokens), dim=1))
        return cast(Tensor, self.to_pixels(tokens[:, 1:])).float()


class FeatureLearning(nn.Module):
    """FL: visible tokens F_v weighted by what the whole image's F_e says, added to F_v (section 3.1).

    "pooled": weights are Softmax(AvgPool(F_e)) over the tokens, a channel at a time; no parameters.
    "cross_attention": queries F_v, keys and values F_e (the paper's background section, G7).
    """

    def __init__(self, width: int, heads: int, fusion: str) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True) if fusion == "cross_attention" else None

    def forward(self, visible: Tensor, whole: Tensor) -> Tensor:
        """Fuse F_v (B, n, D) and F_e (B, m, D) to F_o (B, n, D)."""
        if self.attention is not None:
            found: Tensor = self.attention(visible, whole, whole, need_weights=False)[0]
            return visible + found.float()
        return visible + pool_tokens(whole, visible.shape[1]).softmax(dim=1) * visible


def pool_tokens(tokens: Tensor, count: int) -> Tensor:
    """Average neighboring tokens: (B, m, D) -> (B, count, D)."""
    return F.adaptive_avg_pool1d(tokens.mT, count).mT


class MAE(nn.Module):
    """E, D and FL, built from the config; the weights depend on the seed alone."""

    def __init__(self, config: MACDConfig, image_shape: tuple[int, int, int], seed: int) -> None:
        super().__init__()
        cfg, values = config, image_shape[0] * config.teacher_patch**2
        with torch.random.fork_rng():
            torch.manual_seed(seed_from(seed, "macd", "mae"))
            self.encoder = Encoder(
                image_shape, cfg.teacher_patch, cfg.encoder_width, cfg.encoder_depth, cfg.encoder_heads
            )
            self.decoder = Decoder(self.encoder, values, cfg.decoder_width, cfg.decoder_depth, cfg.decoder_heads)
            self.fusion = FeatureLearning(cfg.encoder_width, cfg.encoder_heads, cfg.fusion)


def removed_mse(predicted: Tensor, target: Tensor, kept: Tensor) -> Tensor:
    """Squared error of patches (B, L, P), averaged over each patch's values and over removed patches only."""
    removed = torch.ones(predicted.shape[:2], device=predicted.device).scatter(1, kept, 0.0)
    return ((predicted - target).square().mean(dim=2) * removed).sum() / removed.sum()
