"""NICE on scikit-learn's digits, 8x8, 17 levels; bits/dim here is an upper bound on the exact one.

    python -m experiments.nice_digits                about a minute of training on one CPU core
    python -m experiments.nice_digits --laptop       a few seconds

Measured: experiments/results/likelihoods.md.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.models import NICEConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=NICEConfig(image_shape=(8, 8, 1), levels=17, layers=4, hidden=(256, 256)),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=50),
    train=TrainConfig(steps=4000, batch_size=64, ema_decay=0.999, log_every=50, eval_every=200),
    workdir="runs/nice_digits",
)
laptop = replace(
    config,
    model=replace(config.model, hidden=(64,)),
    train=replace(config.train, steps=200, eval_every=100),
    workdir="runs/nice_digits_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
