"""Images in encoded files (PNG, JPEG, ...), decoded and resized when they are needed."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robobench.data.info import Resize
from robobench.data.split import Split, short_digest
from robobench.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

DEEP_GRAY = ("I;16", "I;16B", "I;16L", "I")  # Pillow's modes of gray images with 16 bits


@dataclass(frozen=True)
class EncodedImages:
    """The encoded images of a split with labels, digests of their content and their sizes.

    Args:
        names: of the images, for their digest; they do not depend on where the data set is.
        places: of the images, for messages.
        load: maps the number of an image to the content of its file.
    """

    names: Sequence[str]
    places: Sequence[object]
    labels: Sequence[int]
    load: Callable[[int], bytes]
    digests: Sequence[bytes]
    sizes: Counter[tuple[int, int]]  # (width, height)

    @classmethod
    def read(
        cls, names: Sequence[str], places: Sequence[object], labels: Sequence[int], load: Callable[[int], bytes]
    ) -> EncodedImages:
        """Read every image once for its digest and size; raises RequestError for a missing file or a damaged header."""
        digests, sizes = [], Counter[tuple[int, int]]()
        for number, place in enumerate(places):
            try:
                content = load(number)
            except OSError as err:
                raise RequestError(f"cannot read the image '{place}' ({err}); replace or remove it") from err
            digests.append(hashlib.sha256(content).digest())
            sizes[_size(place, content)] += 1
        return cls(names, places, labels, load, digests, sizes)

    def split(self, resize: Resize, device: Any) -> Split:
        """Return the images in a fixed random order, so that the first images show all classes.

        The digest covers the content of every image.
        """
        import torch

        from robobench.core.rng import permutation

        digest = hashlib.sha256(str(resize.side).encode())
        for name, label, content in zip(self.names, self.labels, self.digests, strict=True):
            digest.update(f"{label} {name} ".encode())
            digest.update(content)
        order = permutation(len(self.names), "imagefolder").tolist()

        def read(index: Tensor) -> Tensor:
            if not len(index):
                return torch.empty(0, 3, resize.side, resize.side, dtype=torch.uint8)
            return torch.stack([self._decode(order[i], resize) for i in index.tolist()])

        labels = torch.tensor([self.labels[number] for number in order])
        text = digest.hexdigest()[:16]
        if resize != Resize(resize.side):
            text = short_digest(text, resize.kept, resize.interpolation)
        return Split(read, labels, text, is_uint8_exact=True, device=device)

    def _decode(self, number: int, resize: Resize) -> Tensor:
        """Decode an image, crop its central square and resize it: (3, side, side) uint8.

        As in torchvision, an EXIF rotation and an alpha channel are ignored. Gray images of 16 bits are scaled to 8.
        """
        import numpy as np
        import torch
        from PIL import Image

        try:
            with Image.open(io.BytesIO(self.load(number))) as image:
                if image.mode == "F":
                    raise ValueError("its pixels are floats of no known range; save 8 or 16 bits")
                rgb = _scale_to_8_bits(image) if image.mode in DEEP_GRAY else image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
            raise RequestError(f"cannot read the image '{self.places[number]}' ({err}); replace or remove it") from err
        (width, height), shorter = rgb.size, min(rgb.size)
        edge = shorter * resize.kept
        left, top = (width - shorter) // 2 + (shorter - edge) / 2, (height - shorter) // 2 + (shorter - edge) / 2
        if rgb.size != (resize.side, resize.side) or resize.kept != 1:
            side, resample = (resize.side, resize.side), Image.Resampling[resize.interpolation.upper()]
            rgb = rgb.resize(side, resample, box=(left, top, left + edge, top + edge))
        return torch.from_numpy(np.array(rgb).transpose(2, 0, 1).copy())


def choose_size(
    found: dict[str, EncodedImages], name: str, resolution: int | None, published: Resize | None, notes: list[str]
) -> Resize:
    """Return how the images are resized: as asked for, else not at all, else as the published weights expect."""
    sizes = sum((images.sizes for images in found.values()), Counter[tuple[int, int]]())
    (width, height), _ = sizes.most_common(1)[0]
    square = len(sizes) == 1 and width == height
    if square and resolution in (None, width):
        return Resize(width)
    if published is not None and resolution in (None, published.side):
        chosen, why = published, ", as the model's published weights expect"
    elif resolution is not None:
        chosen, why = Resize(resolution), ""
    else:
        chosen, why = None, ""
    seen = f"{width}x{height}" + (f" and {len(sizes) - 1} other sizes" if len(sizes) > 1 else "")
    if chosen is None:
        raise RequestError(
            f"data set '{name}' has images of {seen}; they must be square and of one size: add --image-size "
            f"{min(min(size) for size in sizes)} (or another number of pixels), which crops the central square and "
            "resizes it"
        )
    notes.append(f"'{name}' has images of {seen}: {chosen}{why}")
    return chosen


def _size(place: object, content: bytes) -> tuple[int, int]:
    """Return width and height of an image from its header."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise RequestError(f"cannot read the image '{place}' ({err}); replace or remove it") from err


def _scale_to_8_bits(image: Any) -> Any:
    """Scale a gray image of 16 bits to three equal channels of 8; raises ValueError for larger values."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its values are {values.min()} to {values.max()}, outside 16 bits")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
