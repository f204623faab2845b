"""Gated PixelCNN on CIFAR-10, 32x32x3, 256 levels, with the layer count, width and kernel that the paper gives (20 layers, 384, 5x5).

    python -m experiments.gated_pixelcnn_cifar10                                    TFDS's cifar10 (extra: tfds), one command on all hosts
    python -m experiments.gated_pixelcnn_cifar10 --data.name FOLDER                 train.npz, test.npz of your own
    python -m experiments.gated_pixelcnn_cifar10 --laptop --data.name FOLDER        a small model for a CPU

As we remember the paper, it states these sizes for ImageNet (200,000 updates of batch 128 on 32 GPUs, 60 hours) and none for CIFAR-10.
Published: 3.03 bits/dim (van den Oord et al. 2016). Ours at full size: not run (needs an accelerator).
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import GatedPixelCNNConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    # 20 gated layers, the input layer included.
    model=GatedPixelCNNConfig(image_shape=(32, 32, 3), levels=256, layers=19, width=384, kernel=5, head_width=768, dtype="bfloat16"),
    data=DataConfig("cifar10"),
    optimizer=OptimizerConfig(learning_rate=4e-4, schedule="cosine", warmup_steps=2000),
    train=TrainConfig(steps=200_000, batch_size=128, ema_decay=0.9995, log_every=100, eval_every=5000),
    workdir="runs/gated_pixelcnn_cifar10",
)
laptop = replace(
    config,
    model=replace(config.model, layers=2, width=24, kernel=3, head_width=48, dtype="float32"),
    optimizer=replace(config.optimizer, learning_rate=2e-3, warmup_steps=20),
    train=replace(config.train, steps=100, batch_size=16, ema_decay=0.99, log_every=10, eval_every=50),
    workdir="runs/gated_pixelcnn_cifar10_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
