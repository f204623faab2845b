"""Generative adversarial network on scikit-learn's digits, 8x8, 17 levels, uint8 in and out.

    python -m experiments.gan_digits                two minutes of training on 2 CPU cores
    python -m experiments.gan_digits --laptop       a few seconds

No likelihood: the report gives the Frechet distance of pixel vectors, which compares means and covariances only.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.models import GANConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=GANConfig(image_shape=(8, 8, 1), levels=17, latent=32, hidden=64, architecture="conv"),
    optimizer=OptimizerConfig(b1=0.5, clip_norm=None, players=(("generator", 1e-3), ("discriminator", 5e-4))),
    train=TrainConfig(steps=6000, batch_size=64, ema_decay=0.999, log_every=100, eval_every=1000),
    workdir="runs/gan_digits",
)
laptop = replace(config, train=replace(config.train, steps=300, eval_every=100), workdir="runs/gan_digits_laptop")

if __name__ == "__main__":
    main(config, laptop)
