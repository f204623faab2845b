"""NADE on scikit-learn's digits, 8x8, 17 levels.

    python -m experiments.nade_digits                about a minute of training on one CPU core
    python -m experiments.nade_digits --laptop       a few seconds

Measured: experiments/results/likelihoods.md.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.models import NADEConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=NADEConfig(image_shape=(8, 8, 1), levels=17, hidden=128),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=50),
    train=TrainConfig(steps=3000, batch_size=64, ema_decay=0.999, log_every=50, eval_every=150),
    workdir="runs/nade_digits",
)
laptop = replace(
    config,
    model=replace(config.model, hidden=32),
    train=replace(config.train, steps=200, eval_every=100),
    workdir="runs/nade_digits_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
