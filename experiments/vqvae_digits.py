"""VQ-VAE on scikit-learn's digits, 8x8, 17 levels: 4 x 4 places with one of 32 codes each; a bound in bits/dim, all codes equally likely.

    python -m experiments.vqvae_digits                two minutes of training on 2 CPU cores
    python -m experiments.vqvae_digits --laptop       a few seconds

The codes cost 16 log2(32) / 64 = 1.25 bits/dim under the uniform prior. A learned prior costs less, and its samples are better: those of
this script are drawn with all codes equally likely.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.models import VQVAEConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=VQVAEConfig(image_shape=(8, 8, 1), levels=17, codes=32, code_width=16, halvings=1, width=64, blocks=2),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=50),
    train=TrainConfig(steps=3000, batch_size=64, ema_decay=0.999, log_every=50, eval_every=300),
    workdir="runs/vqvae_digits",
)
laptop = replace(config, train=replace(config.train, steps=200, eval_every=100), workdir="runs/vqvae_digits_laptop")

if __name__ == "__main__":
    main(config, laptop)
