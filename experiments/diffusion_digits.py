"""Diffusion in continuous time with a learned schedule (VDM) on scikit-learn's digits, 8x8, 17 levels, trained by its bound.

    python -m experiments.diffusion_digits                a few minutes of training on 2 CPU cores
    python -m experiments.diffusion_digits --laptop       a few seconds of training

With --model.num_classes 10 every digit is given its class, and `jaxgen sample RUN --guidance 2` goes further towards it. DDPM's form of T
steps: --model.schedule linear --model.weights simple, and the improved one: --model.schedule cosine --model.variances learned.
Measured: experiments/results/diffusion.md.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.models import DiffusionConfig
from jaxgen.training import OptimizerConfig, TrainConfig

UNET = replace(DiffusionConfig.unet, width=16)

config = Experiment(
    model=DiffusionConfig(image_shape=(8, 8, 1), levels=17, unet=UNET, schedule="learned", weights="bound", predicts="v", terms=16),
    optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=100),
    train=TrainConfig(steps=2000, batch_size=64, ema_decay=0.995, log_every=100, eval_every=500),
    workdir="runs/diffusion_digits",
)
laptop = replace(
    config,
    model=replace(config.model, unet=replace(UNET, width=8, multiples=(1,), attention=()), terms=2, sample_steps=10),
    train=replace(config.train, steps=100, eval_every=50),
    workdir="runs/diffusion_digits_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
