"""Generative adversarial network on the ring of eight narrow Gaussians: does the generator find all modes?

    python -m experiments.gan_ring                  a minute of training on a CPU core
    python -m experiments.gan_ring --laptop         a few seconds

The paper's own game (minimax) with the penalty R1, without which some seeds lose modes: gan.md compares five objectives.
No likelihood: the report gives the modes covered (of 8), the share of samples within 3 sigma of a mode, and a Frechet distance of points.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import GANConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=GANConfig((2,), 0, latent=2, hidden=128, depth=3, objective="minimax", penalty="r1", penalty_weight=0.1),
    data=DataConfig("ring"),
    optimizer=OptimizerConfig(
        name="adam", schedule="cosine", b1=0.0, clip_norm=None, players=(("generator", 1e-3), ("discriminator", 1e-3))
    ),
    train=TrainConfig(steps=8000, batch_size=256, ema_decay=0.99, log_every=100, eval_every=1000),
    workdir="runs/gan_ring",
)
laptop = replace(config, train=replace(config.train, steps=300, eval_every=100), workdir="runs/gan_ring_laptop")

if __name__ == "__main__":
    main(config, laptop)
