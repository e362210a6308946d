"""Keyed random numbers: draws depend on their key only, and have the right distribution."""

import pytest
import torch

from robobench.core.rng import KeyedRng, permutation, seed_from

INDEX = torch.arange(1000)


def test_draws_do_not_depend_on_batch():
    batch = KeyedRng.of(INDEX[:8], 0, "pgd").normal(3, 4)
    assert torch.equal(KeyedRng.of(INDEX[5:6], 0, "pgd").normal(3, 4)[0], batch[5])
    keep = torch.tensor([7, 2])
    assert torch.equal(KeyedRng.of(INDEX[:8], 0, "pgd")[keep].normal(3, 4), batch[keep])
    child = KeyedRng.of(INDEX[:8], 0, "pgd")[keep].child("logits", 3)
    assert torch.equal(KeyedRng.of(keep, 0, "pgd").child("logits", 3).uniform(5), child.uniform(5))


def splitmix(x):
    """Compute the finalizer of SplitMix64 on Python integers."""
    mask = 2**64 - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_draws_are_splitmix64_of_a_counter():
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15
    rng = KeyedRng.of(torch.tensor([5]), 0, "pgd")
    expected = splitmix((splitmix(5 * golden & mask) + seed_from(0, "pgd")) & mask)
    assert rng.keys.item() % 2**64 == expected
    hashed = [splitmix((expected + i * golden) & mask) for i in (1, 2)]
    bits = [hashed[0] >> 40, hashed[0] & 0xFFFFFF, hashed[1] >> 40]
    assert rng.uniform(3).tolist() == [[b / 2**24 for b in bits]]


def test_library_seed_ignores_image_order():
    rng = KeyedRng.of(INDEX[:4], 0, "autoattack")
    assert 0 <= rng.seed() < 2**31
    assert rng.seed() == rng[torch.tensor([3, 1, 0, 2])].seed() == rng.seed()
    assert len({rng.seed(), rng[INDEX[:3]].seed(), rng.child("x").seed()}) == 3


def test_uniform_draws_have_uniform_moments():
    draws = KeyedRng.of(INDEX, "moments").uniform(1000)  # a million
    assert draws.min() >= 0 and draws.max() < 1
    assert draws.mean().item() == pytest.approx(0.5, abs=5 * (1 / 12) ** 0.5 / 1e3)
    assert draws.var().item() == pytest.approx(1 / 12, abs=5 * (1 / 180) ** 0.5 / 1e3)
    counts = torch.histc(draws, 100, 0, 1)
    assert ((counts - 1e4).abs() < 5 * (1e4 * 0.99) ** 0.5).all()


def test_normal_draws_have_normal_moments():
    draws = KeyedRng.of(INDEX, "moments").normal(1000).double()
    assert draws.isfinite().all()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert draws.pow(power).mean().item() == pytest.approx(moment, abs=5 * variance**0.5 / 1e3)


@pytest.mark.parametrize("other", ["child", "stage", "neighbor", "half"])
def test_different_keys_give_uncorrelated_draws(other):
    rng = KeyedRng.of(INDEX, 0, "a")
    first = rng.normal(1000)
    second = {
        "child": lambda: rng.child("start").normal(1000),
        "stage": lambda: KeyedRng.of(INDEX, 0, "b").normal(1000),
        "neighbor": lambda: KeyedRng.of(INDEX + 1, 0, "a").normal(1000),
        "half": lambda: first.roll(1, dims=1),  # one hash serves two neighbors
    }[other]()
    assert (first * second).mean().abs() < 5 / 1e3


def test_child_differs_from_parent_and_siblings():
    rng = KeyedRng.of(INDEX[:4], "a")
    draws = [rng, rng.child("x"), rng.child("y"), rng.child("x", 1), rng.child("x").child("x")]
    values = torch.cat([n.uniform(8).flatten() for n in draws])
    assert len(values.unique()) == len(values)
    assert torch.equal(rng.child("x", 1).uniform(8), rng.child("x", 1).uniform(8))


def test_draw_shapes():
    assert KeyedRng.of(INDEX[:4], "a").uniform().shape == (4,)
    assert KeyedRng.of(INDEX[:4], "a").normal_like(torch.zeros(4, 3, 2)).shape == (4, 3, 2)
    assert KeyedRng.of(INDEX[:0], "a").uniform(3).shape == (0, 3)


def test_permutation_is_complete_and_keyed():
    first, second = permutation(1000, 0, "epoch", 1), permutation(1000, 0, "epoch", 2)
    assert torch.equal(first.sort().values, INDEX)
    assert torch.equal(first, permutation(1000, 0, "epoch", 1))
    assert (first == second).sum() < 10
