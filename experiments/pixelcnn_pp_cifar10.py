"""PixelCNN++ on CIFAR-10, 32x32x3, 256 levels, with the sizes of the paper: 192 feature maps, 3 resolutions of 5 resnets, dropout 0.5.

    python -m experiments.pixelcnn_pp_cifar10                                       TFDS's cifar10 (extra: tfds), one command on all hosts
    python -m experiments.pixelcnn_pp_cifar10 --data.name FOLDER                    train.npz, test.npz of your own
    python -m experiments.pixelcnn_pp_cifar10 --laptop --data.name FOLDER           a small model for a CPU

The authors' code: Adam 1e-3, b1 0.95, b2 0.9995, decay 0.999995 a step, Polyak average 0.9995, batch 8 x 16; its default width is 160.
Published: 2.92 bits/dim (Salimans et al. 2017; by the authors' code 3.0 after 10 hours, 2.92 after about 5 days on 8 GPUs).
Ours at full size: not run (needs an accelerator).
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import PixelCNNPPConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=PixelCNNPPConfig(image_shape=(32, 32, 3), levels=256, width=192, dtype="bfloat16"),
    data=DataConfig("cifar10"),
    optimizer=OptimizerConfig(learning_rate=1e-3, decay_rate=0.999995, b1=0.95, b2=0.9995),
    train=TrainConfig(steps=400_000, batch_size=128, ema_decay=0.9995, log_every=100, eval_every=5000),
    workdir="runs/pixelcnn_pp_cifar10",
)
laptop = replace(
    config,
    model=replace(config.model, width=16, resnets=1, mixtures=5, dropout=0.0, dtype="float32"),
    train=replace(config.train, steps=100, batch_size=16, ema_decay=0.99, log_every=10, eval_every=50),
    workdir="runs/pixelcnn_pp_cifar10_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
