"""RealNVP on scikit-learn's digits, 8x8, 17 levels; bits/dim here is an upper bound on the exact one.

    python -m experiments.realnvp_digits                a few minutes of training on one CPU core
    python -m experiments.realnvp_digits --laptop       a few seconds

Measured: experiments/results/likelihoods.md.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.models import RealNVPConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=RealNVPConfig(image_shape=(8, 8, 1), levels=17, scales=2, width=32, blocks=1),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=50),
    train=TrainConfig(steps=2000, batch_size=64, ema_decay=0.995, log_every=50, eval_every=200),
    workdir="runs/realnvp_digits",
)
laptop = replace(
    config,
    model=replace(config.model, width=8),
    train=replace(config.train, steps=100, eval_every=50),
    workdir="runs/realnvp_digits_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
