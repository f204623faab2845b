"""NVAE on MNIST with the fixed binarization of Larochelle and Murray (2011): 28x28, 2 levels, nats per image; latents at 8x8, 4x4 and 2x2.

    python -m experiments.nvae_mnist                             TFDS's own binarized_mnist (extra: tfds)
    python -m experiments.nvae_mnist --data.name FOLDER          train.npz, valid.npz, test.npz of your own; an hour or two on a CPU core
    python -m experiments.nvae_mnist --laptop --data.name FOLDER

`jaxgen evaluate RUN --bound importance --samples 500` gives the importance-weighted bound. Published, on a binarization drawn anew in every
epoch, which is easier: 78.01 nats (15 groups at 8x8 and 4x4, 400 epochs).
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import NVAEConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=NVAEConfig((28, 28, 1), 2, widths=(4, 8, 32, 64, 64), groups=(2, 2, 2), latent=4, expansion=3, warm_up=2000),
    data=DataConfig("binarized_mnist"),
    optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=200),
    train=TrainConfig(steps=20_000, batch_size=50, ema_decay=0.999, log_every=50, eval_every=1000),
    workdir="runs/nvae_mnist",
)
laptop = replace(
    config,
    model=replace(config.model, widths=(2, 4, 8, 8, 8), groups=(1, 1, 1), warm_up=50),
    train=replace(config.train, steps=200, eval_every=100),
    workdir="runs/nvae_mnist_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
