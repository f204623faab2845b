"""Auto-encoder without an encoder on scikit-learn's digits, 8x8, 17 levels: codes by 20 steps of Langevin dynamics through the decoder.

    python -m experiments.implicit_autoencoder_digits                                                   two minutes on 2 CPU cores
    python -m experiments.implicit_autoencoder_digits --model.temperature 0 --model.rate 0.001          codes by gradient descent
    python -m experiments.implicit_autoencoder_digits --model.implicit decoder --model.rate 0.004 --model.temperature 0.2
                                                                   an encoder trained by REINFORCE, images by a search; 15 minutes
    python -m experiments.implicit_autoencoder_digits --laptop                                          a few seconds

The error is the mean squared error of pixels scaled to [0, 1]. `python -m experiments.compare_inversion` sets all three beside an
auto-encoder with the same decoder.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.models import ImplicitAutoencoderConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=ImplicitAutoencoderConfig(image_shape=(8, 8, 1), levels=17, latent=16, hidden=(256, 256)),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=50),
    train=TrainConfig(steps=3000, batch_size=64, ema_decay=0.999, log_every=50, eval_every=300),
    workdir="runs/implicit_autoencoder_digits",
)
laptop = replace(config, train=replace(config.train, steps=200, eval_every=100), workdir="runs/implicit_autoencoder_digits_laptop")

if __name__ == "__main__":
    main(config, laptop)
