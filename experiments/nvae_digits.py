"""NVAE on scikit-learn's digits, 8x8, 17 levels: latents at 4x4, 2x2 and 1x1; bits/dim here is an upper bound on the exact one.

    python -m experiments.nvae_digits                about five minutes of training on a CPU core, and a minute of compiling
    python -m experiments.nvae_digits --laptop       a minute, nearly all of it compiling

`jaxgen evaluate RUN --bound importance --samples 100` gives the tighter importance-weighted bound.
Measured: experiments/results/small_models.md.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.models import NVAEConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=NVAEConfig(image_shape=(8, 8, 1), levels=17, widths=(16, 32, 32, 32), groups=(1, 2, 2), latent=4, expansion=3, warm_up=600),
    optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=50),
    train=TrainConfig(steps=2000, batch_size=64, ema_decay=0.995, log_every=50, eval_every=500),
    workdir="runs/nvae_digits",
)
laptop = replace(
    config,
    model=replace(config.model, widths=(8, 8, 8, 8), groups=(1, 1, 1), warm_up=30),
    train=replace(config.train, steps=100, eval_every=50),
    workdir="runs/nvae_digits_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
