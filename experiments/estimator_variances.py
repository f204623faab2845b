"""Variance of the gradient of the VAE's estimators A and B along its training on scikit-learn's digits, 8x8, 17 levels.

    python -m experiments.estimator_variances               3000 steps, two minutes on 2 CPU cores
    python -m experiments.estimator_variances --seed 1      another training, other draws; prints the table only
    python -m experiments.estimator_variances --laptop      20 steps, to see that it runs; writes nothing

Writes experiments/results/estimators.png and prints the table of experiments/results/estimators.md. The networks are fully connected. Both
estimators are measured at the same weights, on the same 64 images of the validation split, with the same draws of z; the training uses
estimator B.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jax.sharding import AxisType

from jaxgen import training
from jaxgen.data import load
from jaxgen.models import VAEConfig, build
from jaxgen.training import OptimizerConfig

RESULTS = Path(__file__).parent / "results"
MODEL = VAEConfig((8, 8, 1), 17, latent=16, hidden=(256, 256))
STEPS = (0, 10, 30, 100, 200, 300, 600, 1000, 2000, 3000)
DRAWS = 256
PARTS = {"mean": slice(None, MODEL.latent), "log variance": slice(MODEL.latent, None)}  # of the encoder's last layer


def measure(model, image, key) -> dict[str, float]:
    """Of A and B: the variance of the bound of an image, the mean over images, and the sums of variances of the gradient of the mean bound
    over the parameters of the encoder, and over those that give the mean and the log variance of q(z | x)."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    keys, found = jax.random.split(key, DRAWS), {}

    @jax.jit
    def curvature(params, keys):
        """s^2 H for each image and dimension of z, H = -E d^2 log p(x | z) / dz^2 = -E [noise d log p(x | z) / dz] / s (Stein)."""
        model = nnx.merge(graph, params, rest)
        mean, log_variance = model.encode(image)

        def one(key):
            noise = jax.random.normal(key, mean.shape)
            z = mean + jnp.exp(log_variance / 2) * noise
            slope = jax.grad(lambda z: model.head.log_prob(model.decode(z), image).sum())(z)
            return -jnp.exp(log_variance / 2) * noise * slope

        return jax.lax.map(one, keys).mean(0)

    for estimator in "AB":

        @jax.jit
        def numbers(params, keys, estimator=estimator):
            bound = lambda params, key: nnx.merge(graph, params, rest).elbo(image, key, estimator=estimator)  # noqa: E731
            _, variance = training.gradient_moments(lambda params, key: bound(params, key).mean(), params, keys)
            values = jax.lax.map(lambda key: bound(params, key), keys).var(0, ddof=1).mean()
            last = variance["posterior"]
            parts = {name: last["kernel"][...][:, part].sum() + last["bias"][...][part].sum() for name, part in PARTS.items()}
            whole = {name: sum(leaf.sum() for leaf in jax.tree.leaves(variance[name])) for name in ("features", "posterior", "decoder")}
            return {"bound": values, "encoder": whole["features"] + whole["posterior"], "decoder": whole["decoder"], **parts}

        found |= {f"{name} {estimator}": float(value) for name, value in numbers(params, keys).items()}
    curved = np.asarray(curvature(params, keys))
    return found | {"s^2 H": float(curved.mean()), "share with H > 0": float((curved > 0).mean())}


def plot(steps: list[int], rows: list[dict]) -> None:
    """Variances of A and B over the steps, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = {"bound": "bound of an image, nats$^2$", "encoder": "gradient,\nall of the encoder", "mean": "gradient,\nlayer of the mean"}
    names["log variance"] = "gradient,\nlayer of the log variance"
    figure, axes = pyplot.subplots(1, 4, figsize=(15, 3.6), layout="constrained")
    for axis, (name, title) in zip(axes, names.items(), strict=True):
        for estimator, style in (("A", "o-"), ("B", "s--")):
            axis.plot(np.add(steps, 1), [row[f"{name} {estimator}"] for row in rows], style, label=f"estimator {estimator}", markersize=4)
        axis.set(xscale="log", yscale="log", xlabel="step + 1", title=f"variance of the {title}")
    axes[0].legend()
    figure.savefig(RESULTS / "estimators.png", dpi=110)


@dataclass(frozen=True)
class Options:
    """The command line."""

    seed: int = 0  # of the weights, the batches and the draws; the picture is that of seed 0
    laptop: tyro.conf.FlagCreatePairsOff[bool] = False  # 20 steps, to see that it runs; writes nothing


def main() -> None:
    """Trains, measures at some steps, prints the table and draws the picture."""
    options = tyro.cli(Options, description=__doc__)
    seed, last = options.seed, 20 if options.laptop else STEPS[-1]
    optimizer = training.make_optimizer(OptimizerConfig(schedule="cosine", warmup_steps=50), last)
    state = training.init_state(build(MODEL, seed), optimizer, mesh := jax.make_mesh((1, 1), ("data", "fsdp"), (AxisType.Auto,) * 2))
    step, key = training.make_train_step(optimizer, mesh), jax.random.key(2 * seed)
    image = jnp.asarray(load("digits", "validation").images[:64])
    batches, steps, rows = load("digits", "train").batches(0, 64, seed), [], []
    for i in range(last + 1):
        if i in STEPS:
            steps.append(i)
            rows.append(measure(state.model, image, jax.random.key(2 * seed + 1)))
            print(f"step {i}: " + ", ".join(f"{name} {value:.3g}" for name, value in rows[-1].items()), flush=True)
        state, _ = step(state, next(batches), key)
    print("\n| step | bound A; B | encoder A; B | A / B | mean A / B | log variance A / B | s^2 H |\n|---|---|---|---|---|---|---|")
    for i, row in zip(steps, rows, strict=True):
        ratios = [row[f"{name} A"] / row[f"{name} B"] for name in ("encoder", *PARTS)]
        pairs = [f"{row[f'{name} A']:.3g}; {row[f'{name} B']:.3g}" for name in ("bound", "encoder")]
        print(f"| {i} | " + " | ".join([*pairs, *(f"{ratio:.2f}" for ratio in ratios), f"{row['s^2 H']:.2f}"]) + " |")
    if not options.laptop and seed == 0:
        plot(steps, rows)


if __name__ == "__main__":
    main()
