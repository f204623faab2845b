"""VQ-VAE-2 on scikit-learn's digits, 8x8, 17 levels, given the class: 2 x 2 and 4 x 4 codes of 32; a bound in bits/dim.

    python -m experiments.vqvae2_digits               the code model, then the priors of its codes
    python -m experiments.vqvae2_digits --laptop      a few seconds

The code model is a run of its own, in runs/vqvae2_digits/codes; its bound has all codes equally likely. Measured numbers:
results/vqvae2.md.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.models import VQVAE2CodesConfig, VQVAE2Config
from jaxgen.models.vqvae2 import LowerPrior, TopPrior
from jaxgen.stages import Stage
from jaxgen.training import OptimizerConfig, TrainConfig

codes = VQVAE2CodesConfig(image_shape=(8, 8, 1), levels=17, halvings=(1, 1), codes=32, code_width=16, width=32, blocks=1)
config = Experiment(
    model=VQVAE2Config(
        codes=codes,
        num_classes=10,
        top=TopPrior(blocks=1, resnets=1, width=32),
        lower=LowerPrior(layers=3, width=32, head_width=32),
        dropout=0.2,
    ),
    optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=50, frozen=("codes",)),
    train=TrainConfig(steps=1500, batch_size=64, ema_decay=0.99, log_every=50, eval_every=150),
    stages={
        "codes": Stage(
            optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=50),
            train=TrainConfig(steps=2000, batch_size=64, ema_decay=0.99, log_every=50, eval_every=200),
        )
    },
    workdir="runs/vqvae2_digits",
)
few = replace(config.stages["codes"], train=replace(config.stages["codes"].train, steps=200, eval_every=100))
small = replace(
    config.model,
    codes=replace(codes, width=8),
    top=TopPrior(blocks=1, resnets=1, width=8),
    lower=LowerPrior(layers=1, width=8, head_width=8),
    dropout=0.0,
)
laptop = replace(
    config, model=small, train=replace(config.train, steps=200, eval_every=100), stages={"codes": few}, workdir="runs/vqvae2_digits_laptop"
)

if __name__ == "__main__":
    main(config, laptop)
