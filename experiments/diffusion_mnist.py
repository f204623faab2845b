"""Denoising diffusion with a cosine schedule (improved DDPM) on MNIST or Fashion-MNIST, 28x28, 256 levels, given the class.

    python -m experiments.diffusion_mnist                                TFDS's own mnist (extra: tfds); half an hour on a CPU core
    python -m experiments.diffusion_mnist --data.name fashion_mnist --workdir runs/diffusion_fashion_mnist
    python -m experiments.diffusion_mnist --data.name FOLDER             train.npz and test.npz of your own
    python -m experiments.diffusion_mnist --laptop --data.name FOLDER

The loss is that of min-SNR, for samples and not for the bound. `jaxgen sample RUN --guidance 1` and `jaxgen complete RUN --keep outside`
draw. To train the bound: --model.schedule learned --model.weights bound --model.clip False.
Measured: experiments/results/diffusion.md.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import DiffusionConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=DiffusionConfig(
        image_shape=(28, 28, 1),
        levels=256,
        num_classes=10,
        unet=replace(DiffusionConfig.unet, width=16, multiples=(1, 2, 4), attention=(2,)),
        schedule="cosine",
        predicts="v",
        weights="min_snr",
        terms=1,
        sampler="multistep",
        sample_steps=50,
        clip=True,
    ),
    data=DataConfig("mnist"),
    optimizer=OptimizerConfig(learning_rate=1.5e-3, schedule="cosine", warmup_steps=100),
    train=TrainConfig(steps=3000, batch_size=16, ema_decay=0.998, log_every=100, eval_every=1500),
    workdir="runs/diffusion_mnist",
)
laptop = replace(
    config,
    model=replace(config.model, unet=replace(DiffusionConfig.unet, width=8, multiples=(1, 2), attention=()), terms=2, sample_steps=10),
    train=replace(config.train, steps=100, eval_every=50),
    workdir="runs/diffusion_mnist_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
