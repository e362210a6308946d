"""CIFAR networks that timm does not have, as feature extractors: images (B, 3, H, W) -> pooled features (B, width)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without bias; at stride 1 it keeps the height and width."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def he_init(net: nn.Module) -> None:
    """Initialize all convolutions as in He et al., ICCV 2015, arXiv:1502.01852, in fan-out mode."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # slow there, and without effect
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class SmallCNN(nn.Module):
    """Four 3x3 convolutions with BatchNorm (32, 64, 64, 128 channels); 5 M multiplications at 32 px.

    Source: the plain network of He et al., CVPR 2016, arXiv:1512.03385, made smaller for CPUs.
    """

    width = 128

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for outputs, stride in ((32, 2), (64, 2), (64, 1), (128, 2)):
            layers += [conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        self.body = nn.Sequential(*layers)
        he_init(self)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.body(images)).mean((2, 3))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a parameter-free shortcut (option A): subsample, pad with zero channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.stride, self.added_channels = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.added_channels:
            half = self.added_channels // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.added_channels - half))
        return F.relu(out + x)


class ResNet20(nn.Module):
    """The CIFAR ResNet with 6n + 2 layers, n = 3; 0.27 M parameters.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, section 4.2.
    """

    width = 64

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(3, 16), nn.BatchNorm2d(16)
        self.layer1 = self._group(16, 16, 1)
        self.layer2 = self._group(16, 32, 2)
        self.layer3 = self._group(32, 64, 2)
        he_init(self)

    @staticmethod
    def _group(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            BasicBlock(inputs, outputs, stride),
            BasicBlock(outputs, outputs, 1),
            BasicBlock(outputs, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return cast(Tensor, self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each 3x3 convolution; a 1x1 convolution as shortcut if the shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv3x3(inputs, outputs, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv3x3(outputs, outputs)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return cast(Tensor, out + (x if self.shortcut is None else self.shortcut(active)))


class PreActResNet(nn.Module):
    """A 3x3 stem and groups of pre-activation blocks: PreActResNet-18 and the wide ResNets.

    Source: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016, arXiv:1603.05027;
    Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, arXiv:1605.07146.
    """

    def __init__(self, stem: int, groups: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, stem)
        inputs, layers = stem, []
        for number, outputs in enumerate(groups):
            first = PreActBlock(inputs, outputs, 1 if number == 0 else 2)
            rest = [PreActBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
            layers.append(nn.Sequential(first, *rest))
            inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(inputs)
        self.width = inputs
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.layers(self.conv1(x)))).mean((2, 3))


def wide_resnet(depth: int, widen: int) -> PreActResNet:
    """Build WRN-depth-widen: three groups of (depth - 4) / 6 blocks with 16, 32 and 64 times `widen` channels."""
    return PreActResNet(16, (16 * widen, 32 * widen, 64 * widen), (depth - 4) // 6)


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "cnn": SmallCNN,
    "resnet20": ResNet20,
    "preactresnet18": lambda: PreActResNet(64, (64, 128, 256, 512), 2),
    "wrn-28-10": lambda: wide_resnet(28, 10),
    "wrn-34-10": lambda: wide_resnet(34, 10),
}

# Map the parameter names of other projects to ours: PreActResNet-18 of kuangliu and of Wong et al., WideResNet of
# xternalman, TRADES and RobustBench.
RENAMES = (
    (r"^linear\.", "fc."),
    *((rf"^(?:layer|block){n + 1}\.(?:layer\.)?", f"layers.{n}.") for n in range(4)),
    (r"\.(?:convShortcut|shortcut\.0)\.", ".shortcut."),
    (r"^bn1\.", "bn."),
)
