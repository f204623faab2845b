"""How well a diffusion model or a flow draws pixels given others: replacement with and without repeated steps, as a table.

    python -m experiments.completions runs/diffusion_digits
    python -m experiments.completions RUN --data FOLDER --n 200 --calls 100

Of n test images the upper half is known, and the lower half y is drawn twice, as y1 and y2. The energy score (Gneiting and Raftery 2007) is
the mean of |y1 - y| + |y2 - y| - |y1 - y2|, over 2, in levels of [-1, 1]: its expectation is least for draws from the true distribution
of y given the known half. For such draws |y1 - y2| is as large as |y1 - y| in the mean: below it the draws have too little variety. Images,
noise and keys are the same in all rows; the standard error of a difference to the first row is of paired images.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxgen
from jaxgen.data import load
from jaxgen.denoising import samplers
from jaxgen.denoising.schedules import uniform_times
from jaxgen.models import FlowMatchingConfig

BATCH = 300
WAYS = [  # method, variance, steps, repeats
    ("ancestral", "small", 100, 1),
    ("ancestral", "large", 100, 1),
    ("heun", "small", 50, 1),
    ("ancestral", "large", 50, 2),
    ("ancestral", "large", 25, 4),
    ("ancestral", "large", 10, 10),
    ("ancestral", "large", 100, 4),
    ("ancestral", "large", 40, 10),
    ("ancestral", "large", 400, 1),
]


@dataclass(frozen=True)
class Options:
    """The command line."""

    run: tyro.conf.Positional[str]  # run directory of a diffusion model or a flow of images
    data: str = "digits"  # the data set that it was trained on
    n: int = 300  # test images
    calls: int = 400  # ways that call the network more often for a draw are left out


def drawn(model, images: np.ndarray, label, seed: int, method: str, variance: str, steps: int, repeats: int) -> np.ndarray:
    """x0 in about [-1, 1] for images [n, H, W, C] whose upper halves are known."""
    mask = np.broadcast_to((np.arange(images.shape[1]) < images.shape[1] // 2)[:, None, None], images.shape[1:])

    @jax.jit
    def draw(model, key, known, given):
        key_noise, key_path = jax.random.split(key)
        denoise, noise = partial(model.denoise, **given), jax.random.normal(key_noise, known.shape)
        clip = 1.0 if getattr(model.config, "clip", False) else None
        options = {"method": method, "variance": variance, "repeats": repeats, "clip": clip}
        return samplers.sample(denoise, model.schedule, noise, uniform_times(steps), key_path, known=known, mask=mask, **options)

    parts = []
    for start in range(0, len(images), BATCH):
        known = jnp.asarray(images[start : start + BATCH], jnp.float32)
        given = {} if label is None else {"label": jnp.asarray(label[start : start + BATCH])}
        parts.append(np.asarray(draw(model, jax.random.fold_in(jax.random.key(seed), start), known, given)))
    return np.concatenate(parts)


def main() -> None:
    """A row for every way."""
    options = tyro.cli(Options, description=__doc__)
    model, test = jaxgen.load(options.run), load(options.data, "test")
    images = np.asarray(test.images)[: options.n].astype(np.float64)
    flow = isinstance(model.config, FlowMatchingConfig)  # whose data are levels plus noise in 0..1
    images = 2 * (images + 0.5) / test.levels - 1 if flow else 2 * images / (test.levels - 1) - 1
    label = np.asarray(test.labels)[: options.n] if model.config.num_classes else None
    unknown, first = images.shape[1] // 2, None
    print("| sampler | variances | steps | repeats | calls | energy score | change from the first row | to the image | between two |")
    print("|---" * 9 + "|")
    for method, variance, steps, repeats in WAYS:
        calls = steps * repeats * samplers.EVALUATIONS[method]
        if calls > options.calls:
            continue
        one, two = (drawn(model, images, label, seed, method, variance, steps, repeats)[:, unknown:] for seed in (0, 1))
        to_image = (far(one, images[:, unknown:]) + far(two, images[:, unknown:])) / 2
        between = far(one, two)
        score = to_image - between / 2
        first = score if first is None else first
        print(
            f"| {method} | {variance} | {steps} | {repeats} | {calls} | {said(score)} | {said(score - first)} "
            f"| {to_image.mean():.3f} | {between.mean():.3f} |",
            flush=True,
        )


def far(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The distance |a - b| of each pair of images."""
    return np.sqrt(((a - b) ** 2).reshape(len(a), -1).sum(1))


def said(values: np.ndarray) -> str:
    """The mean and its standard error."""
    return f"{values.mean():.4f} +- {values.std(ddof=1) / len(values) ** 0.5:.4f}"


if __name__ == "__main__":
    main()
