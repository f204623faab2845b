"""Flow matching on scikit-learn's digits, 8x8, 17 levels; bits/dim here is a bound, since the flow has a density of digits plus noise.

    python -m experiments.flow_matching_digits                a few minutes of training on 2 CPU cores
    python -m experiments.flow_matching_digits --laptop       a few seconds of training

The density is by 20 steps of the ODE with Hutchinson's estimate of the trace; `jaxgen evaluate RUN` prints the errors of both.
With --model.num_classes 10 every digit is given its class, and `jaxgen sample RUN --guidance 2` goes further towards it.
Measured: experiments/results/flow_matching.md.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.models import FlowMatchingConfig
from jaxgen.training import OptimizerConfig, TrainConfig

UNET = replace(FlowMatchingConfig.unet, width=16)

config = Experiment(
    model=FlowMatchingConfig(image_shape=(8, 8, 1), levels=17, unet=UNET, density_steps=20),
    optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=100),
    train=TrainConfig(steps=1600, batch_size=64, ema_decay=0.995, log_every=100, eval_every=800),
    workdir="runs/flow_matching_digits",
)
laptop = replace(
    config,
    model=replace(config.model, unet=replace(UNET, width=8, multiples=(1,), attention=()), density_steps=5, sample_steps=10),
    train=replace(config.train, steps=200, eval_every=100),
    workdir="runs/flow_matching_digits_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
