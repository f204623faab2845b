"""Variational auto-encoder on MNIST with the fixed binarization of Larochelle and Murray (2011): 28x28, 2 levels, nats per image.

    python -m experiments.vae_mnist                             TFDS's own binarized_mnist (extra: tfds)
    python -m experiments.vae_mnist --data.name FOLDER          train.npz, valid.npz, test.npz of your own; minutes on 2 CPU cores
    python -m experiments.vae_mnist --laptop --data.name FOLDER

Published on this binarization: DLGM about 85.5 to 86.6, DRAW <= 80.97 nats, both with more than one layer of latents.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import VAEConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=VAEConfig(image_shape=(28, 28, 1), levels=2, latent=40, hidden=(300, 300)),
    data=DataConfig("binarized_mnist"),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=200),
    train=TrainConfig(steps=40_000, batch_size=100, ema_decay=0.999, log_every=100, eval_every=2000),
    workdir="runs/vae_mnist",
)
laptop = replace(config, train=replace(config.train, steps=1000, eval_every=500), workdir="runs/vae_mnist_laptop")

if __name__ == "__main__":
    main(config, laptop)
