"""RIDE, a spatial LSTM with a mixture of Gaussian scale mixtures, on scikit-learn's digits, 8x8, 17 levels; bits/dim is an upper bound.

    python -m experiments.ride_digits                about two minutes of training on one CPU core
    python -m experiments.ride_digits --laptop       a few seconds

Measured: experiments/results/likelihoods.md.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.models import RIDEConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=RIDEConfig(image_shape=(8, 8, 1), levels=17),
    optimizer=OptimizerConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=50),
    train=TrainConfig(steps=3000, batch_size=64, ema_decay=0.999, log_every=50, eval_every=150),
    workdir="runs/ride_digits",
)
laptop = replace(
    config,
    model=replace(config.model, hidden=8),
    train=replace(config.train, steps=200, eval_every=100),
    workdir="runs/ride_digits_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
