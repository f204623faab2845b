"""Flow matching on sets of points of the plane, as pictures: samples over the model's exact density, and paths from noise to data.

    python -m experiments.flow_matching_points               2000 steps a set, a few minutes on one CPU core
    python -m experiments.flow_matching_points --laptop      20 steps a set, to see that it runs; writes nothing

Writes experiments/results/flow_matching_points.png and prints the mean of -log p of new points in nats, with its standard error, beside
that of the distribution which the points are drawn from, where it has a closed form.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from sklearn.datasets import make_moons

import jaxgen
from jaxgen import evaluation
from jaxgen.data import Dataset, load
from jaxgen.models import FlowMatchingConfig

RESULTS = Path(__file__).parent / "results"
CONFIG = FlowMatchingConfig((2,), 0, network="mlp", coupling="transport", density_steps=30)
CONFIG = replace(CONFIG, mlp=replace(CONFIG.mlp, width=64))
STEPS, SIDE, PATHS = 2000, 160, 60
"""Training steps of a set; points of the density along one side of the picture; paths that are drawn."""


def ring(n: int, seed: int) -> np.ndarray:
    """Eight narrow Gaussians on a circle: the library's set "ring"."""
    points = load("ring", "train" if seed == 0 else "test").columns["point"]
    return np.asarray(points)[:n]


def moons(n: int, seed: int) -> np.ndarray:
    """Two half circles with Gaussian noise of deviation 0.07, moved to the middle."""
    points, _ = make_moons(n, noise=0.07, random_state=seed)
    return ((points - [0.5, 0.25]) * 1.6).astype(np.float32)


def spiral(n: int, seed: int) -> np.ndarray:
    """The plane section of a swiss roll, the set of Sohl-Dickstein et al. 2015, scaled, with noise of deviation 0.05."""
    generator = np.random.default_rng(seed)
    angle = 1.5 * np.pi * (1 + 2 * generator.random(n))
    points = np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=1) / 7 + 0.05 * generator.standard_normal((n, 2))
    return points.astype(np.float32)


def squares(n: int, seed: int) -> np.ndarray:
    """A checkerboard: uniform on eight unit squares of [-2, 2]^2, of density 1/8 and entropy log 8."""
    generator = np.random.default_rng(seed)
    column, half = generator.integers(0, 4, n), generator.integers(0, 2, n)
    corner = np.stack([column - 2, 2 * half + column % 2 - 2], axis=1)
    return (corner + generator.random((n, 2))).astype(np.float32)


SETS = {ring: np.log(8) + np.log(2 * np.pi * np.e * 0.02**2), moons: None, spiral: None, squares: np.log(8)}
"""Each set and the entropy of its distribution in nats; the modes of the ring do not overlap."""


def fitted(points, steps: int):
    """A model trained on new points in every batch of 64, out of 20,000."""
    features = CONFIG.features
    sets = (Dataset.from_columns({"point": points(n, seed)}, features) for n, seed in ((20000, 0), (500, 1)))
    dataset, validation = sets
    return jaxgen.train(CONFIG, dataset, steps, validation=validation, learning_rate=2e-3, eval_every=steps)


def density_on_grid(model, reach: float) -> tuple[np.ndarray, float]:
    """log p in the middles of SIDE x SIDE squares of [-reach, reach]^2, row by row, and what the density integrates to on them."""
    axis = (np.arange(SIDE) + 0.5) * 2 * reach / SIDE - reach
    grid = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2), jnp.float32)
    logs = np.asarray(jax.jit(model.log_density)(grid), np.float64)
    return logs, float(np.exp(logs).sum() * (2 * reach / SIDE) ** 2)


def draw(figure, column: int, name: str, model, points: np.ndarray) -> None:
    """Three pictures, one below the other: the points, samples over the density, and paths of the ODE to samples."""
    reach = 1.15 * np.abs(points).max()
    logs, total = density_on_grid(model, reach)
    print(f"{name}: the density integrates to {total:.3f} on the picture", flush=True)
    samples, times = np.asarray(model.sample(jax.random.key(1), 1000)), jnp.linspace(1, 0, 41)
    noise, path = jax.random.normal(jax.random.key(2), (PATHS, 2)), []
    velocity = jax.jit(model.velocity)
    for t, s in zip(times[:-1], times[1:], strict=True):  # Euler's method
        path.append(np.asarray(noise))
        noise = noise + (s - t) * velocity(noise, t)
    path = np.stack([*path, np.asarray(noise)])
    for row, title in enumerate((f"{name}: data", "samples over the density", "paths from noise to data")):
        axes = figure.add_subplot(3, len(SETS), row * len(SETS) + column + 1, aspect="equal")
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], title=title)
        if row == 0:
            axes.scatter(*points[:1000].T, s=3, linewidths=0)
        if row == 1:
            axes.imshow(np.maximum(logs, logs.max() - 9).reshape(SIDE, SIDE), origin="lower", extent=[-reach, reach] * 2, cmap="Blues")
            axes.scatter(*samples[:400].T, s=3, color="tab:red", linewidths=0)
        if row == 2:
            axes.plot(path[..., 0], path[..., 1], color="0.6", linewidth=0.6)
            axes.scatter(*path[0].T, s=6, color="tab:gray", linewidths=0)
            axes.scatter(*path[-1].T, s=6, color="tab:red", linewidths=0)


@dataclass(frozen=True)
class Options:
    """The command line."""

    steps: int = STEPS  # of training on each set
    laptop: tyro.conf.FlagCreatePairsOff[bool] = False  # 20 steps a set; writes nothing


def main() -> None:
    """Every set in turn."""
    from matplotlib.figure import Figure

    options = tyro.cli(Options, description=__doc__)
    figure = Figure(figsize=(2.6 * len(SETS), 8.2), layout="constrained")
    for column, (points, entropy) in enumerate(SETS.items()):
        model = fitted(points, 20 if options.laptop else options.steps)
        test = Dataset.from_columns({"point": points(2000, 2)}, CONFIG.features)
        result, errors = evaluation.evaluate(model, test, batch_size=500), evaluation.density_errors(model, test, 500)
        least = "" if entropy is None else f"; the distribution itself: {entropy:.3f}"
        name, step = points.__name__, errors["ode_step_error"]
        nats = f"{result['nats']:.3f} +- {result['standard_error']:.3f} nats"
        print(f"{name}: {nats}, error of the ODE's steps {step:.4f}{least}", flush=True)
        draw(figure, column, name, model, points(1000, 2))
    if not options.laptop:
        figure.savefig(RESULTS / "flow_matching_points.png", dpi=80)


if __name__ == "__main__":
    main()
