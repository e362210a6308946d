"""Services of the training loop against values worked out by hand, on models of a few parameters."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robobench.core.rng import KeyedRng
from robobench.core.soft_labels import SoftLabels
from robobench.core.timing import Stopwatch
from robobench.data.mixing import beta_quantile, mix
from robobench.models.build import build_model
from robobench.models.spec import ModelSpec
from robobench.testing import Blobs
from robobench.training.averaging import WeightAverage
from robobench.training.base import Loss
from robobench.training.config import TrainConfig, TrainServices
from robobench.training.inner_maximization import RecordedAttacks
from robobench.training.loop import run_train
from robobench.training.optimizer import lr_schedule, make_optimizer
from robobench.training.sampling import MixedImages, epoch_batches
from robobench.training.weight_perturbation import perturbed_weights
from tests.helpers.toys import TinyBatchNormNet
from tests.helpers.training import RUNTIME, checkpoint_in, stage_of


class Line(nn.Module):
    """y = w mean(x) + b, with a loss whose gradient is (mean of mean(x), 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[1.0]]))
        self.b = nn.Parameter(torch.tensor(0.0))

    def forward(self, batch):
        return Loss((self.w * batch.images.mean((1, 2, 3)) + self.b).mean())


def train_line(average, epochs=4, checkpoint=None, stop_after=None):
    """Train with SGD, 48 images in batches of 16: three steps an epoch; return the weights after each step."""
    model, path = Line(), []
    services = TrainServices(average=average, average_start=0.0, average_decay=0.5 ** (128 / 16))
    kept = WeightAverage(model, services, epochs)
    if checkpoint is not None:
        checkpoint.average = kept.averaged
    update, original = kept.after_step, kept.after_step

    def record(step, *rest):
        path.append((float(model.w.detach()), float(model.b.detach())))
        original(step, *rest)
        if stop_after == step:
            raise InterruptedError

    kept.after_step = record
    stage = stage_of(model, epochs=epochs, batch_size=16, lr=0.1, momentum=0.5, weight_decay=0.0)
    assert update is not None
    run_train(RUNTIME, stage, Blobs(), Stopwatch(), checkpoint=checkpoint, average=kept)
    return path, kept.module


def test_ema_by_hand():
    path, averaged = train_line("ema")
    by_hand = np.array([1.0, 0.0])
    for step, weights in enumerate(path, start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        by_hand = decay * by_hand + (1 - decay) * np.array(weights)
    assert [float(averaged.w.detach()), float(averaged.b.detach())] == pytest.approx(by_hand.tolist(), rel=1e-6)


def test_swa_by_hand():
    path, averaged = train_line("swa")
    by_hand = np.array(path[2::3]).mean(axis=0)  # after every epoch
    assert [float(averaged.w.detach()), float(averaged.b.detach())] == pytest.approx(by_hand.tolist(), rel=1e-6)


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_average_resumes_bit_exactly(average, tmp_path):
    _, whole = train_line(average)
    with pytest.raises(InterruptedError):  # step 8: epoch 3, after a save at step 7
        train_line(average, checkpoint=checkpoint_in(tmp_path), stop_after=8)
    path, resumed = train_line(average, checkpoint=checkpoint_in(tmp_path))
    assert len(path) == 5
    assert torch.equal(whole.w, resumed.w) and torch.equal(whole.b, resumed.b)


def test_averaged_batchnorm_is_as_chosen():
    model, images = TinyBatchNormNet(), Blobs().images(torch.arange(16))
    kept = {name: WeightAverage(model, TrainServices(average="ema", average_start=0.0, average_batchnorm=name), 1)
            for name in ("copy", "average", "recompute")}  # fmt: skip
    before = model.body[1].running_mean.clone()
    model(images)
    live = model.body[1].running_mean
    for average in kept.values():
        average.after_step(1, 1, 16)
        average.after_epoch(0, [images])
    decay = 2 / 11  # below 0.995^(16 / 128)
    means = {name: average.module.body[1].running_mean for name, average in kept.items()}
    assert torch.equal(means["copy"], live)
    assert torch.allclose(means["average"], decay * before + (1 - decay) * live)
    with torch.no_grad():
        outputs = kept["recompute"].module.body[0](images).mean((0, 2, 3))
    assert torch.allclose(means["recompute"], outputs, atol=1e-6)


def test_awp_gradient_matches_finite_differences():
    torch.manual_seed(0)
    model = TinyBatchNormNet().double().eval()
    data = Blobs(12, size=8)

    class Objective(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, batch):
            return Loss(F.cross_entropy(self.model(batch.images.double()), batch.labels))

    objective, batch = Objective(), RUNTIME.batch(data, torch.arange(12), "train", 0)
    weights = {name: p for name, p in objective.named_parameters()}
    before = copy.deepcopy(objective.state_dict())
    moved = perturbed_weights(RUNTIME, objective, [(batch, RecordedAttacks())], gamma=0.05)
    assert moved.keys() == {name for name, p in weights.items() if p.dim() > 1}
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    for name, value in moved.items():
        # The direction is the gradient: by central differences, its norm 0.05 |w|.
        numeric = torch.zeros_like(value)
        for place in range(0, value.numel(), 7):
            entry = weights[name].data.view(-1)
            losses = []
            for sign in (1, -1):
                entry[place] += sign * 1e-5
                losses.append(float(objective(batch).total.detach()))
                entry[place] -= sign * 1e-5
            numeric.view(-1)[place] = (losses[0] - losses[1]) / 2e-5
        direction = (value - weights[name]).detach()
        assert float(direction.norm()) == pytest.approx(0.05 * float(weights[name].detach().norm()))
        sampled = numeric != 0
        ratio = direction[sampled] / numeric[sampled]
        assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-3)
        assert ratio.mean() > 0


