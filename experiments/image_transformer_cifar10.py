"""Image Transformer on CIFAR-10, 32x32x3, 256 levels, with the paper's sizes: 12 layers, 4 heads, d 512, softmax, 1-D blocks of 256.

    python -m experiments.image_transformer_cifar10                                 TFDS's cifar10 (extra: tfds), one command on all hosts
    python -m experiments.image_transformer_cifar10 --data.name FOLDER              train.npz, test.npz of your own
    python -m experiments.image_transformer_cifar10 --laptop --data.name FOLDER     a small model for a CPU
    ... --model.head mixture --model.heads 8 --model.width 256 --model.hidden 512 --model.dropout 0.1        the paper's other model

Published: 2.90 bits/dim with either head (Parmar et al. 2018); users report that they could not repeat it with the published
settings. Ours at full size: not run (needs an accelerator).
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import ImageTransformerConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=ImageTransformerConfig(image_shape=(32, 32, 3), levels=256, block=(256,), memory=(256,), dtype="bfloat16"),
    data=DataConfig("cifar10"),
    optimizer=OptimizerConfig(learning_rate=3e-4, schedule="cosine", warmup_steps=4000),
    train=TrainConfig(steps=400_000, batch_size=32, ema_decay=0.9995, log_every=100, eval_every=5000),
    workdir="runs/image_transformer_cifar10",
)
laptop = replace(
    config,
    model=replace(config.model, layers=2, width=32, heads=2, hidden=64, head="mixture", mixtures=5, dropout=0.0, dtype="float32"),
    optimizer=replace(config.optimizer, learning_rate=2e-3, warmup_steps=20),
    train=replace(config.train, steps=100, batch_size=16, ema_decay=0.99, log_every=10, eval_every=50),
    workdir="runs/image_transformer_cifar10_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
