"""Augmentation: training images are changed at random, in ways that leave their labels true. More varied images make a model overfit less.

The change of an image is a pure function of (seed, step, index in the global batch). So a run that resumes gets the same images again, and
any number of processes together get the same global batch. Only the column "image" changes, and of pairs "input" in the same way.
"""

from collections.abc import Iterator

import numpy as np

AUGMENTATIONS = ("flip", "shift", "crop")
"""flip: left and right exchanged with probability 1/2. shift: moved by whole pixels, uniform in -m .. m along each axis with
m = max(1, side // 8); pixels from outside the image are 0. crop: the same with the image mirrored at its border outside."""


def augmented(
    batches: Iterator[dict[str, np.ndarray]], names: tuple[str, ...], seed: int, start_step: int, process: tuple[int, int]
) -> Iterator[dict[str, np.ndarray]]:
    """The batches with their images changed by `augment`; the first of `batches` is that of `start_step`, `process` = (index, count)."""
    for step, batch in enumerate(batches, start_step):
        first = process[0] * len(batch["image"])
        yield batch | {name: augment(batch[name], names, seed, step, first) for name in ("image", "input") if name in batch}


def augment(image: np.ndarray, names: tuple[str, ...], seed: int, step: int, first: int = 0) -> np.ndarray:
    """Images [B, H, W, C] after the changes in `names` (of AUGMENTATIONS); row i is row `first` + i of the global batch of `step`."""
    draws = np.random.Generator(np.random.Philox(key=[seed, step])).random((first + len(image), 5))[first:]
    if "flip" in names:
        image = np.where(draws[:, 0, None, None, None] < 0.5, image[:, :, ::-1], image)
    if "shift" in names:
        image = _moved(image, draws[:, 1:3], "constant")
    if "crop" in names:
        image = _moved(image, draws[:, 3:5], "symmetric")
    return image


def _moved(image: np.ndarray, draws: np.ndarray, mode: str) -> np.ndarray:
    """Pad by m on every side (`mode` of np.pad), then cut an H x W window with corner floor((2 m + 1) draws); draws: [B, 2] in [0, 1)."""
    n, height, width = image.shape[:3]
    margin = np.array([max(1, height // 8), max(1, width // 8)])
    padded = np.pad(image, ((0, 0), (margin[0],) * 2, (margin[1],) * 2, (0, 0)), mode=mode)
    corner = (draws * (2 * margin + 1)).astype(int)
    rows, columns = corner[:, :1] + np.arange(height), corner[:, 1:] + np.arange(width)
    return padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
