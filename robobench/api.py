"""Everything a plug-in may import: base classes, registries, threat models, losses and random numbers.

This module only re-exports. A defense or an attack imports from here and from no other module of robobench.
"""

from robobench.attack_engine.base import Attack, AttackBudget, IterativeAttack, NoConfig
from robobench.attack_engine.ensemble import Ensemble
from robobench.attack_engine.gradient import input_gradient, loss_and_input_grad
from robobench.attack_engine.options import DEFAULT_OPTIONS, AttackOptions
from robobench.attack_engine.own_loss import OwnLossConfig
from robobench.attack_engine.state import AttackResult, AttackState
from robobench.core.device import fork_stream, join_stream
from robobench.core.losses import attack_cross_entropy, is_misclassified, kl, margin, mask_true_class, soft_label_kl
from robobench.core.module_state import attack_mode, eval_mode
from robobench.core.registry import ATTACKS, DEFENSES, TRACKERS
from robobench.core.rng import KeyedRng, seed_from
from robobench.core.threat import ThreatModel, check_unit_range, per_image
from robobench.core.tracker import Tracker
from robobench.data.augment import flip
from robobench.data.image_file import check_image_file, read_image_file
from robobench.data.views import contrastive_view
from robobench.distributed.collectives import gather_batch, mean_over_batch
from robobench.errors import RequestError
from robobench.models.masked_autoencoder import (
    MAEDecoder,
    MAEEncoder,
    count_kept,
    grid_of,
    keep_tokens,
    patchify,
    removed_mse,
    take_tokens,
    unpatchify,
)
from robobench.training.base import (
    Batch,
    Defense,
    DefenseSetup,
    FrozenModel,
    Loss,
    PassCounts,
    Precompute,
    PrecomputedArray,
    Stage,
    Train,
    train_stage,
)
from robobench.training.config import TrainConfig
from robobench.training.image_state import ImageState
from robobench.training.inner_maximization import AdvTrainConfig, SingleStepConfig, pgd_ascent, recorded_attack
from robobench.training.lars import lars
from robobench.training.linear_head import linear_head_stages
from robobench.training.optimizer import lr_schedule, sgd

__all__ = [
    "ATTACKS",
    "DEFAULT_OPTIONS",
    "DEFENSES",
    "TRACKERS",
    "AdvTrainConfig",
    "Attack",
    "AttackBudget",
    "AttackOptions",
    "AttackResult",
    "AttackState",
    "Batch",
    "Defense",
    "DefenseSetup",
    "Ensemble",
    "FrozenModel",
    "ImageState",
    "IterativeAttack",
    "KeyedRng",
    "Loss",
    "MAEDecoder",
    "MAEEncoder",
    "NoConfig",
    "OwnLossConfig",
    "PassCounts",
    "Precompute",
    "PrecomputedArray",
    "RequestError",
    "SingleStepConfig",
    "Stage",
    "ThreatModel",
    "Tracker",
    "Train",
    "TrainConfig",
    "attack_cross_entropy",
    "attack_mode",
    "check_image_file",
    "check_unit_range",
    "contrastive_view",
    "count_kept",
    "eval_mode",
    "flip",
    "fork_stream",
    "gather_batch",
    "grid_of",
    "input_gradient",
    "is_misclassified",
    "join_stream",
    "keep_tokens",
    "kl",
    "lars",
    "linear_head_stages",
    "loss_and_input_grad",
    "lr_schedule",
    "margin",
    "mask_true_class",
    "mean_over_batch",
    "patchify",
    "per_image",
    "pgd_ascent",
    "read_image_file",
    "recorded_attack",
    "removed_mse",
    "seed_from",
    "sgd",
    "soft_label_kl",
    "take_tokens",
    "train_stage",
    "unpatchify",
]
