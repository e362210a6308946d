"""`robobench.attack` on unusual input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import robobench
from robobench.core.threat import ThreatModel
from robobench.errors import RequestError
from robobench.plugins import discovery

SMALL = {
    **{
        name: {"steps": 2}
        for name in ("pgd", "jitter", "cw", "mifgsm", "apgd-ce", "apgd-dlr", "apgd-pm", "apgd-t", "fab-t")
    },
    **{name: {"steps": 2} for name in ("fmn", "ddn", "difgsm", "tifgsm", "sifgsm", "vmifgsm")},
    "apgd-malt": {"steps": 2, "targets": 2},
    "screen": {"steps": 2, "targets": 2, "queries": 3},
    "noise": {"samples": 2},
    "square": {"queries": 3},
    "autoattack": {"steps": 2, "targets": 2, "queries": 3},
    "fgsm": {},
}
NORMS = {"jitter": ["Linf"], "vmifgsm": ["Linf"], "ddn": ["L2"], "fmn": ["Linf", "L2"], "fgsm": ["Linf", "L2"]}
NORMS |= {name: ["Linf", "L2"] for name in ("mifgsm", "difgsm", "tifgsm", "sifgsm")}


@pytest.fixture(autouse=True, scope="module")
def cached_discovery():
    """Read the plug-ins' sources once, not for each example."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discovery, "discover", {kind: discovery.discover(kind) for kind in discovery.KINDS}.__getitem__)
        yield


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(SMALL)),
    norm=st.sampled_from(["Linf", "L2", "L1"]),
    eps=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 1e-30])),
    count=st.integers(0, 3),
    channels=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    classes=st.sampled_from([2, 3, 4, 5, 10, 200]),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float64, torch.float16]),
    layout=st.sampled_from(["plain", "transposed", "strided"]),
)
def test_any_input_gives_valid_images_or_error(name, norm, eps, count, channels, height, width, classes, dtype, layout):
    """The result lies in the ball, or there is a RequestError of one line."""
    torch.manual_seed(count * 1000 + height * 10 + width)
    if layout == "strided":
        images = torch.rand(2 * count, channels, height, 2 * width)[::2, :, :, ::2]
    else:
        images = torch.rand(count, channels, *((width, height) if layout == "transposed" else (height, width)))
        images = images.transpose(2, 3) if layout == "transposed" else images
    images, labels = images.to(dtype), torch.arange(count) % classes
    kept, features = images.clone(), images[:1].numel() or channels * height * width
    net = nn.Sequential(nn.Flatten(), nn.Linear(features, classes))
    try:
        adv = robobench.attack(name, net.to(dtype), images, labels, eps=eps, norm=norm, **SMALL[name])
    except RequestError as err:
        assert "\n" not in str(err)
        expected = dtype == torch.float16 or norm not in NORMS.get(name, [norm])
        assert expected or (name, classes) in {
            ("apgd-dlr", 2),
            *((name, n) for name in ("apgd-t", "apgd-malt") for n in (2, 3)),
        }
        return
    ThreatModel(norm, eps).check(adv, images, name)
    assert adv.dtype == dtype and torch.equal(images, kept)
