"""Small images from large ones by the box filter."""

from typing import Any

from jaxtyping import UInt


def box_filter(image: UInt[Any, "B H W C"], shape: tuple[int, int, int]) -> UInt[Any, "B h w C"]:
    """The image at size `shape` = (h, w, C): the mean of every H/h x W/w box, rounded to the nearest level, halves up.

    Computed in integers, so exact; h and w must divide H and W, which the caller checks.
    """
    batch, height, width, channels = image.shape
    down, across = height // shape[0], width // shape[1]
    boxes = image.astype("int32").reshape(batch, shape[0], down, shape[1], across, channels)
    total, size = boxes.sum((2, 4)), down * across
    return ((2 * total + size) // (2 * size)).astype(image.dtype)
