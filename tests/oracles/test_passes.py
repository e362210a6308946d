"""What all defenses must do: declare their passes, attack inside the threat model, leave teachers unchanged."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robobench.core.threat import ThreatModel
from robobench.plugins.discovery import discover, load_defense
from robobench.training.base import PassCounts, Precompute, PrecomputedArray
from tests.helpers.defenses import batch_of, frozen_models, setup_of
from tests.helpers.toys import TinyBatchNormNet, color_blobs

COUNT, EPS = 6, 0.05
CASES = [
    ("standard", {}),
    ("at", {}),
    ("fast-at", {}),
    ("trades", {}),
    ("iad", {}),
    ("iad", {"introspection_start": 0.0}),
    ("iad", {"variant": "II"}),
    ("mtard", {}),
    ("adaad", {}),
    ("adaad", {"alpha": 0.5}),
    ("adaad", {"form": "adaiad"}),
    ("gaussian", {}),
    ("mart", {}),
    ("n-fgsm", {}),
    ("gradalign", {}),
    ("fgsm-pgi", {}),
    ("liet", {"update_steps": 1000}),
    ("fat", {}),
    ("mimir", {"patch": 4, "decoder_width": 8, "decoder_heads": 2}),
    ("free-at", {}),
    ("hat", {}),
    ("lbgat", {}),
    ("lbgat", {"beta": 6.0}),
    ("ikl", {}),
    ("ard", {}),
    ("ard", {"alpha": 0.5}),
    ("rslad", {}),
    ("absld", {}),
    ("saad", {}),
    ("saad", {"beta": 1.0}),
    ("igdm", {}),
    ("acl", {"tune_augment": "none", "tune_inner_steps": 2}),
    ("rocl", {}),
    ("rocl", {"head": "robust-linear", "head_inner_steps": 2}),
    ("rocl", {"head": "fine-tune", "head_inner_steps": 2}),
]
IDS = [f"{name} {' '.join(f'{k}={v}' for k, v in changes.items())}".strip() for name, changes in CASES]  # type: ignore[attr-defined]


class Tap(torch.autograd.Function):
    """Identity that counts the images of a batch when a gradient comes back through it."""

    @staticmethod
    def forward(ctx, value, counts, name, images):
        ctx.counts, ctx.name, ctx.images = counts, name, images
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient):
        ctx.counts[ctx.name] += ctx.images
        return gradient, None, None, None


class SharedCounter(Counter[str]):
    """A copied model counts into the same counter."""

    def __deepcopy__(self, memo):
        return self


class Counting(nn.Module):
    """A model that counts forwarded images, and gradients that reach its input and its first weight."""

    def __init__(self):
        super().__init__()
        self.counts = SharedCounter()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3) / 5)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 3)

    def features(self, images):
        count = len(images)
        self.counts["forward"] += count
        images = Tap.apply(images, self.counts, "input_grad", count)
        weight = Tap.apply(self.weight, self.counts, "weight_grad", count)
        return F.relu(self.norm(F.conv2d(images, weight, padding=1))).mean((2, 3))

    def forward(self, images):
        return self.head(self.features(images))


def defense_of(name, changes, epochs=5):
    cls = load_defense(name)
    small = {"projection": 16} if name == "rocl" else {}
    steps = {"inner_steps": 3} if "inner_steps" in cls.Config.__dataclass_fields__ else {}
    return cls(cls.Config(epochs=epochs, augment="none", **steps, **small, **changes))


def make_setup(defense, make, threat):
    torch.manual_seed(0)
    model = make()
    return setup_of(model, threat=threat, train_size=COUNT, required_models=frozen_models(defense.requires, make))


def objectives_of(defense, setup):
    """Each Train stage with its objective, built when the stage begins, as the core does."""
    for stage in defense.stages(setup):
        if isinstance(stage, Precompute):
            batch = batch_of(*color_blobs(COUNT))
            setup.precomputed[stage.name] = PrecomputedArray(stage.function(batch).numpy())
            continue
        made = stage.objective if isinstance(stage.objective, nn.Module) else stage.objective()
        yield stage, made.train()


@pytest.mark.parametrize(("name", "changes"), CASES, ids=IDS)
def test_declared_passes_equal_counted_passes(name, changes):
    defense = defense_of(name, changes)
    setup = make_setup(defense, Counting, ThreatModel("Linf", EPS))
    images, labels = color_blobs(COUNT)
    teachers = [teacher.module.counts for teacher in setup.required_models.values()]
    for stage, objective in objectives_of(defense, setup):
        if name == "liet":  # not the step that updates the label perturbations, with one image per class
            objective.steps += 1
        setup.model.counts.clear()
        for epoch in range(5):
            objective(batch_of(images, labels, epoch)).total.backward()
        student = {kind: stage.replays * total / (5 * COUNT) for kind, total in setup.model.counts.items()}
        if name == "free-at":  # its input gradient comes with the weights' backward pass
            del student["input_grad"]
        if name in ("fgsm-pgi", "liet"):  # the loss also uses the logits of the attack's start
            student["input_grad"] -= 1
        teacher = {kind: sum(c[kind] for c in teachers) / (5 * COUNT) for kind in ("forward", "input_grad")}
        counted = PassCounts(**student, teacher_forward=teacher["forward"], teacher_input_grad=teacher["input_grad"])
        assert counted == stage.passes
        assert not any(c["weight_grad"] for c in teachers)


NOT_ATTACKING, WITHOUT_ATTACK = ("standard", "gaussian"), ("n-fgsm", "free-at")


def cost_of(text, k):
    """Evaluate a card's cost, such as "2k + 3, and k + 1 of the teacher": passes of the model and of the teacher."""
    own, _, teacher = text.partition(", and ")
    parts = (part.split(" of the ")[0].replace("k", "*k") if part else "0" for part in (own, teacher))
    return tuple(eval(part, {"k": k}) for part in parts)


