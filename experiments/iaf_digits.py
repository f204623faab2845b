"""VAE with an inverse autoregressive flow as its posterior, on scikit-learn's digits, 8x8, 17 levels; bits/dim here is an upper bound.

    python -m experiments.iaf_digits                                 about a minute of training on one CPU core
    python -m experiments.iaf_digits --model.flow planar --model.steps 8
    python -m experiments.iaf_digits --model.flow none               the plain VAE
    python -m experiments.iaf_digits --laptop                        a few seconds

`jaxgen evaluate RUN --bound importance --samples 100` gives the tighter importance-weighted bound.
Measured: experiments/results/likelihoods.md.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.models import IAFConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=IAFConfig(image_shape=(8, 8, 1), levels=17, latent=16, hidden=(256, 256)),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=50),
    train=TrainConfig(steps=3000, batch_size=64, ema_decay=0.999, log_every=50, eval_every=150),
    workdir="runs/iaf_digits",
)
laptop = replace(
    config,
    model=replace(config.model, hidden=(64,), flow_hidden=32),
    train=replace(config.train, steps=200, eval_every=100),
    workdir="runs/iaf_digits_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
