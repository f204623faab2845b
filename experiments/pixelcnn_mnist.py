"""PixelCNN on MNIST with the fixed binarization of Larochelle and Murray (2011): 28x28, 2 levels, nats per image;
15 residual blocks of h = 32, head 32, with Muon and weight decay.

    python -m experiments.pixelcnn_mnist                                      TFDS's own binarized_mnist (extra: tfds)
    python -m experiments.pixelcnn_mnist --data.name FOLDER                   train.npz, valid.npz, test.npz of your own
    python -m experiments.pixelcnn_mnist --laptop --data.name FOLDER          a small model, a few minutes on 2 CPU cores

Published on this binarization: 81.30 nats (van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks"). Measured:
82.51 +- 0.2 after 14,000 steps and, gone on with twice, 20,000 and 46,000 more: 7.5 core hours, the second half on two CPU cores, where
--train.accumulate 4 is faster (experiments/results/mnist.md).
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import PixelCNNConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=PixelCNNConfig(image_shape=(28, 28, 1), levels=2, layers=15, width=32, head_width=32),
    data=DataConfig("binarized_mnist"),
    optimizer=OptimizerConfig(name="muon", learning_rate=8e-3, schedule="cosine", warmup_steps=800, weight_decay=0.2),
    train=TrainConfig(steps=80_000, batch_size=16, ema_decay=0.998, log_every=50, eval_every=2000),
    workdir="runs/pixelcnn_mnist",
)
laptop = replace(
    config,
    model=replace(config.model, layers=4, width=8, head_width=16),
    optimizer=OptimizerConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=50),
    train=replace(config.train, steps=400, batch_size=32, ema_decay=0.99, log_every=10, eval_every=200),
    workdir="runs/pixelcnn_mnist_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
