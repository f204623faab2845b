"""RealNVP on CIFAR-10, 32x32x3, 256 levels; bits/dim here is an upper bound on the exact one.

    python -m experiments.realnvp_cifar10                               TFDS's own cifar10 (extra: tfds)
    python -m experiments.realnvp_cifar10 --data.name FOLDER            train.npz and test.npz of your own
    python -m experiments.realnvp_cifar10 --laptop --data.name FOLDER   a small model, a few minutes on 2 CPU cores

Published: 3.49 bits/dim (Dinh, Sohl-Dickstein, Bengio 2016). Full size needs an accelerator: not run.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import RealNVPConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=RealNVPConfig(image_shape=(32, 32, 3), levels=256, scales=2, width=64, blocks=4),
    data=DataConfig("cifar10", augment=("flip",)),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=1000),
    train=TrainConfig(steps=100_000, batch_size=64, ema_decay=0.9995, log_every=100, eval_every=5000),
    workdir="runs/realnvp_cifar10",
)
laptop = replace(
    config,
    model=replace(config.model, width=8, blocks=1),
    train=replace(config.train, steps=40, batch_size=16, log_every=5, eval_every=20),
    workdir="runs/realnvp_cifar10_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
