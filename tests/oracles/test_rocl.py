"""RoCL: NT-Xent by double loop, its gradient paths, the attack on a view, the views, LARS and the head."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from robobench.core.module_state import eval_mode
from robobench.core.rng import KeyedRng
from robobench.data import views
from robobench.defenses import rocl
from robobench.defenses.rocl import RoCL, RoCLConfig, RoCLHeadObjective, RoCLObjective, draw_view, nt_xent
from robobench.training.base import PrecomputedArray
from robobench.training.lars import LARS
from tests.helpers.defenses import THREAT, batch_of, setup_of, skip_attack
from tests.helpers.toys import TinyBatchNormNet, color_blobs

SMALL = {"projection": 16, "head_batch_size": 16}


def pretraining(**changes):
    objective = RoCL(RoCLConfig(**SMALL, **changes)).stages(setup_of())[0].objective()
    assert isinstance(objective, RoCLObjective)
    return objective.train()


def by_double_loop(embeddings, views, temperature, detach=True):
    """The loss of each anchor, written out; the keys are detached."""
    count = len(embeddings)
    unit = [e / e.norm() for e in embeddings]
    keys = [u.detach() if detach else u for u in unit]
    losses = []
    for i in range(count):
        exps = {k: ((unit[i] * keys[k]).sum() / temperature).exp() for k in range(count) if k != i}
        below = torch.stack(list(exps.values())).sum() + 1e-8
        same = [k for k in exps if (k - i) % (count // views) == 0]
        assert len(same) == views - 1
        losses.append(torch.stack([-(exps[k] / below + 1e-8).log() for k in same]).sum())
    return torch.stack(losses)


@pytest.mark.parametrize("views", [2, 3])
def test_nt_xent_and_gradient_equal_double_loop(views):
    """The keys are detached."""
    embeddings = torch.randn(4 * views, 5, dtype=torch.float32, requires_grad=True)
    ours, written = nt_xent(embeddings, views, 0.5), by_double_loop(embeddings, views, 0.5)
    torch.testing.assert_close(ours, written)
    gradient, expected, attached = (
        torch.autograd.grad(loss.mean(), embeddings)[0]
        for loss in (ours, written, by_double_loop(embeddings, views, 0.5, detach=False))
    )
    torch.testing.assert_close(gradient, expected)
    assert (gradient - attached).abs().max() > 0.01  # keys with a gradient would give another one


def test_nt_xent_of_two_orthogonal_pairs():
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 3.0]])  # A0 A1 B0 B1
    share = math.exp(2) / (math.exp(2) + 2)  # the positive against two at right angles; not against itself
    torch.testing.assert_close(nt_xent(embeddings, 2, 0.5), torch.full((4,), -math.log(share)))


def test_third_view_is_in_denominator():
    embeddings = torch.ones(3, 4)  # one image, three equal views: each positive has half of the sum
    torch.testing.assert_close(nt_xent(embeddings, 3, 0.5), torch.full((3,), 2 * math.log(2)))


def test_loss_is_contrast_plus_weighted_regularizer():
    images, labels = color_blobs(6)
    objective, batch = pretraining(), batch_of(images, labels)
    first, second = (draw_view(images, batch.rng.child("view", i), objective.config) for i in (1, 2))
    adv = objective.inner_maximization(first, second, batch)
    loss = objective(batch)
    main = by_double_loop(objective.embed(torch.cat((first, second, adv))), 3, 0.5).mean()
    regularizer = by_double_loop(objective.embed(torch.cat((adv, second))), 2, 0.5).mean()
    torch.testing.assert_close(loss.total, main + regularizer / 256)
    assert not torch.equal(first, second)


def test_attack_increases_contrast_in_ball_around_view():
    images, labels = color_blobs(12)
    objective, batch = pretraining(), batch_of(images, labels)
    first, second = (draw_view(images, batch.rng.child("view", i), objective.config) for i in (1, 2))
    before = {name: value.clone() for name, value in objective.named_buffers()}
    adv = objective.inner_maximization(first, second, batch)
    THREAT.check(adv, first, "rocl")
    assert THREAT.distance(adv, images).max() > 0.1 + 1e-3  # the ball is not around the original
    assert all(torch.equal(value, before[name]) for name, value in objective.named_buffers())
    with eval_mode(objective), torch.no_grad():
        calm, attacked = (nt_xent(objective.embed(torch.cat((x, second))), 2, 0.5)[:12] for x in (first, adv))
    assert attacked.mean() > calm.mean()
    assert all(p.grad is None for p in objective.parameters())
    assert all(m.training for m in objective.modules())


def test_start_is_uniform_and_clamped(monkeypatch):
    skip_attack(monkeypatch)
    images = torch.zeros(16, 3, 8, 8)
    start = pretraining().inner_maximization(images, images, batch_of(images, torch.zeros(16).long()))
    assert start.min() >= 0 and 0.095 < start.max() <= 0.1


def test_pretraining_never_splits_batches():
    assert [
        stage.whole_batch for stage in RoCL(RoCLConfig(augment="none", head="robust-linear")).stages(setup_of())
    ] == [True, False]


def test_pretraining_uses_neither_head_nor_labels():
    images, labels = color_blobs(6)
    objective = pretraining()
    loss = objective(batch_of(images, labels))
    other = pretraining()(batch_of(images, labels.flip(0)))
    torch.testing.assert_close(loss.total, other.total, rtol=0, atol=0)
    loss.total.backward()
    assert objective.model.head.weight.grad is None
    trained = RoCL(objective.config).stages(setup_of())[0].optimizer(objective)
    heads = {id(p) for p in objective.model.head.parameters()}
    assert not heads & {id(p) for group in trained.param_groups for p in group["params"]}


def test_projector_depends_on_seed_only():
    before = torch.random.get_rng_state()
    states = [rocl.make_projector(setup_of(seed=seed), 16).state_dict()["0.weight"] for seed in (0, 0, 1)]
    torch.random.set_rng_state(before)
    rocl.make_projector(setup_of(), 16)
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])
    assert states[0].shape == (16, 8)


def test_lr_warms_up_then_follows_cosine():
    config = RoCLConfig()
    factor = rocl.warmup_schedule(config)
    assert [1.5 * factor(e) for e in (0, 5, 10)] == pytest.approx([0.1, 0.8, 1.5])
    short = rocl.warmup_schedule(RoCLConfig(epochs=10, lr_warmup=0.1))
    assert short(1) == 1 and short(9.9) < 0.05  # with few epochs too, the cosine ends near 0
    assert factor(510) == pytest.approx(0.5)
    assert factor(1000) == pytest.approx(0.5 * (1 + math.cos(0.99 * math.pi))) and factor(1000) > 0


def test_lars_step_equals_formula():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))  # length 5
    optimizer = LARS([weight], lr=1.5, momentum=0.9, decay=0.1)
    w, velocity = [3.0, 4.0], [0.0, 0.0]
    for gradient in ([1.0, 0.0], [0.0, 2.0]):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        rate = 0.001 * math.hypot(*w) / (math.hypot(*gradient) + 0.1 * math.hypot(*w) + 1e-8)
        velocity = [0.9 * v + rate * (g + 0.1 * x) for v, g, x in zip(velocity, gradient, w, strict=True)]
        w = [x - 1.5 * v for x, v in zip(w, velocity, strict=True)]
        assert weight.tolist() == pytest.approx(w, rel=1e-6)


def test_lars_uses_plain_sgd_for_zero_weight():
    weight = nn.Parameter(torch.zeros(2))
    optimizer = LARS([weight], lr=0.5, momentum=0.0, decay=0.1)
    weight.grad = torch.tensor([1.0, -2.0])
    optimizer.step()
    assert weight.tolist() == [-0.5, 1.0]


# --- the views ----------------------------------------------------------------------------------


@pytest.fixture
def photos():
    return torch.rand(16, 3, 12, 12)


@pytest.mark.parametrize("turn", [-0.1, 0.03, 0.1])
def test_hue_shift_matches_torchvision(photos, turn):
    photos[0] = 0.5  # gray has no hue
    ours = views.shift_hue(photos, torch.full((16, 1, 1, 1), turn))
    torch.testing.assert_close(ours, reference.adjust_hue(photos, turn), rtol=0, atol=1e-5)


class Fixed:
    """An RNG with chosen draws: `order` and `change` of the jitter."""

    def __init__(self, order, change):
        self.draws = {"order": torch.tensor(order).argsort(1).float(), "change": torch.tensor(change)}

    def child(self, name):
        self.name = name
        return self

    def uniform(self, *shape):
        return self.draws[self.name]


def test_jitter_applies_changes_in_drawn_order(photos):
    orders, changes = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]], [0.9, 0.2, 0.75, 0.1]
    ours = views.jitter(photos[:3], Fixed(orders, [changes] * 3), 0.4)
    factors = [0.4 * (2 * u - 1) for u in changes]
    steps = [
        lambda x: reference.adjust_brightness(x, 1 + factors[0]),
        lambda x: reference.adjust_contrast(x, 1 + factors[1]),
        lambda x: reference.adjust_saturation(x, 1 + factors[2]),
        lambda x: reference.adjust_hue(x, factors[3] / 4),
    ]
    for image, order, result in zip(photos, orders, ours, strict=False):
        for kind in order:
            image = steps[kind](image)
        torch.testing.assert_close(result, image, rtol=0, atol=2e-4)  # torchvision rounds its gray weights


@pytest.fixture
def boxes(monkeypatch):
    """(top, left, height, width) of the last boxes of `resized_crop`, computed from its sampling grid."""
    kept, sample = [], F.grid_sample

    def keep(images, grid, **options):
        size = images.shape[2]
        first, last = (((grid[:, at, at] + 1) * size - 1) / 2 for at in (0, -1))  # (x, y), on the box's edge
        corner, side = first.round().long(), (last - first).round().long() + 1
        kept[:] = torch.stack((corner[:, 1], corner[:, 0], side[:, 1], side[:, 0]), dim=1).tolist()
        return sample(images, grid, **options)

    monkeypatch.setattr(F, "grid_sample", keep)
    return kept


def test_crop_matches_torchvision(photos, boxes):
    ours = views.resized_crop(photos, KeyedRng.of(torch.arange(16), "boxes"), 0.08)
    assert len({tuple(box) for box in boxes}) > 10
    for image, result, box in zip(photos, ours, boxes, strict=True):
        torch.testing.assert_close(result, reference.resized_crop(image, *box, [12, 12]), rtol=0, atol=1e-5)


def test_crop_boxes_are_distributed_as_in_torchvision(boxes):
    images = torch.zeros(4000, 1, 32, 32)
    views.resized_crop(images, KeyedRng.of(torch.arange(4000), "boxes"), 0.08)
    theirs = [RandomResizedCrop.get_params(images[0], [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    ours, theirs = torch.tensor(boxes).float(), torch.tensor(theirs).float()
    assert (ours[:, :2] + ours[:, 2:]).max() <= 32 and ours.min() >= 0
    # Standard errors of the means are about 0.15 pixels, of the deviations 0.1.
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), rtol=0, atol=0.6)  # type: ignore[attr-defined]
    torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0, atol=0.4)  # type: ignore[attr-defined]


def test_views_stay_in_range_and_ignore_batch(photos):
    config, rng = RoCLConfig(), KeyedRng.of(torch.arange(16), "views")
    whole = draw_view(photos, rng, config)
    assert whole.min() >= 0 and whole.max() <= 1 and whole.shape == photos.shape
    torch.testing.assert_close(draw_view(photos[5:9], rng[torch.arange(5, 9)], config), whole[5:9])
    plain = RoCLConfig(color_jitter=0, grayscale_prob=0, hflip=False, min_crop_area=1)
    gray = draw_view(photos, rng, RoCLConfig(color_jitter=0, grayscale_prob=1, hflip=False, min_crop_area=1))
    assert (gray.amax(1) - gray.amin(1)).max() < 1e-6
    torch.testing.assert_close(draw_view(photos, rng, plain), photos)  # at area 1 only the whole image fits


# --- the head -----------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "robust-linear", "fine-tune"])
def test_head_stage_trains_only_head_unless_fine_tuning(head):
    images, labels = color_blobs(12)
    setup = setup_of()
    stage = RoCL(RoCLConfig(**SMALL, head=head)).stages(setup)[-1]
    setup.precomputed["head-features"] = PrecomputedArray(np.ones((12, 8), np.float32))  # used by "linear"
    setup.model.train().head.requires_grad_(False)
    objective = stage.objective().train()
    optimizer = stage.optimizer(objective)
    before = {name: value.clone() for name, value in setup.model.state_dict().items()}
    objective(batch_of(images, labels)).total.backward()
    optimizer.step()
    moved = {name for name, v in setup.model.state_dict().items() if not torch.equal(v, before[name])}
    assert {"head.weight", "head.bias"} <= moved
    assert (moved == {"head.weight", "head.bias"}) == (head != "fine-tune")
    assert all(m.training for m in setup.model.modules())
    assert {name.replace("head.", "trained.", 1) if head == "linear" else name for name in objective.state_dict()} == (
        {f"trained.{name}" for name in before} if head == "fine-tune" else {"trained.weight", "trained.bias"}
    )


def test_linear_evaluation_has_published_settings():
    setup = setup_of()
    _, features, stage = RoCL(RoCLConfig()).stages(setup)
    assert (features.name, features.shape) == ("head-features", (8,))
    assert (stage.name, stage.epochs, stage.batch_size, stage.augment) == ("linear-eval", 150, 1024, "none")
    rates = [0.1 * stage.schedule(e) for e in (29, 30, 50, 100, 149)]
    assert rates == pytest.approx([0.1, 0.01, 0.001, 0.0001, 0.0001])
    group = stage.optimizer(setup.model).param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 5e-4)


def test_robust_head_loss_uses_eval_mode_features():
    images, labels = color_blobs(12)
    model, batch = TinyBatchNormNet().train(), batch_of(images, labels)
    objective = RoCLHeadObjective(model, THREAT, RoCLConfig(head="robust-linear", head_inner_steps=3))
    total = objective(batch).total
    with eval_mode(model):
        torch.testing.assert_close(total, F.cross_entropy(model(objective.inner_maximization(batch)), labels))
        assert total > F.cross_entropy(model(images), labels)


def test_other_augmentation_is_rejected():
    with pytest.raises(ValueError, match=r"augment must be one of none, got crop-flip"):
        RoCLConfig(augment="crop-flip")
