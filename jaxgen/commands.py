"""The commands that work on a run, one frozen dataclass each: its fields are the options, its checks are in `__post_init__`.

    jaxgen sample runs/x --n 16   ->   Sample(run="runs/x", n=16)

run_commands.py has the functions that carry them out. This file imports no jax, so that help and mistyped options answer at once.
"""

import dataclasses
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from jaxgen import config
from jaxgen.errors import ConfigError, JaxgenError
from jaxgen.processes import interruption
from jaxgen.processes.printing import output_code, say

RUN = (tyro.conf.Positional, tyro.conf.arg(metavar="RUN"))
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Show:
    """Configuration, parameters, checkpoints and their validation metrics."""

    run: Annotated[str, *RUN]
    """run directory, local or gs://"""
    step: int | None = None
    """checkpoint; None: the best in validation, else the newest"""

    def __post_init__(self):
        _check_least(self, "step")
        if not 0 <= (seed := getattr(self, "seed", 0)) < 2**32:
            raise ConfigError("--seed", "an integer in 0..2**32-1", seed)


@dataclass(frozen=True)
class _ReadsData(Show):
    """The options of all commands that read the data of the run."""

    _: dataclasses.KW_ONLY
    data: str | None = None
    """path of the data, or TFDS's folder of prepared sets, if they have moved"""
    allow_data_change: bool = False
    """go on, with a warning, where the data are not those that the run was trained on"""


@dataclass(frozen=True)
class Evaluate(_ReadsData):
    """The metric of a split with its standard error, beside the rulers."""

    split: Split = "test"
    """which part of the data set"""
    batch_size: int | None = None
    """None: as in training; it changes speed and memory, not the result"""
    samples: int = 1
    """draws per image of a bound; k of the importance-weighted bound"""
    bound: Literal["elbo", "importance"] = "elbo"
    """which lower bound, where the model has no exact likelihood"""

    def __post_init__(self):
        super().__post_init__()
        _check_least(self, "batch_size", "samples")


@dataclass(frozen=True)
class Quality(_ReadsData):
    """Samples beside real images in the features of a classifier, or beside real points: distances, precision and recall, copies, and more,
    with the same of real images. Strings are compared as molecules in SMILES: validity, novelty, diversity, and more; it needs rdkit."""

    features: str = ""
    """run directory of the classifier whose features are compared; none for a model of points, whose coordinates are, and for strings"""
    layer: str | None = None
    """layer of the classifier: hidden1, ..., logits; None: the last hidden one"""
    split: Split = "test"
    """which part of the data set"""
    n: int | None = None
    """how many samples and images are compared; None: as many as the split has"""
    k: int = 3
    """neighbours of precision and recall"""
    batch_size: int | None = None
    """None: as in training; it changes speed and memory, not the result"""
    seed: int = 0
    """the same seed draws the same samples"""

    def __post_init__(self):
        super().__post_init__()
        _check_least(self, "n", "k", "batch_size")


@dataclass(frozen=True)
class _Pictures(_ReadsData):
    """The options of all commands that draw."""

    n: int = 64
    """how many images, points or strings are drawn"""
    label: str | int | None = None
    """class by its name or number, for class-conditional models; None: each in turn, or the image's own"""
    temperature: float = 1.0
    """below 1 sharpens"""
    sampler: str | None = None
    """diffusion models: ancestral, ddim, euler, heun, midpoint, multistep, euler_maruyama; None: the model's own"""
    steps: int | None = None
    """diffusion models: steps of the sampler; None: the model's own number"""
    guidance: float | None = None
    """class-conditional diffusion models: how far samples go beyond the estimate given the class; None: the model's own"""
    top_k: int | None = None
    """models of strings: only the k likeliest tokens of each place are drawn; None: all"""
    top_p: float | None = None
    """models of strings: only the fewest likeliest tokens whose probabilities sum to p or more are drawn; None: all"""
    seed: int = 0
    """the same seed draws the same images"""
    out: str | None = None
    """the PNG file; None: a name for each command, in RUN"""

    def __post_init__(self):
        super().__post_init__()
        _check_least(self, "n", "steps", "top_k")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError("--top_p", "a number above 0, at most 1", self.top_p)


@dataclass(frozen=True)
class Sample(_Pictures):
    """A PNG grid of samples, and images per second; a model that is given vectors draws for those of the test images."""

    to: str | int | None = None
    """with --label: every row of the grid goes from that class to this one, mixing the two"""
    method: Literal["cached", "naive", "fixed_point"] | None = None
    """autoregressive models: in float32 all give the same images; None: cached"""
    truncation: float | None = None
    """GANs: no number of the noise is farther from 0 than this; samples are more typical, and more alike; None: no limit"""
    molecules: bool = False
    """strings that are molecules in SMILES: also a PNG grid of their drawings, what is no molecule crossed out; it needs rdkit"""


