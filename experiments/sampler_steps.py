"""How good samples are after how many steps: every sampler of a run of diffusion or flow matching, as a table and a plot.

    python -m experiments.sampler_steps runs/flow_matching_digits
    python -m experiments.sampler_steps RUN --data FOLDER --steps 5 10 20 --out steps.png

The number is the Frechet distance of pixels to one half of the real images, of as many samples as the half has images, with the same noise
at the start for every sampler. The line "real images" is the other half's distance: samples can hardly do better. The axis of the plot is
what a sampler costs, the calls of the network: Heun and midpoint call it twice in a step.
"""

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


def real_halves(data: str) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of the images of all splits, as vectors scaled to [0, 1]."""
    sets = [load(data, split) for split in ("train", "validation", "test")]
    images = np.concatenate([np.asarray(one.images) for one in sets])
    order = np.random.default_rng(0).permutation(len(images))[: len(images) // 2 * 2]
    return tuple(scaled(images[half], sets[0].levels) for half in np.split(order, 2))


def scaled(images: np.ndarray, levels: int) -> np.ndarray:
    """Vectors of pixels in [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float64) / (levels - 1)


def distance(model, half: np.ndarray, sampler: str, steps: int) -> float:
    """Frechet distance of len(half) samples; of a class-conditional model every class in turn."""

    @partial(jax.jit, static_argnums=2)
    def draw(model, key, n):
        label = {"label": np.arange(n, dtype=np.int32) % model.config.num_classes} if model.config.num_classes else {}
        return model.sample(key, n, sampler=sampler, steps=steps, **label)

    parts = [np.asarray(draw(model, jax.random.key(start), min(BATCH, len(half)))) for start in range(0, len(half), BATCH)]
    return evaluation.frechet_distance(scaled(np.concatenate(parts)[: len(half)], model.config.levels), half)


@dataclass(frozen=True)
class Options:
    """The command line."""

    run: tyro.conf.Positional[str]  # run directory of a diffusion model or a flow of images
    data: str = "digits"  # the data set that it was trained on
    samplers: tuple[str, ...] = METHODS
    steps: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    out: str = "sampler_steps.png"


def plot(values: dict[str, list[float]], steps: tuple[int, ...], floor: float, out: str) -> None:
    """The distances against the calls of the network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(yscale="log", xlabel="calls of the network for a sample", ylabel="Frechet distance of pixels")
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
    model, (half, other), values = jaxgen.load(options.run), real_halves(options.data), {}
    print("| sampler | " + " | ".join(f"{steps} steps" for steps in options.steps) + " |")
    print("|---" * (len(options.steps) + 1) + "|")
    for sampler in options.samplers:
        values[sampler] = [distance(model, half, sampler, steps) for steps in options.steps]
        print(f"| {sampler} | " + " | ".join(f"{value:.3f}" for value in values[sampler]) + " |", flush=True)
    floor = evaluation.frechet_distance(other, half)
    print(f"real images: {floor:.3f} ({len(half)} images and samples)")
    plot(values, options.steps, floor, options.out)


if __name__ == "__main__":
    main()
