"""VQ-VAE-2 on MNIST, 28x28, 256 levels, given the class: 7 x 7 and 14 x 14 codes of 32; a bound in bits/dim. Sizes for one CPU core.

    python -m experiments.vqvae2_mnist                      TFDS's own mnist (extra: tfds); the code model, then the priors of its codes
    python -m experiments.vqvae2_mnist --data.name FOLDER   train.npz and test.npz of your own
    python -m experiments.vqvae2_mnist --laptop --data.name FOLDER

Measured numbers and samples: results/vqvae2.md.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import VQVAE2CodesConfig, VQVAE2Config
from jaxgen.models.vqvae2 import LowerPrior, TopPrior
from jaxgen.stages import Stage
from jaxgen.training import OptimizerConfig, TrainConfig

codes = VQVAE2CodesConfig(
    image_shape=(28, 28, 1), levels=256, halvings=(1, 1), codes=32, code_width=16, width=32, blocks=1, likelihood="logistic"
)
config = Experiment(
    model=VQVAE2Config(
        codes=codes,
        num_classes=10,
        top=TopPrior(blocks=2, resnets=1, width=32),
        lower=LowerPrior(layers=4, width=32, head_width=32),
        dropout=0.0,
    ),
    data=DataConfig("mnist"),
    optimizer=OptimizerConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=50, frozen=("codes",)),
    train=TrainConfig(steps=2000, batch_size=32, ema_decay=0.99, log_every=50, eval_every=500),
    stages={
        "codes": Stage(
            optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=50),
            train=TrainConfig(steps=1000, batch_size=32, ema_decay=0.99, log_every=50, eval_every=500),
        )
    },
    workdir="runs/vqvae2_mnist",
)
few = replace(config.stages["codes"], train=replace(config.stages["codes"].train, steps=100, eval_every=50))
small = replace(
    config.model,
    codes=replace(codes, width=8),
    top=TopPrior(blocks=1, resnets=1, width=8),
    lower=LowerPrior(layers=1, width=8, head_width=8),
    dropout=0.0,
)
laptop = replace(
    config, model=small, train=replace(config.train, steps=100, eval_every=50), stages={"codes": few}, workdir="runs/vqvae2_mnist_laptop"
)

if __name__ == "__main__":
    main(config, laptop)
