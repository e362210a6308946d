"""The rows of the table: each defense, the repository of its published code, and the function that runs it.

Each function runs five steps of the published code on a `World`. Arguments that the scripts read from their command
line are set to the values of our config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from adversarial_training import at, fat, gaussian, hat, ikl, lbgat, mart, trades
from distillation import absld, adaad, ard, iad, igdm, mtard, rslad, saad
from single_step import fast_at, fgsm_pgi, free_at, gradalign, liet, n_fgsm
from world import World


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        repository: OWNER/NAME@COMMIT of the code that was compared.
        changes: config fields that differ from the defaults.
        difference: why weights differ with BatchNorm; they must agree with GroupNorm all the same.
        side: of the images, in pixels.
        grads: number of input gradients that are compared; 0: one for every attack step.
    """

    defense: str
    repository: str
    run: Callable[[World], None]
    changes: Mapping[str, Any] = field(default_factory=dict)
    epoch: int = 0  # counted from 0
    difference: str = ""
    side: int = 8
    grads: int = 0


MORE_PASSES = "the code makes more forward passes in train mode (see Differs)"
EVAL = "ours attacks in eval mode (see Differs)"
CASES = (
    Case("at", "locuslab/robust_overfitting@c47a25c", at, {"attack_bn_mode": "train"}),
    Case("trades", "yaodongyu/TRADES@6e8e11b", trades, {}, 0, MORE_PASSES),
    Case("fast-at", "locuslab/fast_adversarial@54f7287", fast_at, {}, 0, EVAL),
    Case("iad", "ZFancy/IAD@a8091a8", iad, {}, 100),
    Case("iad", "ZFancy/IAD@a8091a8", iad, {"variant": "II"}, 100),
    Case("mtard", "zhaoshiji123/MTARD@6480a1b", mtard),
    Case("adaad", "boyellow/AdaAD@9e5c6e5", adaad, {}, 0, MORE_PASSES),
    Case("adaad", "boyellow/AdaAD@9e5c6e5", adaad, {"form": "adaiad"}, 100, MORE_PASSES),
    Case("gaussian", "locuslab/smoothing@78a4d94", gaussian),
    Case("mart", "YisenWang/MART@2d83e17", mart),
    Case("n-fgsm", "pdejorge/N-FGSM@0a9e4f0", n_fgsm),
    Case("free-at", "locuslab/fast_adversarial@54f7287", free_at, {"batch_size": 8}),
    Case("gradalign", "tml-epfl/understanding-fast-adv-training@ceed494", gradalign),
    Case("fgsm-pgi", "jiaxiaojunQAQ/FGSM-PGI@fc15cfe", fgsm_pgi, {}, 1),
    Case("liet", "fzjcdt/LIET@8b2d3b8", liet, {}, 49, grads=2),
    Case("fat", "zjfheart/Friendly-Adversarial-Training@80a0640", fat, {}, 60, side=32, grads=1),
    Case("hat", "imrahulr/hat@3177a4f", hat),
    Case("lbgat", "dvlab-research/LBGAT@f7f33f0", lbgat, {}, 0, MORE_PASSES),
    Case("lbgat", "dvlab-research/LBGAT@f7f33f0", lbgat, {"beta": 6.0}),
    Case("ikl", "jiequancui/DKL@c5e8ad2", ikl, {}, 99),
    Case("ard", "goldblum/AdversariallyRobustDistillation@779ade3", ard),
    Case("ard", "goldblum/AdversariallyRobustDistillation@779ade3", ard, {"alpha": 0.5}),
    Case("rslad", "zibojia/RSLAD@c40e04f", rslad),
    Case("absld", "zhaoshiji123/ABSLD@7407c3a", absld),
    Case("saad", "HongsinLee/saad@295121c", saad, {}, 99, MORE_PASSES),
    Case("saad", "HongsinLee/saad@295121c", saad, {"beta": 1.0, "gamma": 2.0}, 99),
    Case("igdm", "HongsinLee/saad@295121c", igdm, {}, 99),
)
