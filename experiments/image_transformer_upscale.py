"""Super-resolution on CIFAR-10 with the Image Transformer: 8x8 to 32x32, three channels, 256 levels.

    python -m experiments.image_transformer_upscale                                 TFDS's cifar10 (extra: tfds), one command on all hosts
    python -m experiments.image_transformer_upscale --data.name FOLDER              train.npz, test.npz of your own
    python -m experiments.image_transformer_upscale --laptop --data.name FOLDER     a small model for a CPU

Each small image is the box filter of the true one, and bits/dim are those of the true image given the small one; compare with the same
model without `low_resolution` (experiments/image_transformer_cifar10.py). `jaxgen upscale RUN` draws large images for the small ones of
the test set. The paper (Parmar et al. 2018) upscales CelebA and CIFAR-10 and gives no bits/dim. Full size: not run (needs an
accelerator).
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import ImageTransformerConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=ImageTransformerConfig(
        image_shape=(32, 32, 3),
        levels=256,
        low_resolution=(8, 8, 3),
        block=(256,),
        memory=(256,),
        dtype="bfloat16",
    ),
    data=DataConfig("cifar10"),
    optimizer=OptimizerConfig(learning_rate=3e-4, schedule="cosine", warmup_steps=4000),
    train=TrainConfig(steps=400_000, batch_size=32, ema_decay=0.9995, log_every=100, eval_every=5000),
    workdir="runs/image_transformer_upscale",
)
laptop = replace(
    config,
    model=replace(
        config.model,
        layers=2,
        encoder_layers=1,
        width=32,
        heads=2,
        hidden=64,
        head="mixture",
        mixtures=5,
        dropout=0.0,
        dtype="float32",
    ),
    optimizer=replace(config.optimizer, learning_rate=2e-3, warmup_steps=20),
    train=replace(config.train, steps=100, batch_size=16, ema_decay=0.99, log_every=10, eval_every=50),
    workdir="runs/image_transformer_upscale_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
