"""PixelSNAIL on MNIST with the fixed binarization of Larochelle and Murray (2011): 28x28, 2 levels, nats per image.

    python -m experiments.pixelsnail_mnist                                          TFDS's own binarized_mnist (extra: tfds)
    python -m experiments.pixelsnail_mnist --data.name FOLDER                       train.npz, valid.npz, test.npz of your own
    python -m experiments.pixelsnail_mnist --laptop --data.name FOLDER              a small model, a few minutes on 2 CPU cores

Two levels need no mixture: the output is a Bernoulli variable. The paper has no MNIST; the sizes are those of a public implementation that
reports 78.61 nats on another, dynamic binarization. Published on this one: PixelCNN 81.30, Row LSTM 80.54, Diagonal BiLSTM 79.20 nats (van
den Oord, Kalchbrenner, Kavukcuoglu 2016). Full size: not run (needs an accelerator).
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import PixelSNAILConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=PixelSNAILConfig(image_shape=(28, 28, 1), levels=2, blocks=8, width=64, resnets=2, key=4, value=32, dropout=0.3),
    data=DataConfig("binarized_mnist"),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=1000),
    train=TrainConfig(steps=60_000, batch_size=128, ema_decay=0.9995, log_every=100, eval_every=2000),
    workdir="runs/pixelsnail_mnist",
)
laptop = replace(
    config,
    model=replace(config.model, blocks=1, width=16, resnets=1, value=8, light=True, dropout=0.0),
    optimizer=replace(config.optimizer, learning_rate=3e-3, warmup_steps=50),
    train=replace(config.train, steps=200, batch_size=16, ema_decay=0.99, log_every=10, eval_every=100),
    workdir="runs/pixelsnail_mnist_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
