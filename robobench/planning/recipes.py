"""Published training recipes and the fine-tuning preset, in the format of `presets.PRESETS`. No torch.

Sections of a recipe beside "run" and "training" (of every defense): "adversarial" (of defenses that attack every batch,
where they have the field), and "defenses" (of one defense, by name). "published" are the figures of its source: clean
accuracy and AutoAttack at 8/255 on CIFAR-10, unless it says otherwise. Where our core differs, "differs" says how.
"""

from __future__ import annotations

from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    # Rice, Wong, Kolter, "Overfitting in Adversarially Robust Deep Learning", ICML 2020, arXiv:2002.11569;
    # defaults of github.com/locuslab/robust_overfitting, train_cifar.py (with --val).
    "rice2020": {
        "summary": "AT for 200 epochs, best epoch on held-out images; use with at and preactresnet18",
        "published": "WRN-34-20: 85.34 / 53.42 (RobustBench)",
        "differs": "the code attacks in train mode; here BatchNorm is in eval mode during the attack",
        "over": "cifar",
        "run": {"held_out": 1000, "selection": "both"},
        "training": {
            "epochs": 200,
            "batch_size": 128,
            "lr": 0.1,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "schedule": "step",
            "drops": (0.5, 0.75),
            "augment": "crop-flip",
        },
        "adversarial": {"inner_steps": 10, "relative_step": 0.25},
    },
    # Pang et al., "Bag of Tricks for Adversarial Training", ICLR 2021, arXiv:2010.00467; defaults of
    # github.com/P2333/Bag-of-Tricks-for-AT, train_cifar.py, with the advice of the paper's section 5.
    "pang2021": {
        "summary": "AT or TRADES for 110 epochs, rate drops at 100 and 105; use with trades and wrn-34-10",
        "published": "TRADES, WRN-34-10: 85.48 / 53.80; WRN-34-20: 86.43 / 54.39",
        "over": "cifar",
        "run": {"held_out": 1000, "selection": "both"},
        "training": {
            "epochs": 110,
            "batch_size": 128,
            "lr": 0.1,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "schedule": "step",
            "drops": (100 / 110, 105 / 110),
            "augment": "crop-flip",
        },
        "adversarial": {"inner_steps": 10, "relative_step": 0.25, "attack_bn_mode": "eval"},
        "defenses": {"trades": {"beta": 6.0}},
    },
    # Wang et al., "Better Diffusion Models Further Improve Adversarial Training", ICML 2023, arXiv:2302.04638;
    # README and core/utils/train.py, gowal21uncovering/utils/watrain.py of github.com/wzekai99/DM-Improves-AT.
    "wang2023": {
        "summary": "TRADES with 1M generated images (--extra 1m.npz), label smoothing, EMA; use with trades, wrn-28-10",
        "published": "WRN-28-10 with 1M images: 91.12 / 63.35; with 20M and 2400 epochs: 92.44 / 67.31",
        "differs": "ReLU in our WRN, SiLU in theirs; the rate starts at 0, theirs at 1/25 of the peak; it changes in "
        "every step, theirs in every epoch; biases are not decayed either; their first step sets BatchNorm's "
        "momentum to 1",
        "over": "cifar",
        "needs": "extra",
        "run": {"held_out": 1024, "selection": "best-average", "extra_fraction": 0.7},
        "training": {
            "epochs": 400,
            "batch_size": 512,
            "lr": 0.2,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 5e-4,
            "decay_norms": False,
            "schedule": "cosine",
            "warmup": 0.025,
            "augment": "crop-flip",
            "label_smoothing": 0.1,
            "average": "ema",
            "average_decay": 0.995 ** (128 / 512),  # 0.995 per step of 512 images
            "average_start": 0.025,
            "average_batchnorm": "copy",
        },
        "adversarial": {"inner_steps": 10, "relative_step": 0.25},
        "defenses": {"trades": {"beta": 5.0}},
    },
    # Wu, Xia, Wang, "Adversarial Weight Perturbation Helps Robust Generalization", NeurIPS 2020, arXiv:2004.05884;
    # defaults of github.com/csdongxian/AWP, AT_AWP/train_cifar10.py and trades_AWP/train_trades_cifar.py.
    "awp2020": {
        "summary": "AT-AWP and TRADES-AWP for 200 epochs; use with at or trades",
        "published": "TRADES-AWP, WRN-34-10: 85.36 / 56.17",
        "over": "cifar",
        "run": {"held_out": 1000, "selection": "both"},
        "training": {
            "epochs": 200,
            "batch_size": 128,
            "lr": 0.1,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "schedule": "step",
            "drops": (0.5, 0.75),
            "augment": "crop-flip",
        },
        "adversarial": {"inner_steps": 10, "relative_step": 0.25, "awp_gamma": 0.01},
        "defenses": {"trades": {"beta": 6.0, "awp_gamma": 0.005, "awp_warmup": 10 / 200}},
    },
    # FastAT Benchmark, github.com/fzjcdt/FastAT_Benchmark (2026): configs/cifar10/common.yaml and pgd_at_wa.yaml,
    # fast_at/pgd_at.py.
    "fastat2026": {
        "summary": "AT for 100 epochs with label smoothing 0.4 and EMA, best epoch; use with at and resnet18",
        "published": "ResNet-18, 3 seeds: 82.36 / 50.49 (PGD-AT-WA)",
        "differs": "the one-cycle schedule is linear here, cosine there",
        "over": "cifar",
        "run": {"held_out": 1000, "selection": "best-average"},
        "training": {
            "epochs": 100,
            "batch_size": 128,
            "lr": 0.1,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "schedule": "one-cycle",
            "augment": "crop-flip",
            "label_smoothing": 0.4,
            "average": "ema",
            "average_decay": 0.9995,
            "average_start": 0.0,
            "average_batchnorm": "average",
        },
        "adversarial": {"inner_steps": 10, "relative_step": 0.25},
    },
    # Singh, Croce, Hein, "Revisiting Adversarial Training for ImageNet", NeurIPS 2023, arXiv:2303.01870; main.py and
    # run_train.sh of github.com/nmndeep/revisiting-at.
    "singh2023": {
        "summary": "ImageNet, 4/255, AdamW, 300 epochs, heavy augmentation; use with at and --init",
        "published": "ImageNet 4/255, ConvNeXt-T: 72.4 / 48.6; ConvNeXt-T + ConvStem: 72.72 / 49.46",
        "differs": "2 steps of PGD here, of APGD there; the rate ends at 0, theirs at 5e-6",
        "run": {
            "image_size": 224,
            "attack_resolution": 224,
            "stem": "native",
            "linf_eps": ("4/255",),
            "eval_batch_size": 32,
            "attacks": ("pgd", "autoattack"),
            "selection": "average",
            "baseline_control": False,
        },
        "training": {
            "epochs": 300,
            "batch_size": 640,  # 80 on each of 8 GPUs
            "optimizer": "adamw",
            "lr": 1e-3,
            "weight_decay": 0.05,
            "decay_norms": False,
            "schedule": "cosine",
            "warmup": 20 / 300,
            "augment": "flip+randaugment+erasing",
            "mixup": 0.8,
            "cutmix": 1.0,
            "label_smoothing": 0.1,
            "average": "ema",
            "average_decay": 0.9999 ** (128 / 640),  # 0.9999 per step of 640 images
            "average_start": 0.0,
        },
        "adversarial": {"inner_steps": 2, "relative_step": 1.0},
    },
    # The protocol of arXiv:2508.14079 (1,440 robust fine-tunings): AdamW, cosine, 50 or 5 epochs, Linf 4/255. It
    # searches the rates for every network; these are in the middle of its ranges.
    "finetune": {
        "summary": "fine-tuning of pretrained weights (--init) at 4/255: AdamW, cosine, 50 epochs",
        "needs": "init",
        "run": {
            "image_size": 224,
            "attack_resolution": 224,
            "stem": "native",
            "linf_eps": ("4/255",),
            "eval_batch_size": 32,
            "attacks": ("pgd", "fgsm", "autoattack"),
            "held_out": 1000,
        },
        "training": {
            "epochs": 50,
            "batch_size": 64,
            "optimizer": "adamw",
            "lr": 1e-4,
            "head_lr_factor": 10.0,
            "weight_decay": 0.01,
            "decay_norms": False,
            "schedule": "cosine",
            "warmup": 0.1,
            "augment": "crop-flip",
        },
        "adversarial": {"inner_steps": 7, "relative_step": 0.25},
    },
    "finetune5": {
        "summary": "finetune in 5 epochs",
        "over": "finetune",
        "needs": "init",
        "training": {"epochs": 5},
    },
}
