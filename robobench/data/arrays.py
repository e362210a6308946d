"""Convert arrays of images and labels in the layouts that people save.

Images become uint8 or float32 (N, H, W, 3), labels int64 (N,). Every conversion is noted. What has no single meaning is
refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from robobench.errors import RequestError

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]  # images (N, H, W, 3) uint8 or float32, labels (N,) int64

ROUNDING = 1e-6  # values this close to [0, 1] are clipped
MAX_COARSE = 16  # whole numbers up to this may have another scale: 0 and 1, or the 0 to 16 of scanned digits
MIN_PIXEL_MAX = 10  # float images whose largest value is at least this are on the 0..255 scale


def check_arrays(where: str, images: Any, labels: Any, num_classes: int | None, notes: list[str]) -> Arrays:
    """Convert images and labels; add to `notes` what was converted.

    Args:
        where: data set and split, for messages.
        num_classes: labels must be below it; None allows any.

    Raises:
        RequestError: other shapes, types or values.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    images = _to_channels_last(where, images, notes)
    if len(images) == 0 or 0 in images.shape:
        raise RequestError(f"{where} is empty; it needs one image or more")
    labels = _to_class_numbers(where, labels, len(images), notes)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        allowed = f"0 to {num_classes - 1}" if num_classes else "0 or more"
        raise RequestError(f"{where}: labels must be {allowed}, got {low} to {high}")
    if low == 1:
        notes.append(
            f"{where}: labels are 1 to {high}; if the first class is 1, subtract 1: classes are numbered from 0"
        )
    return _to_unit_range(where, images, notes), labels


def _to_channels_last(where: str, images: np.ndarray[Any, Any], notes: list[str]) -> np.ndarray[Any, Any]:
    """Return images as (N, H, W, 3): NCHW is transposed, gray images get three equal channels."""
    shape = " x ".join(map(str, images.shape))
    if images.ndim == 3:
        images = images[..., None]
    elif images.ndim == 4 and images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
        notes.append(f"{where}: images of {shape} are read as N x channels x height x width")
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise RequestError(
            f"{where}: images must be N x H x W x 3, N x 3 x H x W or gray N x H x W, got {shape}; reshape them"
        )
    if images.shape[3] == 1:
        images = images.repeat(3, 3)
        notes.append(f"{where}: gray images of {shape} get three equal channels")
    return images


def _to_class_numbers(where: str, labels: np.ndarray[Any, Any], count: int, notes: list[str]) -> np.ndarray[Any, Any]:
    """Return labels as (N,) int64: a column is flattened, one-hot rows become their class."""
    if labels.shape[:1] != (count,) or labels.ndim > 2:
        raise RequestError(f"{where}: {count} images need as many labels, got shape {labels.shape}")
    if labels.dtype.kind not in "iufb":
        raise RequestError(
            f"{where}: labels must be whole numbers, got {labels.dtype} such as '{labels.flat[0]}'; number the classes "
            "from 0: labels = numpy.unique(labels, return_inverse=True)[1]"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    elif labels.ndim == 2:
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()):
            raise RequestError(
                f"{where}: labels of shape {labels.shape} are not one-hot; robobench takes one class per image"
            )
        notes.append(f"{where}: one-hot labels of {labels.shape[1]} classes are read as class numbers")
        labels = labels.argmax(1)
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.floor(labels)):  # NaN fails too
        raise RequestError(f"{where}: labels must be whole numbers, got {labels.dtype} such as {labels.flat[0]:g}")
    return labels.astype(np.int64)


def _to_unit_range(where: str, images: np.ndarray[Any, Any], notes: list[str]) -> np.ndarray[Any, Any]:
    """Return images as uint8, or float32 in [0, 1]."""
    if images.dtype == np.uint8:
        white = int(images.max(initial=0))
        if 0 < white <= MAX_COARSE:
            notes.append(
                f"{where}: the largest value of the uint8 images is {white} of 255; if {white} means white, save floats"
            )
        return images
    if images.dtype.kind not in "iuf":
        raise RequestError(f"{where}: images must be uint8 in 0 to 255 or float in [0, 1], got {images.dtype}")
    least, most = float(images.min()), float(images.max())
    if images.dtype.kind in "iu":
        if least < 0 or most > 255:
            raise RequestError(
                f"{where}: images must be uint8 in 0 to 255 or float in [0, 1], got {images.dtype} in [{least:g}, "
                f"{most:g}]; save floats divided by their largest possible value"
            )
        notes.append(f"{where}: {images.dtype} images in 0 to 255 are read as uint8")
        return images.astype(np.uint8)
    if least >= 0 and MIN_PIXEL_MAX <= most <= 255:
        notes.append(f"{where}: float images in [{least:.3g}, {most:.3g}] are divided by 255")
        whole = images.round()
        return whole.astype(np.uint8) if np.array_equal(whole, images) else (images / 255).astype(np.float32)
    if not (least >= -ROUNDING and most <= 1 + ROUNDING):  # NaN fails too
        raise RequestError(
            f"{where}: float images must lie in [0, 1], got [{least:.3g}, {most:.3g}]; divide by 255, do not "
            "normalize: the model does that"
        )
    if least < 0 or most > 1:
        notes.append(f"{where}: values up to {max(-least, most - 1):.1g} outside [0, 1] are clipped")
        images = images.clip(0, 1)
    return images.astype(np.float32)
