"""Parts of masked autoencoders: patches, masks, a ViT encoder of the visible patches, and a decoder.

Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, arXiv:2111.06377. Kept tokens stay in
raster order, and their number is rounded, where the authors' code shuffles and truncates.

Letters: L patches per image, n kept patches, P values per patch.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.core.rng import KeyedRng

# --- patches and masks --------------------------------------------------------------------------


def grid_of(image_shape: tuple[int, int, int], patch: int, what: str) -> tuple[int, int]:
    """Return the rows and columns of patches; raises ValueError, naming field `what`, if they do not fill the image."""
    height, width = image_shape[1:]
    if height % patch or width % patch:
        raise ValueError(f"{what} must divide the image size {height} x {width}, got {patch}")
    return height // patch, width // patch


def patchify(images: Tensor, patch: int) -> Tensor:
    """Split images (B, C, H, W) into patches (B, L, P) in raster order; values in order row, column, channel."""
    count, channels, height, width = images.shape
    tiles = images.reshape(count, channels, height // patch, patch, width // patch, patch)
    return tiles.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, patch * patch * channels)


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """Reassemble patches (B, L, P) to images; the inverse of `patchify`."""
    (count, _, values), (rows, columns) = patches.shape, grid
    tiles = patches.reshape(count, rows, columns, patch, patch, values // patch**2)
    return tiles.permute(0, 5, 1, 3, 2, 4).reshape(count, -1, rows * patch, columns * patch)


def count_kept(count: int, mask_ratio: float) -> int:
    """Return the number of visible tokens: rounded, since truncating binary floats loses tokens."""
    return round(count * (1 - mask_ratio))


def keep_tokens(rng: KeyedRng, count: int, mask_ratio: float) -> Tensor:
    """Draw which of `count` tokens each image keeps; return their index (B, n) int64, ascending."""
    order = rng.uniform(count).argsort(dim=1, stable=True)
    return order[:, : count_kept(count, mask_ratio)].sort(dim=1).values


def take_tokens(tokens: Tensor, kept: Tensor) -> Tensor:
    """Select tokens by index: (B, L, D), (B, n) -> (B, n, D)."""
    return tokens.gather(1, kept.unsqueeze(2).expand(-1, -1, tokens.shape[2]))


def positions(grid: tuple[int, int], width: int) -> Tensor:
    """Return sine-cosine position embeddings (L, D): horizontal half, vertical half, each sines, then cosines."""
    rows, columns = torch.meshgrid(*(torch.arange(float(n)) for n in grid), indexing="ij")
    rates = 10_000.0 ** (-torch.arange(width // 4) / (width // 4))
    angles = [axis.reshape(-1, 1) * rates for axis in (columns, rows)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


# --- modules ------------------------------------------------------------------------------------


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Compute softmax attention: three (B, H, n, D) -> (B, H, n, D), with H heads.

    It uses PyTorch's fused kernel, except for bfloat16 on a CPU, where that is slow. Measured on two Zen 4 cores,
    forward and backward of 4 blocks (width 192, 65 tokens, batch 128): bfloat16 722 ms fused, 452 ms written out;
    float32 879 ms fused.
    """
    if queries.dtype != torch.bfloat16 or queries.device.type != "cpu":
        return F.scaled_dot_product_attention(queries, keys, values)
    weights = (queries * queries.shape[3] ** -0.5 @ keys.mT).softmax(3, dtype=torch.float32)
    mixed: Tensor = weights.to(values.dtype) @ values
    return mixed


MIN_BF16_WIDTH = 64  # narrower blocks stay in float32, since casts would cost more than bfloat16 saves


class Block(nn.Module):
    """A pre-norm ViT block: self-attention, then an MLP with 4 times the width. Layers are named as in timm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform tokens: (B, n, D) -> (B, n, D)."""
        device = tokens.device.type
        if tokens.shape[2] < MIN_BF16_WIDTH and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return cast(Tensor, self(tokens.float()))
        qkv = self.attn["qkv"](self.norm1(tokens)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        tokens = tokens + self.attn["proj"](attend(*qkv.unbind(0)).transpose(1, 2).flatten(2))
        return cast(Tensor, tokens + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(tokens)))))


def _blocks(width: int, depth: int, heads: int) -> nn.Sequential:
    """Return transformer blocks followed by a LayerNorm."""
    return nn.Sequential(*(Block(width, heads) for _ in range(depth)), nn.LayerNorm(width, eps=1e-6))


def _initialize(net: MAEEncoder | MAEDecoder) -> None:
    """Initialize linear layers: Xavier-uniform weights, zero biases."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


class MAEEncoder(nn.Module):
    """E: a ViT on the visible patches only. Removed patches are not embedded."""

    positions: Tensor

    def __init__(self, image_shape: tuple[int, int, int], patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patch, self.width = patch, width
        self.grid = grid_of(image_shape, patch, "patch")
        self.count = self.grid[0] * self.grid[1]  # L
        self.embed = nn.Linear(image_shape[0] * patch**2, width)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.register_buffer("positions", positions(self.grid, width), persistent=False)
        self.blocks = _blocks(width, depth, heads)
        _initialize(self)

    def share(self, mask_ratio: float) -> float:
        """Return the fraction of tokens that stay visible."""
        return count_kept(self.count, mask_ratio) / self.count

    def forward(self, images: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode the patches in `kept` (B, n), or all.

        Returns:
            The CLS token (B, 1, D), and the patch tokens (B, n, D) without it.
        """
        patches, places = patchify(images, self.patch), self.positions
        if kept is not None:
            patches, places = take_tokens(patches, kept), places[kept]
        tokens = self.embed(patches) + places
        tokens = self.blocks(torch.cat((self.cls.expand(len(tokens), -1, -1), tokens), dim=1)).float()
        return tokens[:, :1], tokens[:, 1:]


class MAEDecoder(nn.Module):
    """D: predicts pixels from the visible tokens and a shared mask token for each removed patch."""

    positions: Tensor

    def __init__(self, inputs: int, grid: tuple[int, int], values: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.register_buffer("positions", positions(grid, width), persistent=False)
        self.blocks = _blocks(width, depth, heads)
        self.to_pixels = nn.Linear(width, values)
        _initialize(self)

    def forward(self, cls: Tensor, visible: Tensor, kept: Tensor) -> Tensor:
        """Predict all patches: CLS (B, 1, D), tokens (B, n, D) at `kept` (B, n) -> (B, L, P)."""
        cls, visible = self.embed(cls), self.embed(visible)
        places = kept.unsqueeze(2).expand(-1, -1, visible.shape[2])
        tokens = self.mask_token.to(visible.dtype).expand(len(kept), len(self.positions), -1)
        tokens = tokens.scatter(1, places, visible) + self.positions
        tokens = self.blocks(torch.cat((cls, tokens), dim=1))
        return cast(Tensor, self.to_pixels(tokens[:, 1:])).float()


def removed_mse(predicted: Tensor, target: Tensor, kept: Tensor) -> Tensor:
    """Return the mean squared error of patches (B, L, P) over the removed patches; `kept` (B, n) are the others."""
    removed = torch.ones(predicted.shape[:2], device=predicted.device).scatter(1, kept, 0.0)
    return ((predicted - target).square().mean(dim=2) * removed).sum() / removed.sum()