@dataclass(frozen=True)
class Complete(_Pictures):
    """Images of a split completed from a given part, the given pixels outlined; a series continued from where the split begins; strings
    that go on from a given beginning."""

    split: Split = "test"
    """which part of the data set"""
    keep: Literal["top", "bottom", "left", "right", "outside"] = "top"
    """the pixels that are given, of images"""
    start: str | None = None
    """models of strings: the beginning of all of them"""


@dataclass(frozen=True)
class Upscale(_Pictures):
    """Images of a split drawn from their small ones, which are shown enlarged and outlined."""

    split: Split = "test"
    """which part of the data set"""

    def __post_init__(self):
        super().__post_init__()
        if self.n < 2:
            raise ConfigError("--n", "2 or more: a small image, and then draws from it", self.n)


@dataclass(frozen=True)
class _OfCodes(_ReadsData):
    """The options of the commands that draw from the examples of a split."""

    split: Split = "test"
    """which part of the data set"""
    out: str | None = None
    """the PNG file; None: a name for each command, in RUN"""


@dataclass(frozen=True)
class Reconstruct(_OfCodes):
    """Images of a split, outlined, each beside what its code decodes to; the mean squared error of all images of the split."""

    n: int = 32
    """how many images are shown"""

    def __post_init__(self):
        super().__post_init__()
        _check_least(self, "n")


@dataclass(frozen=True)
class Interpolate(_OfCodes):
    """What decodes from the codes between two images of a split, which are outlined, a pair in each row; GANs: two draws of noise."""

    n: int = 8
    """how many pairs are shown: images 0 and 1, 2 and 3, ..."""
    steps: int = 9
    """codes in a row, the first and the last image's own among them"""
    way: Literal["linear", "spherical"] = "linear"
    """straight lines between codes, or arcs around zero"""
    seed: int = 0
    """GANs: the same seed draws the same noise"""

    def __post_init__(self):
        super().__post_init__()
        _check_least(self, "n")
        _check_least(self, "steps", least=2)


@dataclass(frozen=True)
class Traverse(_OfCodes):
    """What decodes where one number of an image's code is changed, one in each row: those that say most, by KL or variance, go first."""

    image: int = 0
    """number of the image in the split"""
    dimensions: int = 8
    """how many numbers of the code are changed, each in a row"""
    steps: int = 7
    """values of each"""
    reach: float = 3.0
    """the values go from -reach to reach standard deviations around the mean of the split"""

    def __post_init__(self):
        super().__post_init__()
        _check_least(self, "dimensions")
        _check_least(self, "steps", least=2)
        _check_least(self, "image", least=0)
        if not 0 < self.reach < float("inf"):
            raise ConfigError("--reach", "a positive number", self.reach)


@dataclass(frozen=True)
class CodeMap(_OfCodes):
    """The codes of a split as points of the plane, coloured by class."""


@dataclass(frozen=True)
class Neighbours(_OfCodes):
    """Samples beside their nearest training examples, and their distances beside those of a split: a check on memorising."""

    n: int = 100
    """how many samples are compared"""
    rows: int = 10
    """how many of them are shown"""
    k: int = 5
    """training examples shown beside each"""
    seed: int = 0
    """the same seed draws the same samples"""

    def __post_init__(self):
        super().__post_init__()
        _check_least(self, "n", "rows", "k")


@dataclass(frozen=True)
class Classify(Evaluate):
    """Accuracy of a class-conditional model as a classifier: argmax over y of log p(x given y) + log p(y)."""

    bound: Literal["elbo", "importance"] = "elbo"
    """which lower bound stands for log p(x given y), where the model has no exact likelihood"""


@dataclass(frozen=True)
class Attack(_OfCodes):
    """Accuracy of a classifier on images that were changed to fool it, and a PNG grid of original, perturbation and adversarial image."""

    attack: Literal[
        "fgsm", "fast_gradient", "iterative_sign", "least_likely", "pgd", "multi_targeted",
        "deepfool", "cw_l2", "lbfgs", "boundary", "nes", "spsa", "universal",
    ] = "pgd"  # fmt: skip
    """how images are changed. With gradients, within eps: the first six, pgd and multi_targeted the strongest. The smallest change, in the
    norm 2: deepfool, cw_l2, lbfgs, boundary. By queries alone: boundary, nes, spsa. One change for all images, made of others: universal"""
    eps: tuple[float, ...] = (0.1,)
    """largest norms of the change, where pixels go from 0 to 1; the picture is of the first"""
    norm: Literal["inf", "2", "1"] | None = None
    """largest change of a pixel, Euclidean length, or sum of all changes; None: the attack's own"""
    steps: int | None = None
    """None: the attack's own number"""
    restarts: int | None = None
    """pgd: how often it starts from another random image; None: once"""
    budget: int | None = None
    """nes, spsa: queries of an image; None: 2000"""
    n: int | None = None
    """only the first n images; None: all"""
    seed: int = 0
    """the same seed draws the same starts"""

    def __post_init__(self):
        super().__post_init__()
        _check_least(self, "steps", "restarts", "budget", "n")


