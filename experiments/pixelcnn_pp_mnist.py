"""PixelCNN++ on MNIST with the fixed binarization of Larochelle and Murray (2011): 28x28, 2 levels, nats per image.

    python -m experiments.pixelcnn_pp_mnist                                         TFDS's own binarized_mnist (extra: tfds)
    python -m experiments.pixelcnn_pp_mnist --data.name FOLDER                      train.npz, valid.npz, test.npz of your own
    python -m experiments.pixelcnn_pp_mnist --laptop --data.name FOLDER             a small model, a few minutes on 2 CPU cores

With two levels the mixture is a mixture of Bernoulli variables. The paper has no MNIST; the width is ours. Published on this binarization:
PixelCNN 81.30, Row LSTM 80.54, Diagonal BiLSTM 79.20 nats (van den Oord, Kalchbrenner, Kavukcuoglu 2016). Full size: not run (needs an
accelerator).
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import PixelCNNPPConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=PixelCNNPPConfig(image_shape=(28, 28, 1), levels=2, width=64, mixtures=1),
    data=DataConfig("binarized_mnist"),
    optimizer=OptimizerConfig(learning_rate=1e-3, decay_rate=0.999995, b1=0.95, b2=0.9995),
    train=TrainConfig(steps=60_000, batch_size=128, ema_decay=0.9995, log_every=100, eval_every=2000),
    workdir="runs/pixelcnn_pp_mnist",
)
laptop = replace(
    config,
    model=replace(config.model, width=16, resnets=1, dropout=0.0),
    train=replace(config.train, steps=200, batch_size=32, ema_decay=0.99, log_every=10, eval_every=100),
    workdir="runs/pixelcnn_pp_mnist_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
