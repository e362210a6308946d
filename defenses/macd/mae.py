"""The masked autoencoder: encoder E, decoder D and the feature-learning module FL.

Paper:   He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, arXiv:2111.06377, for E and
         D (`robobench/models/masked_autoencoder.py`); section 3.1 of the MACD paper for FL.
Differs: kept tokens stay in raster order, so that they correspond to FL's pooled tokens (G7). The number of kept
         tokens is rounded (G3).

Letters: L patches per image, n kept patches, P values per patch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import MAEDecoder, MAEEncoder, seed_from

from .config import MACDConfig


class FeatureLearning(nn.Module):
    """FL: visible tokens F_v plus F_v weighted by the tokens F_e of the whole image (section 3.1).

    "pooled": the weights are Softmax(AvgPool(F_e)) over the tokens, per channel; no parameters.
    "cross_attention": F_v plus attention with queries F_v, keys and values F_e (background section of the paper, G7).
    """

    def __init__(self, width: int, heads: int, fusion: str) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True) if fusion == "cross_attention" else None

    def forward(self, visible: Tensor, whole: Tensor) -> Tensor:
        """Fuse F_v (B, n, D) and F_e (B, m, D) to F_o (B, n, D)."""
        if self.attention is not None:
            attended: Tensor = self.attention(visible, whole, whole, need_weights=False)[0]
            return visible + attended.float()
        return visible + pool_tokens(whole, visible.shape[1]).softmax(dim=1) * visible


def pool_tokens(tokens: Tensor, count: int) -> Tensor:
    """Average-pool tokens: (B, m, D) -> (B, count, D)."""
    return F.adaptive_avg_pool1d(tokens.mT, count).mT


class MAE(nn.Module):
    """E, D and FL of a config. The initial weights depend on the seed only."""

    def __init__(self, config: MACDConfig, image_shape: tuple[int, int, int], seed: int) -> None:
        super().__init__()
        cfg, values = config, image_shape[0] * config.teacher_patch**2
        with torch.random.fork_rng():
            torch.manual_seed(seed_from(seed, "macd", "mae"))
            self.encoder = MAEEncoder(
                image_shape, cfg.teacher_patch, cfg.encoder_width, cfg.encoder_depth, cfg.encoder_heads
            )
            self.decoder = MAEDecoder(
                cfg.encoder_width, self.encoder.grid, values, cfg.decoder_width, cfg.decoder_depth, cfg.decoder_heads
            )
            self.fusion = FeatureLearning(cfg.encoder_width, cfg.encoder_heads, cfg.fusion)
