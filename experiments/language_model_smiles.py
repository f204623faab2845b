"""Language model on molecules written as SMILES strings, by character.

    python -m experiments.language_model_smiles --data.name FOLDER                               FOLDER has train.smi, valid.smi, test.smi
    python -m experiments.language_model_smiles --data.name FOLDER --model.network lstm --workdir runs/language_model_smiles_lstm
    python -m experiments.language_model_smiles --laptop                                         simple molecules, seconds

Data: 141,040 training strings derived from ZINC and ChEMBL, 24,445 for validation (they choose the step), 5,000 for the test: the last two
are the validation and test files of the split of ZINC's 250,000 molecules by Jin et al. 2018. Named before any training: bits/character on
the test below those of the n-gram rulers, which are fitted on the same training strings; `jaxgen evaluate RUN` prints both. Measured
numbers: experiments/results/molecules.md.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import LanguageModelConfig
from jaxgen.training import OptimizerConfig, TrainConfig

SMILES = tuple("#()+-/12345678=@BCFHINOPS[\\]clnors")
SIMPLE = tuple("#()12=BCFNOSclnors")

config = Experiment(
    model=LanguageModelConfig(length=115, vocabulary=len(SMILES) + 1, symbols=SMILES, width=256),
    data=DataConfig("smiles/"),
    optimizer=OptimizerConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=100),
    train=TrainConfig(steps=3000, batch_size=32, ema_decay=0.99, eval_every=1500),
    workdir="runs/language_model_smiles",
)
laptop = replace(
    config,
    model=LanguageModelConfig(length=37, vocabulary=len(SIMPLE) + 1, symbols=SIMPLE, width=32),
    data=DataConfig("simple_molecules"),
    train=replace(config.train, steps=60, eval_every=30),
    workdir="runs/language_model_smiles_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
