"""VAE with an inverse autoregressive flow as its posterior, on MNIST with the fixed binarization of Larochelle and Murray (2011), in nats.

    python -m experiments.iaf_mnist                                     TFDS's own binarized_mnist (extra: tfds)
    python -m experiments.iaf_mnist --data.name FOLDER                  train.npz, valid.npz, test.npz of your own
    python -m experiments.iaf_mnist --model.flow planar --model.steps 8
    python -m experiments.iaf_mnist --laptop --data.name FOLDER

Published: <= 85.1 nats with 80 planar maps (Rezende & Mohamed 2015), <= 79.10 with a convolutional ResNet of
several layers of latents (Kingma et al. 2016), both on other binarizations. Measured: experiments/results/likelihoods.md.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import IAFConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=IAFConfig(image_shape=(28, 28, 1), levels=2, latent=40, hidden=(300,), flow_hidden=320),
    data=DataConfig("binarized_mnist"),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=200),
    train=TrainConfig(steps=40_000, batch_size=100, ema_decay=0.999, log_every=100, eval_every=2000),
    workdir="runs/iaf_mnist",
)
laptop = replace(config, train=replace(config.train, steps=1000, eval_every=500), workdir="runs/iaf_mnist_laptop")

if __name__ == "__main__":
    main(config, laptop)
