"""The committed boards."""

from pathlib import Path

BOARD = Path(__file__).parents[2] / "leaderboards" / "cifar10-jpeg-resnet20"
