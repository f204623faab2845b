"""How much faster the priors of a VQ-VAE-2 draw codes through their caches than by a full pass for every code.

    python -m experiments.code_prior_speed               one pinned core, some minutes
    python -m experiments.code_prior_speed --laptop      8 x 8 codes, once

Grids of 512 codes, both priors at their default sizes and at twice their width, freshly drawn. Cached and naive sampling alternate; a time
is CPU time, a ratio is the median of the ratios of neighbours. Results: experiments/results/speed.md
"""

import statistics
from dataclasses import dataclass
from itertools import product

import jax
import tyro

from jaxgen import benchmark
from jaxgen.models import VQVAE2CodesConfig, VQVAE2Config, build
from jaxgen.models.vqvae2 import LowerPrior, TopPrior

CODES = 512


def priors(side: int, width: int) -> dict[str, tuple]:
    """Name -> (prior, {name: shape of what each grid of side x side codes is given})."""
    sizes = {"codes": CODES, "width": 2, "code_width": 1, "blocks": 0}  # the code model draws nothing here
    one, two = (VQVAE2CodesConfig((2 * side, 2 * side, 1), 2, halvings, **sizes) for halvings in ((1,), (1, 1)))
    top = build(VQVAE2Config(one, top=TopPrior(width=width))).top
    below = build(VQVAE2Config(two, lower=LowerPrior(width=width))).lower[0]
    return {"PixelSNAIL, the top": (top, {}), "Gated PixelCNN, given a map": (below, {"feature_map": (side, side, below.map_size)})}


def measure(prior, given: dict, batch: int, repetitions: int) -> tuple[float, float, float]:
    """(grids per second cached, grids per second naive, cached / naive)."""
    key, programs = jax.random.key(0), {}
    given = {name: jax.random.normal(key, (batch, *shape)) for name, shape in given.items()}
    for method in ("cached", "naive"):
        draw = lambda prior, key, given: prior.sample(key, batch, method=method, **given)  # noqa: B023, E731 (compiled at once)
        programs[method], _ = benchmark.compiled(draw, prior, key, given)
    jax.block_until_ready(programs["cached"](prior, key, given))
    times = [[benchmark.timed(program, prior, key, given)[1] for program in programs.values()] for _ in range(repetitions)]
    cached, naive = (statistics.median(column) for column in zip(*times, strict=True))
    return batch / cached, batch / naive, statistics.median(naive / cached for cached, naive in times)


@dataclass(frozen=True)
class Options:
    """The command line."""

    repetitions: int = 3  # of cached and naive sampling, alternating
    sides: tuple[int, ...] = (8, 16)  # of the grids
    widths: tuple[int, ...] = (64, 128)  # of both priors
    batches: tuple[int, ...] = (16, 64)  # grids that are drawn together
    laptop: tyro.conf.FlagCreatePairsOff[bool] = False  # 8 x 8 codes, 16 grids, once


def main() -> None:
    """The table, line by line."""
    options = tyro.cli(Options, description=__doc__)
    if options.laptop:
        options = Options(1, (8,), (64,), (16,))
    benchmark.pin(1)
    print("| prior | codes | width | grids | cached, grids/s | naive, grids/s | cached / naive |\n|---|---|---|---|---|---|---|")
    for side, width in product(options.sides, options.widths):
        for (name, (prior, given)), batch in product(priors(side, width).items(), options.batches):
            cached, naive, ratio = measure(prior, given, batch, options.repetitions)
            print(f"| {name} | {side} x {side} | {width} | {batch} | {cached:.4g} | {naive:.3g} | {ratio:.0f} |", flush=True)


if __name__ == "__main__":
    main()
