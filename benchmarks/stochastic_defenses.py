"""Attack published stochastic defenses with one pass and with 20 passes a gradient, judged by the same votes.

Each defense is put around the stored undefended network, without training:

* noise: Gaussian noise of 0.05 on the images (Cohen et al., ICML 2019, use it with votes);
* resize-pad: random size of 28 to 36 px and random place in 40 px (Xie et al., ICLR 2018, arXiv:1711.01991; published
  as broken by Athalye et al., ICML 2018, arXiv:1802.00420, with EoT);
* sap: stochastic activation pruning after every residual block (Dhillon et al., ICLR 2018, arXiv:1803.01442; published
  as broken in the same paper). Activations are drawn independently with the paper's probabilities.

    python benchmarks/stochastic_defenses.py --data-dir FOLDER [--board FOLDER] [--images 50] [--steps 20] [--eps 2/255]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robobench

SETTINGS = ((1, "1/1"), (1, "11/20"), (20, "11/20"))  # passes of a gradient, and the verdict


class Noise(nn.Module):
    """Gaussian noise on the images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images + 0.05 * torch.randn_like(images))
        return logits


class ResizePad(nn.Module):
    """Random size and random place, drawn once per image."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        out = []
        for image in torch.split(images, 1):
            side = int(torch.randint(28, 37, ()))
            left, top = (int(torch.randint(0, 41 - side, ())) for _ in range(2))
            image = F.interpolate(image, (side, side), mode="bilinear", align_corners=False)
            out.append(F.pad(image, (left, 40 - side - left, top, 40 - side - top)))
        logits: Tensor = self.net(torch.cat(out))
        return logits


class Sap(nn.Module):
    """Stochastic activation pruning: as many draws with replacement as there are activations."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        for module in net.modules():
            if type(module).__name__ == "BasicBlock":
                module.register_forward_hook(lambda module, given, out: self.prune(out))

    @staticmethod
    def prune(out: Tensor) -> Tensor:
        """Keep an activation with probability 1 - (1 - p)^n, p its share of all n, and divide it by that."""
        flat = out.flatten(1)
        share = flat.abs() / flat.abs().sum(1, keepdim=True).clamp_min(1e-12)
        keep = (1 - (1 - share) ** flat.shape[1]).clamp_min(1e-6)
        drawn = torch.rand_like(keep) < keep
        return (flat * drawn / keep.detach()).view_as(out)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits


def main() -> None:
    """Print robust accuracy for each defense and number of passes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--board", type=Path, default=Path("leaderboards/cifar10-jpeg-resnet20"))
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--defense", choices=("Noise", "ResizePad", "Sap"), help="default: all")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--eps", default="2/255")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    name = next(given.board.glob("standard-resnet20-cifar10-s0-*")).name
    for make in (Noise, ResizePad, Sap):
        if given.defense not in (None, make.__name__):
            continue
        for eot, verdict in SETTINGS:
            result = robobench.evaluate(
                model=make(robobench.load(given.board, name)),
                dataset="cifar10",
                data_dir=given.data_dir,
                examples=given.images,
                attacks="apgd-ce",
                eps=given.eps,
                sets=(f"apgd-ce.steps={given.steps}",),
                eot=eot,
                verdict=verdict,
            )
            clean, robust = result.rows.loc[0, ["clean_accuracy", "robust_accuracy"]]
            print(f"{make.__name__}, eot {eot}, verdict {verdict}: clean {clean:.2f}, robust {robust:.2f}", flush=True)


if __name__ == "__main__":
    main()
