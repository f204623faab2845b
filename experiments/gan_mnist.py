"""GAN given the class, by projection, with spectral normalisation and hinge loss, on MNIST or Fashion-MNIST, 28x28, 256 levels.

    python -m experiments.gan_mnist                                TFDS's own mnist (extra: tfds); a quarter of an hour on a CPU core
    python -m experiments.gan_mnist --data.name fashion_mnist --workdir runs/gan_fashion_mnist
    python -m experiments.gan_mnist --data.name FOLDER             train.npz and test.npz of your own
    python -m experiments.gan_mnist --laptop --data.name FOLDER

No likelihood: the report gives the Frechet distance of pixel vectors; `jaxgen quality` compares samples in the features of a classifier.
Measured: experiments/results/gan.md.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.experiment import ReportConfig
from jaxgen.models import ConditionalGANConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=ConditionalGANConfig((28, 28, 1), 256, 64, 64, architecture="conv", objective="hinge", spectral=True, num_classes=10),
    data=DataConfig("mnist"),
    optimizer=OptimizerConfig(
        name="adam", schedule="cosine", b1=0.0, clip_norm=None, players=(("generator", 5e-4), ("discriminator", 1e-3))
    ),
    train=TrainConfig(steps=8000, batch_size=64, ema_decay=0.999, log_every=100, eval_every=2000),
    workdir="runs/gan_mnist",
    report=ReportConfig(samples=100),
)
laptop = replace(
    config, model=replace(config.model, hidden=16), train=replace(config.train, steps=100, eval_every=50), workdir="runs/gan_mnist_laptop"
)

if __name__ == "__main__":
    main(config, laptop)
