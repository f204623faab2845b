"""MADE on scikit-learn's digits, 8x8, 17 levels: one set of weights for 8 orders, whose probabilities are averaged.

    python -m experiments.made_digits                              about a minute of training on one CPU core
    python -m experiments.made_digits --model.masks 1 --model.shuffled False      the raster order alone
    python -m experiments.made_digits --laptop                     a few seconds

Measured: experiments/results/likelihoods.md.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.models import MADEConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=MADEConfig(image_shape=(8, 8, 1), levels=17, hidden=(256, 256), masks=8, shuffled=True),
    optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=50),
    train=TrainConfig(steps=3000, batch_size=64, ema_decay=0.999, log_every=50, eval_every=150),
    workdir="runs/made_digits",
)
laptop = replace(
    config,
    model=replace(config.model, hidden=(64,), masks=2),
    train=replace(config.train, steps=200, eval_every=100),
    workdir="runs/made_digits_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
