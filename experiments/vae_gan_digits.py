"""VAE with an adversarial term on scikit-learn's digits, 8x8, 17 levels: bits/dim is the bound of the VAE, beside it a Frechet distance.

    python -m experiments.vae_gan_digits                                four minutes of training on 2 CPU cores
    python -m experiments.vae_gan_digits --model.adversarial 0          the decoder without the discriminator: the VAE of vae_digits
    python -m experiments.vae_gan_digits --laptop                       a few seconds

Measured: experiments/results/small_models.md.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.experiment import ReportConfig
from jaxgen.models import VAEGANConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=VAEGANConfig(image_shape=(8, 8, 1), levels=17, latent=16, hidden=(32, 64), architecture="conv", adversarial=0.01),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=50),
    train=TrainConfig(steps=3000, batch_size=64, ema_decay=0.999, log_every=50, eval_every=300),
    report=ReportConfig(metrics=("bits_per_dim_bound", "frechet_pixels")),
    workdir="runs/vae_gan_digits",
)
laptop = replace(config, train=replace(config.train, steps=200, eval_every=100), workdir="runs/vae_gan_digits_laptop")

if __name__ == "__main__":
    main(config, laptop)
