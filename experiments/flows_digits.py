"""A masked autoregressive flow on scikit-learn's digits, 8x8, 17 levels; bits/dim here is an upper bound on the exact one.

    python -m experiments.flows_digits                               two minutes of training on one CPU core
    python -m experiments.flows_digits --model.maps coupling         affine couplings
    python -m experiments.flows_digits --laptop                      a few seconds

Measured: experiments/results/likelihoods.md.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.models import FlowConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=FlowConfig(image_shape=(8, 8, 1), levels=17, transform="affine", layers=5, hidden=(256,)),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=50),
    train=TrainConfig(steps=3000, batch_size=64, ema_decay=0.999, log_every=50, eval_every=150),
    workdir="runs/flows_digits",
)
laptop = replace(
    config,
    model=replace(config.model, layers=2, hidden=(64,)),
    train=replace(config.train, steps=200, eval_every=100),
    workdir="runs/flows_digits_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
