"""The four energies of Rezende & Mohamed 2015, table 1: flows fitted to each, their divergence on a grid, a picture.

    python -m experiments.flow_energies                 3000 steps for each of 16 fits, about ten minutes on one CPU core
    python -m experiments.flow_energies --laptop        20 steps each, to see that it runs; writes nothing

A flow takes N(0, I) to q(z), and KL(q || p) with p(z) = exp(-U(z)) / Z is minimised from draws of q; for the first half of the steps U
counts less (by a factor that grows from 0.01 to 1, as in the paper). The divergence is then a sum over a grid, where q is computed by the
inverse of the flow and Z is the sum of exp(-U). Energies 2, 3 and 4 do not end along z_1, so all four have a wall here: U grows by
5 (|z_i| - 4)^2 beyond 4. Planar flows of 2, 8 and 32 maps, as there, and an autoregressive spline flow beside them.

Writes experiments/results/flow_energies.png. Measured: experiments/results/flows.md.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

from jaxgen.models import FlowConfig, build

RESULTS = Path(__file__).parent / "results"
FLOWS = {f"planar, {k}": FlowConfig((2,), maps="planar", layers=k) for k in (2, 8, 32)}
FLOWS["spline, 4"] = FlowConfig((2,), layers=4, hidden=(32, 32), bins=12)
REACH, SIDE = 5.0, 250
"""The grid is SIDE x SIDE points of [-REACH, REACH]^2."""


def bump(x, width: float):
    """-x^2 / (2 width^2)."""
    return -0.5 * (x / width) ** 2


def wave(z):
    """w_1."""
    return jnp.sin(jnp.pi * z[:, 0] / 2)


def two_moons(z):
    """U_1: the ring of radius 2, left and right."""
    sides = jnp.logaddexp(bump(z[:, 0] - 2, 0.6), bump(z[:, 0] + 2, 0.6))
    return -bump(jnp.sqrt((z**2).sum(-1) + 1e-9) - 2, 0.4) - sides


def sine(z):
    """U_2: a band along the wave."""
    return -bump(z[:, 1] - wave(z), 0.4)


def split(z):
    """U_3: a band that parts and joins again."""
    gap = 3 * jnp.exp(bump(z[:, 0] - 1, 0.6))
    return -jnp.logaddexp(bump(z[:, 1] - wave(z), 0.35), bump(z[:, 1] - wave(z) + gap, 0.35))


def fork(z):
    """U_4: a band that parts."""
    gap = 3 * jax.nn.sigmoid((z[:, 0] - 1) / 0.3)
    return -jnp.logaddexp(bump(z[:, 1] - wave(z), 0.4), bump(z[:, 1] - wave(z) + gap, 0.35))


ENERGIES = [two_moons, sine, split, fork]


def energy(shape, z):
    """U with the wall."""
    return shape(z) + 5 * (jnp.maximum(jnp.abs(z) - 4, 0) ** 2).sum(-1)


def fitted(shape, config, steps: int, seed: int, batch: int = 256):
    """The flow of least KL(q || p), up to what Adam finds in so many steps."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(5e-3, steps)))
    graph, params, rest = nnx.split(build(config, seed), nnx.Param, ...)

    def divergence(params, key, weight):
        noise = jax.random.normal(key, (batch, 2))
        z, log_det = nnx.merge(graph, params, rest).transform(noise)
        return (weight * energy(shape, z) - log_det).mean()

    def step(carry, i):
        params, state = carry
        weight = jnp.minimum(1.0, 0.01 + 2 * i / steps)
        gradient = jax.grad(divergence)(params, jax.random.fold_in(jax.random.key(seed), i), weight)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps)))(params)
    return nnx.merge(graph, params, rest)


@jax.jit
def log_q(model, z):
    """log q(z), by the inverse of the flow."""
    noise = model.inverse(z)
    return -0.5 * (noise**2).sum(-1) - jnp.log(2 * jnp.pi) - model.transform(noise)[1]


@dataclass(frozen=True)
class Options:
    """The command line."""

    steps: int = 3000  # of each fit
    seeds: int = 1  # fits of each flow to each energy
    laptop: tyro.conf.FlagCreatePairsOff[bool] = False  # 20 steps each; writes nothing


def main() -> None:
    """Every energy in turn: a row of the picture, a line for each flow."""
    from matplotlib.figure import Figure

    options = tyro.cli(Options, description=__doc__)
    steps = 20 if options.laptop else options.steps
    axis = (np.arange(SIDE) + 0.5) * 2 * REACH / SIDE - REACH
    grid, cell = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2), jnp.float32), (2 * REACH / SIDE) ** 2
    figure = Figure(figsize=(2 * (len(FLOWS) + 1), 2.1 * len(ENERGIES)), layout="constrained")
    for row, shape in enumerate(ENERGIES):
        target = np.exp(-np.asarray(jax.jit(partial(energy, shape))(grid), np.float64))
        target /= target.sum() * cell
        shown = {shape.__name__.replace("_", " "): target}
        for name, config in FLOWS.items():
            found = []
            for seed in range(options.seeds):
                logs = np.asarray(log_q(fitted(shape, config, steps, seed), grid), np.float64)
                q = np.exp(logs)
                found.append((cell * (q * (logs - np.log(np.maximum(target, 1e-300)))).sum(), cell * q.sum()))
            shown[f"{name}: KL {found[-1][0]:.3f}"] = q
            numbers = "  ".join(f"KL {kl:.4f} (q sums to {total:.4f})" for kl, total in found)
            print(f"{shape.__name__:<10} {name:<11} {numbers}", flush=True)
        for column, (title, density) in enumerate(shown.items()):
            axes = figure.add_subplot(len(ENERGIES), len(shown), row * len(shown) + column + 1)
            axes.imshow(density.reshape(SIDE, SIDE), origin="lower", extent=[-REACH, REACH] * 2, cmap="Blues", vmax=target.max())
            axes.set(xticks=[], yticks=[])
            axes.set_title(title, fontsize=8)
    if not options.laptop:
        figure.savefig(RESULTS / "flow_energies.png", dpi=70)


if __name__ == "__main__":
    main()