@pytest.mark.parametrize("name", sorted(set(name for name, _ in CASES) - {"rocl", "mimir", "acl"}))
def test_card_states_declared_passes(name):
    """Of the published settings; the stages of self-supervised methods have several costs."""
    defense = load_defense(name)(load_defense(name).Config())
    (stage,) = defense.stages(make_setup(defense, TinyBatchNormNet, ThreatModel("Linf", EPS)))
    stated = cost_of(discover("defense")[name].card["Cost"], getattr(defense.config, "inner_steps", 0))
    assert stated == pytest.approx((stage.passes.forward_equivalents, stage.passes.teacher_forward_equivalents))


ATTACKING = [case for case in zip(CASES, IDS, strict=True) if case[0][0] not in NOT_ATTACKING]
EACH_ATTACKING = pytest.mark.parametrize(
    ("name", "changes"), [case for case, _ in ATTACKING], ids=[i for _, i in ATTACKING]
)
IN_BALL = [case for case in ATTACKING if case[0][0] not in WITHOUT_ATTACK]
EACH_IN_BALL = pytest.mark.parametrize(("name", "changes"), [case for case, _ in IN_BALL], ids=[i for _, i in IN_BALL])


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("eps", [0.0, EPS])
@EACH_IN_BALL
def test_adversarial_examples_stay_in_threat_model(name, changes, eps, norm):
    """Also for black and white images."""
    defense, threat = defense_of(name, changes), ThreatModel(norm, eps)
    setup = make_setup(defense, TinyBatchNormNet, threat)
    images = torch.stack((*torch.zeros(2, 3, 8, 8), *torch.ones(2, 3, 8, 8), *color_blobs(2)[0]))
    batch = batch_of(images, torch.arange(COUNT) % 3)
    for _, objective in objectives_of(defense, setup):
        arguments = (images, images.flip(3), batch) if hasattr(objective, "projector") else (batch,)
        if name in ("rslad", "absld"):  # the attack takes the teacher's logits
            arguments = (batch, torch.randn(COUNT, 3))
        if not hasattr(objective, "inner_maximization"):  # a linear head
            continue
        adv = objective.inner_maximization(*arguments)
        threat.check(adv, images, name)
        assert not adv.requires_grad
        if eps == 0:
            assert torch.equal(adv, images)


@EACH_ATTACKING
def test_step_changes_no_mode_image_or_teacher(name, changes):
    defense = defense_of(name, changes)
    setup = make_setup(defense, TinyBatchNormNet, ThreatModel("Linf", EPS))
    images, labels = color_blobs(COUNT)
    kept, teachers = images.clone(), [teacher.module for teacher in setup.required_models.values()]
    before = copy.deepcopy([teacher.state_dict() for teacher in teachers])
    for stage, objective in objectives_of(defense, setup):
        modes = [m.training for m in setup.model.modules()]
        optimizer = stage.optimizer(objective)
        for epoch in range(3):
            loss = objective(batch_of(images, labels, epoch))
            loss.total.backward()
            optimizer.step()
            optimizer.zero_grad()
            assert not any(value.requires_grad for value in loss.metrics.values())
            assert all(value.isfinite() for value in (loss.total, *loss.metrics.values()))
        assert [m.training for m in setup.model.modules()] == modes
        assert not any(key.startswith(("robust", "clean", "teacher")) for key in objective.state_dict())
    assert torch.equal(images, kept)
    for teacher, state in zip(teachers, before, strict=True):
        assert not any(m.training for m in teacher.modules())
        assert all(p.grad is None for p in teacher.parameters())
        assert all(torch.equal(value, state[key]) for key, value in teacher.state_dict().items())


@EACH_ATTACKING
def test_draws_come_from_batch_rng_only(name, changes):
    defense = defense_of(name, changes)
    images, labels = color_blobs(COUNT)
    totals = []
    for seed in (1, 2):
        setup = make_setup(defense, TinyBatchNormNet, ThreatModel("Linf", EPS))
        for _, objective in objectives_of(defense, setup):
            torch.manual_seed(seed)
            state = torch.random.get_rng_state()
            totals.append(objective(batch_of(images, labels)).total.item())
            assert torch.equal(state, torch.random.get_rng_state())
    half = len(totals) // 2
    assert totals[:half] == totals[half:]
