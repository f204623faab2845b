"""A GRU with a stack beside a plain GRU of as many parameters, on molecules as strings (SMILES); then the first is reinforced for a logP.

    python -m experiments.stack_gru_smiles --data FOLDER                trains what runs/stack_gru_smiles lacks, prints the table
    python -m experiments.stack_gru_smiles --data FOLDER --metrics      also numbers of their molecules; needs pip install "jaxgen[chem]"
    python -m experiments.stack_gru_smiles --data FOLDER --reinforce    the stack of seed 0 is reinforced; needs pip install "jaxgen[chem]"
    python -m experiments.stack_gru_smiles --data FOLDER --reinforce --start-from RUN      any run of strings, instead of that one
    python -m experiments.stack_gru_smiles --laptop [--metrics] [--reinforce]     simple molecules of the library, few steps

FOLDER has train.smi, valid.smi and test.smi, one molecule a line. Strings of more than 63 characters are left out and counted. The reward
is 1 for a molecule with a logP in [1, 4], else 0, as for a string that is no molecule. The reinforced model is a run again, in
runs/stack_gru_smiles/reinforced: `jaxgen sample` draws from it. Results: experiments/results/molecules.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import optax
import tyro

import jaxgen
from experiments.counting_languages import plain_of_as_many
from jaxgen import evaluation, experiment, training
from jaxgen.data import DataConfig, Dataset, load, text
from jaxgen.data.features import Tokens
from jaxgen.experiment import Experiment
from jaxgen.measures import molecules
from jaxgen.measures.metrics import OF_MOLECULES
from jaxgen.measures.n_gram_samples import n_gram_samples
from jaxgen.models import StackGRUConfig, count_parameters
from jaxgen.reinforcement import ReinforcementConfig, reinforce
from jaxgen.runs import checkpoint
from jaxgen.runs.report import ReportConfig
from jaxgen.training import OptimizerConfig, TrainConfig

SEEDS = (0, 1, 2)
LENGTH, VALIDATED = 64, 2000
OPTIMIZER = OptimizerConfig(learning_rate=4e-3, name="adam", schedule="cosine", warmup_steps=50)
TRAIN = TrainConfig(1000, 64, ema_decay=0.98, log_every=100, eval_every=500)
REINFORCEMENT = ReinforcementConfig(150, 128, 0.0, OptimizerConfig(learning_rate=3e-4, name="adam"))
Sets = dict[str, Dataset]


@dataclass(frozen=True)
class Options:
    """The command line."""

    data: str = ""  # folder with train.smi, valid.smi and test.smi
    laptop: bool = False  # simple molecules of the library, one seed, small models, few steps
    metrics: bool = False  # compare the molecules of all trained models with the test strings, too
    reinforce: bool = False  # reinforce a trained model instead of training the two
    start_from: str = ""  # run that is reinforced; default: the stack of seed 0
    penalty: float = 0.0  # reward taken off for each nat of drift
    out: str = "runs/stack_gru_smiles"  # folder of the runs


def bundled() -> Sets:
    """The simple molecules of the library."""
    return {split: load("simple_molecules", split) for split in ("train", "validation", "test")}


def from_files(folder: str) -> Sets:
    """The three parts of a folder, by the characters of the first; says how many strings are left out."""
    files = {"train": "train.smi", "validation": "valid.smi", "test": "test.smi"}
    parts = {split: text.read_lines(Path(folder) / file) for split, file in files.items()}
    symbols = tuple(sorted(set("".join(parts["train"]))))
    sets = {}
    for name, strings in parts.items():
        kept = [string for string in strings if len(string) < LENGTH and set(string) <= set(symbols)]
        print(f"{name}: {len(kept)} of {len(strings)} strings, of at most {LENGTH - 1} characters out of {len(symbols)}")
        sets[name] = dataset_of(kept, symbols, LENGTH, name)
    few = np.random.default_rng(0).permutation(len(sets["validation"]))[:VALIDATED]
    sets["validation"] = Dataset.from_columns({"tokens": sets["validation"].images[few]}, sets["validation"].features, split="validation")
    return sets


def dataset_of(strings: Sequence[str], symbols: tuple[str, ...], length: int, split: str) -> Dataset:
    """Strings as a data set."""
    feature = Tokens(length, len(symbols) + 1, symbols)
    return Dataset.from_columns({"tokens": text.encode(strings, symbols, length)}, {"tokens": feature}, split=split)


def trained(model, sets: Sets, train: TrainConfig, workdir: str):
    """The run of a model, gone on with or finished: its averaged weights at the best validation."""
    run = Experiment(model, DataConfig("arrays"), OPTIMIZER, train, workdir, ReportConfig(samples=0))
    if code := experiment.train(run, sets=(sets["train"], sets["validation"])):
        raise SystemExit(code)
    return jaxgen.load(workdir)


def compare(options: Options, sets: Sets) -> None:
    """Trains both on every seed and prints their bits per character on the test strings."""
    sizes = StackGRUConfig.sizes_from(sets["train"].features)
    model = StackGRUConfig(**sizes, width=16, stack_width=4, stack_depth=8) if options.laptop else StackGRUConfig(**sizes, width=128)
    train = replace(TRAIN, steps=30, eval_every=30) if options.laptop else TRAIN
    print("| model | parameters | seed | test bits/character |\n|---|---|---|---|")
    for name, config in (("stack", model), ("plain", plain_of_as_many(model))):
        values = []
        for seed in SEEDS[:1] if options.laptop else SEEDS:
            found = trained(config, sets, replace(train, seed=seed), f"{options.out}/{name}_{seed}")
            told = evaluation.evaluate(found, sets["test"], batch_size=250)
            values.append(told["bits_per_character"])
            print(f"| {name} | {count_parameters(found)} | {seed} | {values[-1]:.4f} +- {told['standard_error']:.4f} |", flush=True)
        if len(values) > 1:
            print(f"| {name} | | mean of {len(values)} | {np.mean(values):.4f} +- {np.std(values, ddof=1) / len(values) ** 0.5:.4f} |")


def in_range(strings: Sequence[str]) -> np.ndarray:
    """The reward: 1 for a molecule with a logP in [1, 4], else 0, as for a string that is no molecule."""
    found = [molecules.parse(string) for string in strings]
    logp = molecules.rdkit().properties["logp"]
    return np.array([one is not None and 1 <= logp(one) <= 4 for one in found], np.float32)


def drawn(model, n: int) -> tuple[np.ndarray, list[str]]:
    """n strings of a model as tokens [n, L] and as text, from the same keys for every model."""
    feature, draw = model.config.features["tokens"], jax.jit(lambda model, key: model.sample(key, 500))
    tokens = np.concatenate([draw(model, jax.random.key(start)) for start in range(0, n, 500)])[:n]
    return tokens, [feature.text(row) for row in tokens]


def print_metrics(options: Options, sets: Sets, n: int) -> None:
    """Prints the numbers of docs/molecules.md of n strings each: of all trained models, of a 6-gram and of the training strings."""
    feature, train = sets["train"].features["tokens"], sets["train"].images
    spell = lambda rows: [feature.text(row) for row in rows]  # noqa: E731
    reference = molecules.MoleculeSet(spell(sets["test"].images[:n]))
    known = set(map(molecules.canonical, spell(train))) - {None}
    seeds = SEEDS[:1] if options.laptop else SEEDS
    columns = {f"{name}, seed {seed}": f"{options.out}/{name}_{seed}" for seed in seeds for name in ("stack", "plain")}
    columns = {name: drawn(jaxgen.load(run), n)[1] for name, run in columns.items()}
    columns["6-gram"] = spell(n_gram_samples(train, n, 6, np.random.default_rng(0)))
    columns["training strings"] = spell(train[np.random.default_rng(0).permutation(len(train))[:n]])
    found = {name: molecules.compare(molecules.MoleculeSet(strings), reference, known) for name, strings in columns.items()}
    print(f"| number | {' | '.join(found)} |\n{'|---' * (len(found) + 1)}|")
    for name, metric in OF_MOLECULES.items():
        if not any(name in numbers for numbers in found.values()):
            continue  # of more strings than there are
        cells = []
        for numbers in found.values():
            error = numbers.get(f"{name}_standard_error", np.nan)
            cells.append(f"{numbers.get(name, np.nan):{metric.printed}}" + (f" +- {error:{metric.printed}}" if error > 0 else ""))
        print(f"| {name} | {' | '.join(cells)} |")


def share(values) -> str:
    """The mean of numbers with its standard error."""
    return f"{np.mean(values):.3f} +- {np.std(values) / len(values) ** 0.5:.3f}"


def describe(name: str, model, prior, n: int) -> None:
    """Prints a row of the table of reinforcement, from n strings."""
    tokens, strings = drawn(model, n)
    found = molecules.MoleculeSet(strings)
    ratio = jax.jit(lambda model, prior, tokens: model.log_prob(tokens) - prior.log_prob(tokens))
    drift = np.concatenate([ratio(model, prior, tokens[start : start + 500]) for start in range(0, n, 500)])
    valid = np.arange(n) < len(found.molecules)
    distinct, diversity = len(set(found.canonical)) / max(1, valid.sum()), molecules.internal_diversity(found.fingerprints)
    print(f"| {name} | {share(in_range(strings))} | {share(valid)} | {share(drift)} | {distinct:.3f} | {diversity:.3f} |", flush=True)


def improve(options: Options) -> None:
    """Reinforces a run, prints how it goes and a row before and after, and writes the result as a run."""
    run = options.start_from or f"{options.out}/stack_0"
    prior, settings = jaxgen.load(run), replace(REINFORCEMENT, penalty=options.penalty)
    n, settings = (500, replace(settings, steps=5)) if options.laptop else (4000, settings)

    def report(step: int, row: dict) -> None:
        if step % 10 == 0 or step == settings.steps - 1:
            told = [f"{name} {row[name]:.3f} +- {row[f'{name}_standard_error']:.3f}" for name in ("reward", "drift")]
            print(f"step {step}  {'  '.join(told)}  distinct {row['distinct']:.3f}", flush=True)

    model, _ = reinforce(prior, in_range, jax.random.key(0), settings, report)
    print("| model | logP in [1, 4] | valid | drift, nats a string | distinct of the valid | internal diversity |")
    print("|---|---|---|---|---|---|")
    describe("before", prior, prior, n)
    describe(f"after {settings.steps} steps, penalty {settings.penalty:g}", model, prior, n)
    saved = checkpoint.read_config(run) | {"workdir": f"{options.out}/reinforced"}
    with checkpoint.Checkpointer(saved["workdir"], saved, restart=True) as checkpoints:
        checkpoints.save(settings.steps, training.new_state(model, optax.identity()))


def main(options: Options) -> None:
    if options.reinforce and options.start_from:
        improve(options)
        return
    if not options.laptop and not options.data:
        raise SystemExit("--data: wanted a folder with train.smi, valid.smi and test.smi, got nothing; --laptop needs none")
    options = replace(options, out=f"{options.out}_laptop") if options.laptop else options
    sets = bundled() if options.laptop else from_files(options.data)
    compare(options, sets)
    if options.metrics:
        print_metrics(options, sets, 200 if options.laptop else 2000)
    if options.reinforce:
        improve(options)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