@dataclass(frozen=True)
class Bench:
    """Sampling and training speed in images per CPU second (accelerator: second), beside the peak of this machine's matrix products."""

    run: Annotated[str | None, *RUN] = None
    """run directory; None: a model of the comparison size, freshly drawn"""
    step: int | None = None
    """checkpoint; None: the best in validation, else the newest"""
    model: str | None = None
    """without RUN: which comparison; None: the first"""
    all: bool = False
    """without RUN: every model that has a comparison size"""
    batches: tuple[int, ...] = (1, 16, 64)
    """numbers of images that are drawn at once"""
    train_batch: int = 16
    """batch of the train step, 0 to leave it out"""
    repetitions: int = 5
    """timed runs of each"""
    cores: int | None = None
    """pin the process to so many cores; None: 1 on a CPU, all beside an accelerator"""
    out: str | None = None
    """the JSON file; None: bench.json in RUN, or here"""
    steps: tuple[int, ...] = (10, 50)
    """diffusion models: numbers of steps with which each of their samplers is timed"""

    def __post_init__(self):
        if not self.batches or min(self.batches) < 1:
            raise ConfigError("--batches", "1 or more", list(self.batches))
        if min(self.steps, default=1) < 1:
            raise ConfigError("--steps", "1 or more", list(self.steps))
        _check_least(self, "step", "repetitions")
        _check_least(self, "train_batch", least=0)


OF_EXPERIMENT = re.compile(r"(model|data|optimizer|train|report|stages)\.[\w.]+")
"""Fields of an experiment, which are options of a training."""
OF_CODES = (Reconstruct, Interpolate, Traverse, CodeMap, Neighbours, Classify)
COMMANDS = {cls.__name__.lower(): cls for cls in (Evaluate, Quality, Sample, Complete, Upscale, *OF_CODES, Attack, Bench, Show)}
"""Name -> dataclass of every command that works on a run."""


def _check_least(command, *names: str, least: int = 1) -> None:
    for name in names:
        value = getattr(command, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name}", "a positive integer" if least == 1 else f"{least} or more", value)


def parse(name: str, words: Sequence[str], prog: str = "jaxgen"):
    """The dataclass of the command `name` from the words of its command line; `--help` prints its options and exits with 0."""
    return config.parse_command(COMMANDS[name], words, f"{COMMANDS[name].__doc__}\n\n--debug adds the traceback.", f"{prog} {name}")


def written(command) -> str:
    """The command line that gives this command: options that have their default are left out."""
    words = ["jaxgen", type(command).__name__.lower()]
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        if field.name == "run":
            words += [value] if value else []
        elif value is True:
            words.append(f"--{field.name}")
        elif value != field.default:
            words += [f"--{field.name}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)


def guarded(command: Callable[[list[str]], int], argv: Sequence[str]) -> int:
    """Run a command; an error is printed as one line on stderr and gives its exit code; --debug adds the traceback."""
    debug = "--debug" in argv
    try:
        return _written(lambda: command([word for word in argv if word != "--debug"]))
    except KeyboardInterrupt:
        say(interruption.LINE, sys.stderr)
        return interruption.INTERRUPTED
    except Exception as error:  # noqa: BLE001  (any other error: one line, and the traceback under --debug)
        if isinstance(error, OSError) and (code := output_code(after_error=True)) is not None:
            return code
        if debug:
            say(traceback.format_exc(), sys.stderr)
        known = isinstance(error, JaxgenError)
        bug = f"internal error: {type(error).__name__}: {' '.join(str(error).split())[:500]}; --debug shows where"
        text = _in_words_of(argv, error) if known else bug
        say(f"jaxgen: {text}", sys.stderr)
        return error.exit_code if known else 1


def _written(command: Callable[[], int]) -> int:
    """The exit code of a command, or that of an output that cannot be written; `--help` leaves by SystemExit."""
    try:
        code = command()
    except SystemExit as end:
        failed = output_code()
        if failed is None:
            raise
        raise SystemExit(failed) from end
    failed = output_code() if code == 0 else None
    return code if failed is None else failed


def _in_words_of(argv: Sequence[str], error: JaxgenError) -> str:
    """The error with the dashes of an option before its argument, as it was typed: train.batch_size -> --train.batch-size."""
    typed = {word.partition("=")[0].lstrip("-").replace("-", "_"): word.partition("=")[0] for word in argv if word.startswith("--")}
    names = error.argument.split(", ")
    written = [typed.get(name.lstrip("-"), f"--{name}" if OF_EXPERIMENT.fullmatch(name) else name) for name in names]
    return ", ".join(written) + str(error).removeprefix(error.argument)
