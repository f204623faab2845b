"""MADE on MNIST with the fixed binarization of Larochelle and Murray (2011): 28x28, 2 levels, nats per image; two hidden layers, 32 masks.

    python -m experiments.made_mnist                                     TFDS's own binarized_mnist (extra: tfds)
    python -m experiments.made_mnist --data.name FOLDER                  train.npz, valid.npz, test.npz of your own
    python -m experiments.made_mnist --laptop --data.name FOLDER         smaller layers, 2 masks, a few minutes on one CPU core

Published on this binarization: 88.40 nats with one hidden layer and one mask, 86.64 with two of 8000 units and 32 masks (Germain et al.
2015). Full size needs an accelerator: not run. Measured at smaller sizes: experiments/results/likelihoods.md.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import MADEConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=MADEConfig(image_shape=(28, 28, 1), levels=2, hidden=(8000, 8000), masks=32, shuffled=True),
    data=DataConfig("binarized_mnist"),
    optimizer=OptimizerConfig(learning_rate=0.01, name="adagrad", warmup_steps=0),
    train=TrainConfig(steps=100_000, batch_size=100, ema_decay=0.999, log_every=100, eval_every=2500),
    workdir="runs/made_mnist",
)
laptop = replace(
    config,
    model=replace(config.model, hidden=(500,), masks=2),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=50),
    train=replace(config.train, steps=400, log_every=10, eval_every=200),
    workdir="runs/made_mnist_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
