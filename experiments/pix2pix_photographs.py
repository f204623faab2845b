"""pix2pix: grey patches of photographs made colour, 32x32, 256 levels; trained on one photograph, tested on another one.

    python -m experiments.pix2pix_photographs                                  minutes of training on 2 CPU cores
    python -m experiments.pix2pix_photographs --model.adversarial 0 --workdir runs/pix2pix_photographs_l1      trained by |y - y'| alone
    python -m experiments.pix2pix_photographs --data.name FOLDER               CIFAR-10: FOLDER has train.npz and test.npz
    python -m experiments.pix2pix_photographs --laptop                         a small model, seconds

The data are patches of the two photographs that scikit-learn brings: training and validation on a temple, the test on a flower. Named
before any training: the absolute error of the outputs, and the overlap of the histograms of their colours with those of the true images
(Isola et al. 2017, section 4.2), both beside a ridge regression and the model trained by |y - y'| alone. `python -m
experiments.compare_pairs` prints them.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import Pix2PixConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=Pix2PixConfig((32, 32, 3), 256, input_channels=1, input_levels=256),
    data=DataConfig("photographs", pairs="grey", augment=("flip",)),
    optimizer=OptimizerConfig(name="adam", learning_rate=2e-4, b1=0.5, clip_norm=None),
    train=TrainConfig(steps=3000, batch_size=16, ema_decay=0.999, log_every=50, eval_every=500),
    workdir="runs/pix2pix_photographs",
)
laptop = replace(
    config,
    model=replace(config.model, width=8, halvings=3),
    train=replace(config.train, steps=60, log_every=10, eval_every=30),
    workdir="runs/pix2pix_photographs_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
