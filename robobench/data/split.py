"""`Split` and `Dataset`, and their construction from arrays after checks of shapes, types and value ranges."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robobench.data.arrays import Arrays, check_arrays
from robobench.errors import RequestError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Split:
    """Images and labels, read by index.

    Args:
        read: maps an index (B,) int64, on the labels' device or the CPU, to images (B, 3, H, W), uint8 or float in
            [0, 1].
        labels: (N,) int64, on the device that holds the pixels.
        digest: hash of pixels, shapes and labels. Equal digests mean equal data.
        is_uint8_exact: all values of `read` are multiples of 1/255.
        resolution: side in pixels to which the central square of the images is resized; None keeps their size.
        device: where images are returned.
    """

    def __init__(
        self,
        read: Callable[[Tensor], Tensor],
        labels: Tensor,
        digest: str,
        *,
        is_uint8_exact: bool,
        resolution: int | None = None,
        device: Any = "cpu",
    ) -> None:
        self._read, self.labels, self.device = read, labels, device
        self.digest = short_digest(digest, "resized to", resolution) if resolution else digest
        self.is_uint8_exact, self.resolution = is_uint8_exact and resolution is None, resolution

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index: Tensor) -> Tensor:
        """Return images (B, 3, H, W) float32 in [0, 1], on the split's device, for an index (B,) int64."""
        import torch
        import torch.nn.functional as F

        images = self._read(index).to(self.device)
        images = images.float().div_(255) if images.dtype == torch.uint8 else images.float()
        if self.resolution is not None:
            size, edge = (self.resolution, self.resolution), min(images.shape[2:])
            top, left = (images.shape[2] - edge) // 2, (images.shape[3] - edge) // 2
            images = images[:, :, top : top + edge, left : left + edge]
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True).clamp_(0, 1)
        return images

    def first(self, count: int) -> Split:
        """Return the first `count` images as a split; all images if there are fewer."""
        if count >= len(self):
            return self
        part = copy(self)
        part.labels, part.digest = self.labels[:count], short_digest(self.digest, "first", count)
        return part

    def last(self, count: int) -> Split:
        """Return the last `count` images as a split."""
        part, skipped = copy(self), len(self) - count
        part._read = lambda index: self._read(index + skipped)
        part.labels, part.digest = self.labels[skipped:], short_digest(self.digest, "last", count)
        return part

    def shuffled(self, seed: str) -> Split:
        """Return the same images in a random order that depends on `seed` only."""
        from robobench.core.rng import permutation

        part, order = copy(self), permutation(len(self), seed).to(self.labels.device)
        part._read = lambda index: self._read(order[index])
        part.labels, part.digest = self.labels[order], short_digest(self.digest, "shuffled", seed)
        return part


@dataclass(frozen=True)
class Dataset:
    """A training split (None if loaded without) and a test split."""

    name: str
    train: Split | None
    test: Split
    num_classes: int
    resolution: int  # side of the images in pixels
    class_names: tuple[str, ...] | None = None  # by label, where they are known
    notes: tuple[str, ...] = ()  # what was converted or skipped when it was loaded
    extra: Split | None = None  # extra training images (--extra)

    @property
    def digest(self) -> str:
        """Hash of the loaded splits. To compare test data use `test.digest`, which does not depend on `need_train`."""
        return short_digest(self.train.digest if self.train else "no train", self.test.digest)

    def class_name(self, label: int) -> str:
        """Return the name of a class; its number if it has no name."""
        return self.class_names[label] if self.class_names else str(label)


def short_digest(*parts: object) -> str:
    """Hash parts to 16 hexadecimal digits."""
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()[:16]


def require_classes(split: Split, count: int) -> None:
    """Raise RequestError unless a training split has images of at least `count` classes."""
    found = len(set(split.labels.tolist()))
    if found < count:
        raise RequestError(
            f"the training split has {found} class{'es' if found > 1 else ''} in {len(split)} images, training needs "
            f"{count} or more; use more images or another data set"
        )


def dataset_from_arrays(
    name: str,
    train: Arrays | None,
    test: Arrays,
    *,
    num_classes: int | None = None,
    resolution: int | None,
    need_train: bool,
    device: Any,
    notes: tuple[str, ...] = (),
    class_names: tuple[str, ...] | None = None,
) -> Dataset:
    """Make a data set from arrays.

    Args:
        num_classes: default: the largest label plus one.
        resolution, need_train, device: as in `load_dataset`.
        notes: what was converted before.
        class_names: by label, where they are known.

    Raises:
        RequestError: wrong shapes, types, values or labels, splits of different image sizes, or images that are not
            square without a resolution.
    """
    given, said = {"train": train, "test": test}, list(notes)
    arrays = {
        part: check_arrays(f"data set '{name}', {part} split", *pair, num_classes, said)
        for part, pair in given.items()
        if pair is not None
    }
    sides = {pair[0].shape[1:3] for pair in arrays.values()}
    if len(sides) > 1:
        raise RequestError(f"data set '{name}': training and test images differ in size: {sorted(sides)}")
    height, width = next(iter(sides))
    if height != width:
        edge = min(height, width)
        if resolution is None:
            raise RequestError(
                f"data set '{name}' has images of {height}x{width}; they must be square: add --image-size {edge} (or "
                "another number of pixels), which crops the central square and resizes it"
            )
        said.append(f"data set '{name}': the central {edge}x{edge} of the {height}x{width} images is used")
    resize = resolution if resolution not in (None, height) or height != width else None
    count = num_classes or 1 + max(int(labels.max()) for _, labels in arrays.values())
    splits = {part: _split(*pair, resize, device) for part, pair in arrays.items() if need_train or part == "test"}
    side = resolution or height
    return Dataset(name, splits.get("train"), splits["test"], max(count, 2), side, class_names, tuple(said))


def _split(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], resolution: int | None, device: Any) -> Split:
    """Make a split from checked arrays. Arrays below ON_DEVICE_BYTES are copied to the device."""
    import numpy as np
    import torch

    from robobench.core.memory import ON_DEVICE_BYTES

    digest = hashlib.sha256(f"{images.shape} {images.dtype}".encode() + labels.tobytes())
    digest.update(np.ascontiguousarray(images).data)
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    if pixels.nbytes < ON_DEVICE_BYTES:
        pixels = pixels.to(device)
    return Split(
        lambda index: pixels[index.to(pixels.device)],
        torch.from_numpy(labels).to(pixels.device),
        digest.hexdigest()[:16],
        is_uint8_exact=images.dtype == np.uint8,
        resolution=resolution,
        device=device,
    )
