"""Photographs: patches of 32 x 32 pixels of the two that scikit-learn brings, split by photograph.

    split         photograph                          columns of pixels     stride     patches
    train         china.jpg, a temple and its roof    0 .. 479              8          2850
    validation    china.jpg                           512 .. 639            16         175
    test          flower.jpg, a flower before leaves  0 .. 639              32         260

The 32 columns between train and validation are in neither. Batches are {"image": uint8 [B, 32, 32, 3]}, 256 levels.
"""

import numpy as np
from jaxtyping import UInt8

from jaxgen.data.arrays import ArraySource, checked
from jaxgen.data.features import Image
from jaxgen.data.kind import Kind

SIDE = 32
SPLITS = {"train": ("china.jpg", 0, 480, 8), "validation": ("china.jpg", 512, 640, 16), "test": ("flower.jpg", 0, 640, 32)}
"""Split: file, first column of pixels, the one after the last, stride."""


def patches(picture: UInt8[np.ndarray, "H W C"], side: int, stride: int) -> UInt8[np.ndarray, "N side side C"]:
    """All squares of a picture whose upper left corners are multiples of the stride, row by row."""
    windows = np.lib.stride_tricks.sliding_window_view(picture, (side, side), axis=(0, 1))[::stride, ::stride]
    return np.ascontiguousarray(windows.transpose(0, 1, 3, 4, 2).reshape(-1, side, side, picture.shape[2]))


def photographs(split: str) -> ArraySource:
    """The patches of a split."""
    from sklearn.datasets import load_sample_image

    file, first, last, stride = SPLITS[split]
    image = patches(np.asarray(load_sample_image(file))[:, first:last], SIDE, stride)
    return checked({"image": image}, {"image": Image((SIDE, SIDE, 3), 256)}, "photographs", version="1")


KIND = Kind(lambda name, split, config: photographs(split), names=("photographs",))
