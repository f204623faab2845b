"""Variational auto-encoder on scikit-learn's digits, 8x8, 17 levels; bits/dim here is an upper bound on the exact one.

    python -m experiments.vae_digits                about a minute of training on 2 CPU cores
    python -m experiments.vae_digits --laptop       a few seconds

`jaxgen evaluate RUN --bound importance --samples 100` gives the tighter importance-weighted bound.
Measured: experiments/results/small_models.md.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.models import VAEConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=VAEConfig(image_shape=(8, 8, 1), levels=17, latent=16, hidden=(32, 64), architecture="conv"),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=50),
    train=TrainConfig(steps=3000, batch_size=64, ema_decay=0.999, log_every=50, eval_every=300),
    workdir="runs/vae_digits",
)
laptop = replace(config, train=replace(config.train, steps=200, eval_every=100), workdir="runs/vae_digits_laptop")

if __name__ == "__main__":
    main(config, laptop)
