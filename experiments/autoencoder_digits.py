"""Convolutional auto-encoder on scikit-learn's digits, 8x8, 17 levels: the mean squared error of pixels scaled to [0, 1].

    python -m experiments.autoencoder_digits                about a minute of training on 2 CPU cores
    python -m experiments.autoencoder_digits --laptop       a few seconds

Its networks are those of vae_digits, with as many numbers in the code. An auto-encoder is not trained to make images of random codes; its
samples stand beside those of the VAE to show it.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.models import AutoencoderConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=AutoencoderConfig(image_shape=(8, 8, 1), levels=17, latent=16, hidden=(32, 64), architecture="conv"),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=50),
    train=TrainConfig(steps=3000, batch_size=64, ema_decay=0.999, log_every=50, eval_every=300),
    workdir="runs/autoencoder_digits",
)
laptop = replace(config, train=replace(config.train, steps=200, eval_every=100), workdir="runs/autoencoder_digits_laptop")

if __name__ == "__main__":
    main(config, laptop)
