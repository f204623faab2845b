"""How good samples are after how many steps: every sampler of a run of diffusion or flow matching, as a table and a plot.

    python -m experiments.sampler_steps runs/flow_matching_digits
    python -m experiments.sampler_steps RUN --data FOLDER --steps 5 10 20 --out steps.png
    python -m experiments.sampler_steps RUN --data FOLDER --n 1000 --features CLASSIFIER

The number is the Frechet distance to n real images of as many samples, with the same noise at the start for every sampler; of pixels, or of
what a classifier of such images computes before its logits. The line "real images" is the distance of n others: samples can hardly do
better. The axis of the plot is what a sampler costs, the calls of the network: Heun and midpoint call it twice in a step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
import tyro

import jaxgen
from jaxgen import evaluation
from jaxgen.data import load
from jaxgen.denoising.samplers import EVALUATIONS, METHODS

BATCH = 500


def real_images(data: str, n: int | None) -> list[np.ndarray]:
    """Two times n of the images of all splits; None: two halves of them."""
    images = np.concatenate([np.asarray(load(data, split).images) for split in ("train", "validation", "test")])
    n = len(images) // 2 if n is None else n
    order = np.random.default_rng(0).permutation(len(images))
    return [images[order[:n]], images[order[n : 2 * n]]]


def features_of(classifier: str, levels: int) -> Callable[[np.ndarray], np.ndarray]:
    """The function from images to vectors: pixels in [0, 1] for "", else the last hidden layer of a classifier, averaged over places."""
    if not classifier:
        return lambda images: images.reshape(len(images), -1).astype(np.float64) / (levels - 1)
    features = evaluation.classifier_features(jaxgen.load(classifier))
    return lambda images: np.concatenate([np.asarray(features(images[i : i + BATCH]), np.float64) for i in range(0, len(images), BATCH)])


def samples(model, n: int, sampler: str, steps: int) -> np.ndarray:
    """n samples; of a class-conditional model every class in turn."""

    @partial(jax.jit, static_argnums=2)
    def draw(model, key, n):
        label = {"label": np.arange(n, dtype=np.int32) % model.config.num_classes} if model.config.num_classes else {}
        return model.sample(key, n, sampler=sampler, steps=steps, **label)

    parts = [np.asarray(draw(model, jax.random.key(start), min(BATCH, n))) for start in range(0, n, BATCH)]
    return np.concatenate(parts)[:n]


@dataclass(frozen=True)
class Options:
    """The command line."""

    run: tyro.conf.Positional[str]  # run directory of a diffusion model or a flow of images
    data: str = "digits"  # the data set that it was trained on
    samplers: tuple[str, ...] = METHODS
    steps: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    n: int | None = None  # samples, and real images of each of the two sets; None: half of all images
    features: str = ""  # run directory of a classifier whose features are compared; "": pixels
    out: str = "sampler_steps.png"


def plot(values: dict[str, list[float]], steps: tuple[int, ...], floor: float, of: str, out: str) -> None:
    """The distances against the calls of the network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(yscale="log", xlabel="calls of the network for a sample", ylabel=f"Frechet distance of {of}")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda calls, _: f"{calls:g}")
    for sampler, distances in values.items():
        style = "--" if sampler == "euler" else "-"  # on the linear path it lies on DDIM
        calls = [count * EVALUATIONS[sampler] for count in steps]
        axes.plot(calls, distances, style, marker=".", label=sampler.replace("_", "-"))
    axes.axhline(floor, color="0.5", linestyle=":", label="real images")
    axes.legend(fontsize=8)
    figure.savefig(out, dpi=100)


def main() -> None:
    """The table, a row for each sampler, and the plot."""
    options = tyro.cli(Options, description=__doc__)
    model, values = jaxgen.load(options.run), {}
    features, images = features_of(options.features, model.config.levels), real_images(options.data, options.n)
    real, other = (features(one) for one in images)
    print("| sampler | " + " | ".join(f"{steps} steps" for steps in options.steps) + " |")
    print("|---" * (len(options.steps) + 1) + "|")
    for sampler in options.samplers:
        drawn = [features(samples(model, len(real), sampler, steps)) for steps in options.steps]
        values[sampler] = [evaluation.frechet_distance(one, real) for one in drawn]
        print(f"| {sampler} | " + " | ".join(f"{value:.3f}" for value in values[sampler]) + " |", flush=True)
    floor, of = evaluation.frechet_distance(other, real), "features of a classifier" if options.features else "pixels"
    print(f"real images: {floor:.3f} ({len(real)} images and samples, {of})")
    plot(values, options.steps, floor, of, options.out)


if __name__ == "__main__":
    main()
