"""Outputs of pix2pix beside those of simpler methods, on held-out pairs of grey images, or outlines, and colour images.

    python -m experiments.compare_pairs RUN ABLATION [--data photographs] [--pairs grey] [--split test] [--first N] [--out RUN/pairs.png]

RUN and ABLATION are runs of experiments.pix2pix_photographs on these data, with the discriminator and with --model.adversarial 0. --first:
only so many pairs of the split.

    input    the output has the value of the input in all channels; an outline is black on white
    ridge    every channel is linear in the values of the input's pixels around (sides of 1, 3, 5 or 7 pixels, zeros outside) and 1, fitted
             by scikit-learn on at most 200,000 training pixels; side and penalty are those with the least absolute error on validation
    ABLATION, RUN

Printed of each: absolute error, PSNR, SSIM, and the overlap of colour histograms: of the numbers R - G and (R + G) / 2 - B of all pixels,
from -1 to 1 in 64 bins, the sum over bins of the smaller share of outputs and true images, meant over the two; 1 for equal histograms.
Below, the difference of the absolute error of RUN from that of each, image by image, with its standard error.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro

import jaxgen
from jaxgen import data, evaluation

SIDES, PENALTIES, PIXELS = (1, 3, 5, 7), (1e-2, 1e2, 1e5), 200_000


def around(grey: np.ndarray, side: int) -> np.ndarray:
    """The values around every pixel of [N, H, W, 1], scaled to [0, 1]: [N H W, side^2]."""
    half = side // 2
    padded = np.pad(grey[..., 0] / np.float32(255), ((0, 0), (half, half), (half, half)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
    return windows.reshape(-1, side**2)


def ridge(train: data.Dataset, validation: data.Dataset, given: np.ndarray) -> tuple[np.ndarray, str]:
    """Outputs in levels, real numbers, for inputs; and what was chosen."""
    from sklearn.linear_model import Ridge

    images, inputs = (np.asarray(train.columns[name]) for name in ("image", "input"))
    each = images.shape[1] * images.shape[2]
    few = np.random.default_rng(0).permutation(len(images))[: max(1, PIXELS // each)]
    held, best = validation.columns, None
    few_held = np.arange(min(len(validation), 1000))
    for side in SIDES:
        rows = around(inputs[few], side)
        for penalty in PENALTIES:
            fitted = Ridge(alpha=penalty).fit(rows, images[few].reshape(len(rows), -1))
            outputs = fitted.predict(around(np.asarray(held["input"])[few_held], side))
            error = np.abs(np.clip(outputs, 0, 255) - np.asarray(held["image"])[few_held].reshape(outputs.shape)).mean()
            if best is None or error < best[0]:
                best = error, side, penalty, fitted
    _, side, penalty, fitted = best
    outputs = fitted.predict(around(given, side)).reshape(*given.shape[:3], -1)
    return np.clip(outputs, 0, 255), f"{side} x {side} pixels, penalty {penalty:g}"


def histograms(images: np.ndarray) -> np.ndarray:
    """[2, 64]: shares of R - G and (R + G) / 2 - B."""
    red, green, blue = np.moveaxis(np.asarray(images, np.float64) / 255, -1, 0)
    numbers = red - green, (red + green) / 2 - blue
    return np.stack([np.histogram(values, 64, (-1, 1))[0] / values.size for values in numbers])


def overlap(images: np.ndarray, others: np.ndarray) -> float:
    """The overlap of colour histograms."""
    return float(np.minimum(histograms(images), histograms(others)).sum(1).mean())


def picture(columns: dict[str, np.ndarray], rows: np.ndarray, path: Path) -> None:
    """Examples in rows, methods in columns, every pixel three times as large."""
    from PIL import Image

    lines = [np.concatenate([images[row].repeat(3, 0).repeat(3, 1) for images in columns.values()], axis=1) for row in rows]
    Image.fromarray(np.concatenate(lines).astype(np.uint8)).save(path)
    print(f"columns {', '.join(columns)}: {path}")


@dataclass(frozen=True)
class Options:
    """The command line."""

    run: tyro.conf.Positional[str]  # run directory of pix2pix
    ablation: tyro.conf.Positional[str]  # run directory of the same with --model.adversarial 0
    data: str = "photographs"  # the data set that they were trained on
    pairs: Literal["grey", "outline"] = "grey"  # what the inputs are
    split: Literal["train", "validation", "test"] = "test"  # whose pairs are compared
    first: int | None = None  # only so many pairs of the split; None: all
    out: str | None = None  # the picture; None: pairs.png in RUN


def main() -> None:
    """The table, the differences and the picture."""
    asked = tyro.cli(Options, description=__doc__)
    train, validation, test = (data.load(asked.data, split, pairs=asked.pairs) for split in ("train", "validation", asked.split))
    n = min(asked.first or len(test), len(test))
    test = data.Dataset(test.source.select(np.arange(n)), test.name, asked.split)
    given, truth = np.asarray(test.columns["input"]), np.asarray(test.images)
    outputs: dict[str, np.ndarray] = {"input": given.repeat(3, axis=3) if asked.pairs == "grey" else 255 * (1 - given.repeat(3, axis=3))}
    outputs["ridge"], chosen = ridge(train, validation, given)
    for path, label in ((asked.ablation, "L1 only"), (asked.run, "pix2pix")):
        outputs[label] = evaluation.draw_like(jaxgen.load(path), test, jax.random.key(0), 64)[1]
    print(f"{asked.data}: {n} {asked.split} pairs of {given.shape[1]} x {given.shape[2]} pixels; ridge: {chosen}")
    print(f"{'':<10} absolute error      PSNR            SSIM               overlap of colours")
    for label, images in outputs.items():
        found = evaluation.pair_metrics(images, truth, 256)
        error = f"{found['absolute_error']:.4f} +- {found['standard_error']:.4f}"
        more = f"{found['psnr']:.2f} +- {found['psnr_standard_error']:.2f}   {found['ssim']:.3f} +- {found['ssim_standard_error']:.3f}"
        print(f"{label:<10} {error}   {more}    {overlap(images, truth):.3f}")
    each = {label: (np.abs(images - truth.astype(float)) / 255).mean((1, 2, 3)) for label, images in outputs.items()}
    for label in list(each)[:-1]:
        change = each["pix2pix"] - each[label]
        print(f"absolute error of pix2pix minus {label}: {change.mean():+.4f} +- {change.std(ddof=1) / np.sqrt(n):.4f}")
    rows = np.linspace(0, n - 1, 10).astype(int)
    picture(outputs | {"truth": truth}, rows, Path(asked.out or f"{asked.run}/pairs.png"))


if __name__ == "__main__":
    main()
