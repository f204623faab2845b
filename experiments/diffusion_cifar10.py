"""Denoising diffusion (DDPM) on CIFAR-10, 32x32x3, 256 levels, with the sizes of the paper: a U-Net of 35.7 million parameters, T = 1000.

    python -m experiments.diffusion_cifar10                                     TFDS's cifar10 (extra: tfds), one command on all hosts
    python -m experiments.diffusion_cifar10 --data.name FOLDER                  train.npz, test.npz of your own
    python -m experiments.diffusion_cifar10 --laptop --data.name FOLDER         a small model for a CPU
    ... --model.schedule cosine --model.variances learned                       improved DDPM (Nichol and Dhariwal 2021)
    ... --model.schedule learned --model.weights bound --model.predicts v --model.clip False     continuous time, trained by its bound (VDM)

The paper: Adam 2e-4 after a warm-up of 5000 steps, gradients clipped at 1, batch 128, average 0.9999, dropout 0.1, random mirror images.
Published: <= 3.75 bits/dim for this loss (Ho et al. 2020), for models trained by the bound 2.65 (Kingma et al. 2021).
Ours at full size: not run (needs an accelerator).
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import DiffusionConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=DiffusionConfig(
        image_shape=(32, 32, 3), levels=256, unet=DiffusionConfig.unet.cifar10(), sample_steps=1000, clip=True, dtype="bfloat16"
    ),
    data=DataConfig("cifar10", augment=("flip",)),
    optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=5000),
    train=TrainConfig(steps=800_000, batch_size=128, ema_decay=0.9999, log_every=100, eval_every=20_000),
    workdir="runs/diffusion_cifar10",
)
laptop = replace(
    config,
    model=replace(
        config.model, unet=replace(DiffusionConfig.unet, width=16, multiples=(1, 2, 2)), terms=2, sample_steps=10, dtype="float32"
    ),
    optimizer=replace(config.optimizer, learning_rate=1e-3, warmup_steps=10),
    train=replace(config.train, steps=100, batch_size=16, ema_decay=0.95, log_every=10, eval_every=50),
    workdir="runs/diffusion_cifar10_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
