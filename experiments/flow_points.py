"""Flows fitted to points of the plane, as pictures: the density beside the data, for each kind of map.

    python -m experiments.flow_points                 2000 steps a flow, a few minutes on one CPU core
    python -m experiments.flow_points --laptop        20 steps a flow, to see that it runs; writes nothing

The sets are two moons and a spiral. Prints the mean of -log p of 2000 new points in nats with its standard error.
Writes experiments/results/flow_points.png. Measured: experiments/results/flows.md.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

import jaxgen
from experiments.flow_matching_points import SIDE, density_on_grid, moons, spiral
from jaxgen import evaluation
from jaxgen.data import Dataset
from jaxgen.models import FlowConfig

RESULTS = Path(__file__).parent / "results"
FLOWS = {
    "autoregressive spline, 4": FlowConfig((2,), layers=4),
    "autoregressive affine, 8": FlowConfig((2,), transform="affine", layers=8),
    "coupling spline, 4": FlowConfig((2,), maps="coupling", layers=4),
    "coupling affine, 8": FlowConfig((2,), maps="coupling", transform="affine", layers=8),
    "planar, 32": FlowConfig((2,), maps="planar", layers=32),
    "radial, 32": FlowConfig((2,), maps="radial", layers=32),
}
SEEDS = (10, 11, 12)
"""Of the points for training, validation and test. Not 0, the seed of the order of batches: both come from the same random words, so that
the batches would be sorted along the spiral."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    steps: int = 2000  # of training of each flow
    laptop: tyro.conf.FlagCreatePairsOff[bool] = False  # 20 steps a flow; writes nothing


def main() -> None:
    """Every set in turn: a row of the picture, a line for each flow."""
    from matplotlib.figure import Figure

    options = tyro.cli(Options, description=__doc__)
    steps, sets = 20 if options.laptop else options.steps, [moons, spiral]
    figure = Figure(figsize=(2 * (len(FLOWS) + 1), 2.2 * len(sets)), layout="constrained")
    for row, draw in enumerate(sets):
        dataset, validation, test = (Dataset.from_arrays(point=draw(n, seed)) for n, seed in zip((20000, 500, 2000), SEEDS, strict=True))
        reach = 1.15 * float(np.abs(draw(1000, SEEDS[2])).max())
        pictures = [(draw.__name__, None)]
        for name, config in FLOWS.items():
            model = jaxgen.train(config, dataset, steps, validation=validation, learning_rate=3e-3, batch_size=128, eval_every=steps)
            result = evaluation.evaluate(model, test, batch_size=500)
            logs, total = density_on_grid(model, reach)
            print(f"{draw.__name__:<7} {name:<25} {result['nats']:.3f} +- {result['standard_error']:.3f} nats, sum {total:.3f}", flush=True)
            pictures.append((f"{name}: {result['nats']:.2f}", logs))
        for column, (title, logs) in enumerate(pictures):
            axes = figure.add_subplot(len(sets), len(pictures), row * len(pictures) + column + 1, aspect="equal")
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[])
            axes.set_title(title, fontsize=7)
            if logs is None:
                axes.scatter(*draw(1000, SEEDS[2]).T, s=2, linewidths=0)
            else:
                shown = np.exp(logs).reshape(SIDE, SIDE)
                axes.imshow(shown, origin="lower", extent=[-reach, reach] * 2, cmap="Blues", vmax=np.quantile(shown, 0.995))
    if not options.laptop:
        figure.savefig(RESULTS / "flow_points.png", dpi=70)


if __name__ == "__main__":
    main()
