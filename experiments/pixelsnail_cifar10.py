"""PixelSNAIL on CIFAR-10, 32x32x3, 256 levels: 12 blocks of 4 resnets, 256 feature maps, dropout 0.5.

    python -m experiments.pixelsnail_cifar10                                        TFDS's cifar10 (extra: tfds), one command on all hosts
    python -m experiments.pixelsnail_cifar10 --data.name FOLDER                     train.npz, test.npz of your own
    python -m experiments.pixelsnail_cifar10 --laptop --data.name FOLDER            a small model for a CPU

The authors' code: 256 feature maps, batch 8 a GPU, 10 logistics, Polyak average 0.9995. The numbers of blocks and resnets, keys of size 16
and values of 128 are as we remember the paper, the optimizer is that of PixelCNN++. Published: 2.85 bits/dim (Chen et al. 2017). Ours at
full size: not run (needs an accelerator).
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import PixelSNAILConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=PixelSNAILConfig(image_shape=(32, 32, 3), levels=256, dtype="bfloat16"),
    data=DataConfig("cifar10"),
    optimizer=OptimizerConfig(learning_rate=1e-3, decay_rate=0.999995, b1=0.95, b2=0.9995),
    train=TrainConfig(steps=400_000, batch_size=64, ema_decay=0.9995, log_every=100, eval_every=5000),
    workdir="runs/pixelsnail_cifar10",
)
laptop = replace(
    config,
    model=replace(config.model, blocks=1, width=16, resnets=1, key=4, value=8, mixtures=5, dropout=0.0, dtype="float32"),
    train=replace(config.train, steps=60, batch_size=8, ema_decay=0.99, log_every=10, eval_every=30),
    workdir="runs/pixelsnail_cifar10_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