def test_label_smoothing_gradient():
    logits = torch.tensor([[1.0, 0.0, -1.0, 0.5]], requires_grad=True)
    F.cross_entropy(logits, SoftLabels.of(torch.tensor([1]), 0.2)).backward()
    target = torch.tensor([[0.05, 0.85, 0.05, 0.05]])
    assert torch.allclose(logits.grad, logits.detach().softmax(1) - target)


def test_plain_labels_stay_plain():
    labels = SoftLabels.of(torch.tensor([2, 0]), 0.3)
    assert (labels == torch.tensor([2, 1])).tolist() == [True, False]
    assert F.one_hot(labels, 3).argmax(1).tolist() == [2, 0]
    mixed = SoftLabels.of(torch.tensor([2, 0]), other=torch.tensor([1, 1]), share=torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="mixed images have two labels"):
        F.one_hot(mixed, 3)


def test_cutmix_labels_count_pixels():
    images, partners = torch.zeros(64, 3, 16, 16), torch.ones(64, 3, 16, 16)
    mixed, share = mix(images, partners, KeyedRng.of(torch.arange(64), 0), mixup=0.0, cutmix=1.0)
    assert torch.allclose(share, 1 - mixed.mean((1, 2, 3)))  # the partner's pixels are 1
    labels = SoftLabels.of(torch.zeros(64, dtype=torch.int64), other=torch.ones(64, dtype=torch.int64), share=share)
    logits = torch.randn(64, 2)
    target = torch.stack((share, 1 - share), dim=1)
    assert torch.allclose(F.cross_entropy(logits, labels), F.cross_entropy(logits, target), atol=1e-6)


def test_beta_quantiles_have_right_spread():
    uniform = (torch.arange(1000) + 0.5) / 1000
    draws = beta_quantile(0.8, uniform)
    assert float(draws.mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(draws.var()) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.01)


def test_extra_images_make_seven_tenths():
    data = MixedImages(Blobs(60), Blobs(500), 0.7)
    seen = []
    for epoch in range(4):
        batches = epoch_batches(data, 20, epoch, 0, "train")
        assert [len(batch) for batch in batches] == [20, 20, 20]
        assert [int((batch >= 60).sum()) for batch in batches] == [14, 14, 14]
        seen += [number for batch in batches for number in batch.tolist() if number >= 60]
    assert len(set(seen)) == len(seen)  # none twice before all were used
    index = torch.tensor([60 + 3, 5, 60, 0])
    expected = torch.cat([Blobs(500).images(torch.tensor([3])), Blobs(60).images(torch.tensor([5]))])
    assert torch.equal(data.images(index)[:2], expected)


def test_layer_decay_rates():
    model = build_model(ModelSpec("timm:vit_tiny_patch16_224", 10, image_size=32))
    config = TrainConfig(optimizer="adamw", lr=1.0, layer_decay=0.5, decay_norms=False, head_lr_factor=3.0)
    groups = make_optimizer(config)(model).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    names = dict(model.named_parameters())
    assert rates[id(names["head.weight"])] == 3.0
    assert rates[id(names["net.norm.weight"])] == 0.5  # timm counts it to the last block
    assert rates[id(names["net.blocks.11.mlp.fc1.weight"])] == 0.5
    assert rates[id(names["net.blocks.0.mlp.fc1.weight"])] == 0.5**12
    assert rates[id(names["net.patch_embed.proj.weight"])] == 0.5**13
    undecayed = {name for name, p in names.items() if decays[id(p)] == 0}
    assert {"head.bias", "net.norm.weight", "net.pos_embed", "net.cls_token"} <= undecayed
    assert "net.blocks.0.mlp.fc1.weight" not in undecayed


def test_warmup_then_cosine():
    factor = lr_schedule(TrainConfig(epochs=10, schedule="cosine", warmup=0.2))
    assert [factor(epoch) for epoch in (0, 1, 2, 6, 10)] == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])
