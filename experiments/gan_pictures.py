"""The game of a GAN in pictures: samples over the values of the discriminator during a training on the ring, and samples from fixed noise.

    python -m experiments.gan_pictures                   writes gan_ring.png and gan_ring.gif; two minutes of one CPU core
    python -m experiments.gan_pictures RUN               of a trained run: its samples at every validation, which all have the same noise
    python -m experiments.gan_pictures --laptop          ten steps

The ring is trained twice: with the non-saturating loss alone, and with the penalty R1. The first picture has a row for each, at some
steps; the animation has both beside each other. Results: experiments/results/gan.md
"""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import tyro

from experiments.compare_gans import SETTINGS, trained
from jaxgen import training
from jaxgen.data import load
from jaxgen.reports import game
from jaxgen.runs import figures

SHOWN = ("non-saturating", "non-saturating, R1")
FRAMES, COLUMNS, POINTS = 32, 6, 400
"""Frames of the animation, those of a row of the picture, and points of each kind in one."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    run: tyro.conf.Positional[str] = ""  # a run directory whose samples are put together; none: the ring is trained
    out: str = "."  # folder of the pictures
    seed: int = 0  # of both trainings
    laptop: tyro.conf.FlagCreatePairsOff[bool] = False  # ten steps


def frames_of(name: str, seed: int, steps: int | None) -> list[game.Frame]:
    """The frames of a training: close to each other at first, then farther apart."""
    setting, frames = SETTINGS[name], []
    setting = setting if steps is None else replace(setting, train=replace(setting.train, steps=steps))
    last = setting.train.steps
    wanted = set(np.unique(np.round(np.linspace(1, last**0.5, FRAMES) ** 2).astype(int)).tolist())

    def look(step: int, state: training.TrainState) -> None:
        if step in wanted:
            frames.append(game.frame(training.ema_model(state), step, jax.random.key(0), n=POINTS))

    trained(setting, load("ring", "train"), seed, events=((1, look),))
    return frames


def main() -> None:
    """The picture and the animation of the ring, or the animation of a run."""
    options = tyro.cli(Options, description=__doc__)
    out = Path(options.out)
    if options.run:
        drawn = sorted(Path(options.run, "images").glob("samples_*.png"))
        (out / "samples.gif").write_bytes(figures.gif(np.stack([figures.pixels(path.read_bytes()) for path in drawn]), 400))
        print(f"{len(drawn)} pictures: {out / 'samples.gif'}")
        return
    real = load("ring", "train").images[:POINTS]
    games = [frames_of(name, options.seed, 10 if options.laptop else None) for name in SHOWN]
    chosen = np.unique(np.linspace(0, len(games[0]) - 1, COLUMNS).astype(int))
    rows = [game.strip([frames[i] for i in chosen], real) for frames in games]
    (out / "gan_ring.png").write_bytes(figures.png(np.concatenate(rows)))
    both = np.concatenate([game.pictures(frames, real) for frames in games], axis=2)
    (out / "gan_ring.gif").write_bytes(figures.gif(both, 200, colors=32))
    print(f"{', '.join(SHOWN)}: {out / 'gan_ring.png'}, {out / 'gan_ring.gif'}")


if __name__ == "__main__":
    main()
