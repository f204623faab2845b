"""Augmentation: random changes of training images that keep what they show. A pure function of (seed, step, place in the global batch).

So a run that resumes at a step sees the same images again, and so do several processes together. Labels and other columns stay as they are.
"""

from collections.abc import Iterator

import numpy as np

AUGMENTATIONS = ("flip", "shift", "crop")
"""flip: left and right exchanged, for half of the images. shift: moved by up to an eighth of each side, at least one pixel, and filled up
with the value 0. crop: the same, but filled up with the image mirrored at its border."""


def augmented(
    batches: Iterator[dict[str, np.ndarray]], names: tuple[str, ...], seed: int, start_step: int, process: tuple[int, int]
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of start_step, start_step + 1, ... with their images changed; `process` = (index, count)."""
    for step, batch in enumerate(batches, start_step):
        first = process[0] * len(batch["image"])
        yield {**batch, "image": augment(batch["image"], names, seed, step, first)}


def augment(image: np.ndarray, names: tuple[str, ...], seed: int, step: int, first: int = 0) -> np.ndarray:
    """Images [B, H, W, C] changed in each of the named ways; row i has place `first` + i in the global batch of `step`."""
    draws = np.random.Generator(np.random.Philox(key=[seed, step])).random((first + len(image), 5))[first:]
    if "flip" in names:
        image = np.where(draws[:, 0, None, None, None] < 0.5, image[:, :, ::-1], image)
    if "shift" in names:
        image = _moved(image, draws[:, 1:3], "constant")
    if "crop" in names:
        image = _moved(image, draws[:, 3:5], "symmetric")
    return image


def _moved(image: np.ndarray, draws: np.ndarray, mode: str) -> np.ndarray:
    """Windows as large as the image out of one that is larger by an eighth on every side; draws: [B, 2] in [0, 1) say where."""
    n, height, width = image.shape[:3]
    margin = np.array([max(1, height // 8), max(1, width // 8)])
    padded = np.pad(image, ((0, 0), (margin[0],) * 2, (margin[1],) * 2, (0, 0)), mode=mode)
    corner = (draws * (2 * margin + 1)).astype(int)
    rows, columns = corner[:, :1] + np.arange(height), corner[:, 1:] + np.arange(width)
    return padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
