"""Latent diffusion on scikit-learn's digits, 8x8, 17 levels: a VAE, then a diffusion model of its codes in the place of N(0, I).

    python -m experiments.latent_diffusion_digits                a few minutes of training on 2 CPU cores; first the VAE, in WORKDIR/codes
    python -m experiments.latent_diffusion_digits --laptop       a few seconds of training
    python -m experiments.latent_diffusion_digits --stages.codes.start_from RUN         with the VAE of a run of vae_digits

Measured: experiments/results/diffusion.md.
"""

from dataclasses import replace

from experiments import vae_digits
from jaxgen.cli import Experiment, main
from jaxgen.models import LatentDiffusionConfig
from jaxgen.stages import Stage
from jaxgen.training import OptimizerConfig, TrainConfig

vae = vae_digits.config
config = Experiment(
    model=LatentDiffusionConfig(codes=vae.model, terms=16),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=100, frozen=("codes",)),
    train=TrainConfig(steps=4000, batch_size=64, ema_decay=0.998, log_every=100, eval_every=1000),
    stages={"codes": Stage(train=vae.train, optimizer=vae.optimizer)},
    workdir="runs/latent_diffusion_digits",
)
few = replace(config.stages["codes"], train=replace(vae.train, steps=100, eval_every=50))
laptop = replace(
    config,
    model=replace(config.model, mlp=replace(config.model.mlp, width=32, depth=1), terms=2, sample_steps=10),
    train=replace(config.train, steps=100, eval_every=50),
    stages={"codes": few},
    workdir="runs/latent_diffusion_digits_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
