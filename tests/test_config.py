"""Configurations: JSON in a closed set of dataclasses, and command-line overrides; everything else is a one-line ConfigError."""

import json
import shlex
import subprocess
import sys
import typing
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import pytest

from jaxgen import benchmark, commands
from jaxgen.config import check_types, from_json, parse, to_json
from jaxgen.data.images import SPLITS
from jaxgen.errors import ConfigError
from jaxgen.models import ConditionalGANConfig
from jaxgen.reports import drawing
from jaxgen.runs import directory
from jaxgen.runs.report import ReportConfig
from jaxgen.sampling import METHODS


@dataclass(frozen=True)
class Net:
    """A network."""

    width: int = 8  # channels of the network
    rate: float = 0.5
    image_shape: tuple[int, int, int] = (8, 8, 1)
    sizes: tuple[int, ...] = (1, 2)
    kind: Literal["add", "concat"] = "add"
    gated: bool = True
    classes: int | None = None
    name: str = "net"

    def __post_init__(self):
        if self.width % self.image_shape[2]:
            raise ConfigError("width", f"a multiple of {self.image_shape[2]} (channels)", self.width)


@dataclass(frozen=True)
class Other:
    depth: int = 3


@dataclass(frozen=True)
class Run:
    model: Any
    other: Other = field(default_factory=Other)
    workdir: str = "runs/x"


@dataclass(frozen=True)
class Required:
    size: int
    model: Net | Other | None = None


RUN = Run(Net())
CLASSES = (Run, Net, Other)


def message(call, *args):
    with pytest.raises(ConfigError) as caught:
        call(*args)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    return str(caught.value)


@pytest.mark.parametrize("model", [Net(), Other(5), Net(rate=1e-30, sizes=(), gated=False, classes=7, name='é "\\\n')])
def test_json_returns_the_same_config(model):
    run = Run(model, workdir="a b")
    assert from_json(CLASSES, json.loads(json.dumps(to_json(run)))) == run


def test_json_names_the_classes_and_is_plain():
    data = to_json(RUN)
    assert data["class"] == "Run" and data["model"]["class"] == "Net" and data["model"]["image_shape"] == [8, 8, 1]


def test_json_of_an_older_version_keeps_the_defaults_of_new_fields():
    assert from_json(CLASSES, {"class": "Run", "model": {"class": "Net"}}) == RUN


def test_json_of_an_older_version_may_have_a_field_under_its_earlier_name():
    gan = ConditionalGANConfig(conditioning="auxiliary")
    old = to_json(gan)
    old["condition"] = old.pop("conditioning")
    assert from_json(ConditionalGANConfig, old) == gan and "condition" not in to_json(gan)
    assert message(from_json, ConditionalGANConfig, old | {"condition": "both"}).startswith("config.conditioning: wanted 'concatenation'")


def test_json_fields_reach_their_own_classes_without_listing_them():
    data = {"class": "Required", "size": 1, "model": {"class": "Other", "depth": 2}}
    assert from_json(Required, data) == Required(1, Other(2))


def test_whole_numbers_stand_for_floats_and_become_floats():
    value = from_json(Net, {"class": "Net", "rate": 2}).rate
    assert value == 2.0 and type(value) is float


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"widht": 4}, "config.widht: wanted a field of Net, got an unknown one; did you mean width?"),
        ({"width": "4"}, "config.width: wanted int, got '4'"),
        ({"width": 4.0}, "config.width: wanted int, got 4.0"),
        ({"width": True}, "config.width: wanted int, got True"),
        ({"width": None}, "config.width: wanted int, got None"),
        ({"width": {"class": "Net"}}, "config.width: wanted int"),
        ({"rate": float("nan")}, "config.rate: wanted a finite float, got nan"),
        ({"rate": 10**400}, "config.rate: wanted a finite float"),
        ({"gated": 1}, "config.gated: wanted True or False, got 1"),
        ({"classes": "x"}, "config.classes: wanted int or None, got 'x'"),
        ({"kind": "mul"}, "config.kind: wanted 'add' or 'concat', got 'mul'"),
        ({"image_shape": [8, 8]}, "config.image_shape: wanted a tuple of 3: int, int, int, got (8, 8)"),
        ({"image_shape": [8, 8, "1"]}, "config.image_shape"),
        ({"sizes": 3}, "config.sizes: wanted a tuple of any number of int, got 3"),
        ({"name": ["a" * 500]}, "config.name: wanted str"),
        ({"width": 3, "image_shape": [8, 8, 2]}, "width: wanted a multiple of 2 (channels), got 3"),
        ({"class": "Nett"}, "config.class: wanted one of Net, got 'Nett'; did you mean Net?"),
        ({"class": "os.system"}, "config.class: wanted one of Net"),
        ({"class": ["Net"]}, "config.class: wanted one of Net"),
        ({"class": "Other"}, "config.class: wanted one of Net"),
    ],
)
def test_json_errors_name_the_field(change, expected):
    assert message(from_json, Net, {"class": "Net", **change}).startswith(expected)


@dataclass(frozen=True)
class Wide(Other):
    """A class of somebody else, for a field that is declared to hold an `Other`."""

    gain: float = 1.0


@dataclass(frozen=True)
class Holder:
    other: Other


@dataclass(frozen=True)
class Stranger:
    """No subclass of `Other`."""


def test_a_subclass_may_stand_where_its_class_is_declared_only_if_it_is_named():
    value = Holder(Wide(2, 3.0))
    assert from_json([Holder, Wide], to_json(value)) == value
    assert message(from_json, Holder, to_json(value)).startswith("config.other.class: wanted one of Other, got 'Wide'")
    data = {"class": "Holder", "other": {"class": "Stranger"}}
    assert message(from_json, [Holder, Wide, Stranger], data).startswith("config.other.class: wanted one of Other, Wide, got 'Stranger'")


@pytest.mark.parametrize("data", [None, 3, [], "Net", {}, {"class": None}, {"width": 3}])
def test_json_that_is_not_a_config_is_refused(data):
    assert message(from_json, Net, data).startswith("config")


def test_json_cannot_leave_the_closed_set():
    """A class that exists, and is even a dataclass of the program, is refused unless it was given."""
    assert "wanted one of Other, Run" in message(from_json, (Run, Other), {"class": "Run", "model": {"class": "Net"}})
    assert "config.size: wanted int, got nothing" in message(from_json, Required, {"class": "Required"})


def test_check_types_finds_the_nested_field():
    broken = Run(Net())
    object.__setattr__(broken.model, "width", "8")
    assert message(check_types, broken) == "Run.model.width: wanted int, got '8'"
    assert message(to_json, broken) == "Run.model.width: wanted int, got '8'"


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--model.width", "64"], "width", 64),
        (["--model.width=64"], "width", 64),
        (["--model.rate=1e-3"], "rate", 1e-3),
        (["--model.rate", "-2"], "rate", -2.0),
        (["--model.image_shape", "28", "14", "1"], "image_shape", (28, 14, 1)),
        (["--model.image-shape=28,14,1"], "image_shape", (28, 14, 1)),
        (["--model.sizes"], "sizes", ()),
        (["--model.sizes", "5"], "sizes", (5,)),
        (["--model.gated", "False"], "gated", False),
        (["--model.classes=10"], "classes", 10),
        (["--model.classes=10", "--model.classes", "None"], "classes", None),
        (["--model.kind=concat"], "kind", "concat"),
        (["--model.name=--x"], "name", "--x"),
        (["--model.name", "-x"], "name", "-x"),
        (["--model.name", ""], "name", ""),
        (["--model.name=__import__('os').system('x')"], "name", "__import__('os').system('x')"),
    ],
)
def test_every_kind_of_field_can_be_overridden(argv, name, value):
    changed = getattr(parse(RUN, argv).model, name)
    assert changed == value and type(changed) is type(value)


def test_overrides_reach_every_level_and_leave_the_rest():
    assert parse(RUN, ["--workdir", "b", "--other.depth=9", "--model.width", "2"]) == Run(Net(width=2), Other(9), "b")
    assert parse(RUN, []) == RUN and parse(Run(Other()), ["--model.depth", "1"]).model == Other(1)


def test_the_fields_of_one_dataclass_are_validated_together():
    assert parse(RUN, ["--model.width=6", "--model.image_shape=8,8,3"]).model.width == 6
    assert message(parse, RUN, ["--model.image_shape=8,8,3"]) == "--model.width: wanted a multiple of 3 (channels), got 8"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--model.widht", "6"], "--model.widht: wanted a known option, got an unknown one; did you mean --model.width?"),
        (["--width", "6"], "--width: wanted a known option, got an unknown one; did you mean --model.width?"),
        (["--depht=6"], "--depht: wanted a known option, got an unknown one; did you mean --other.depth?"),
        (["--zzz"], "--zzz: wanted a known option, got an unknown one; see --help"),
        (["--model", "6"], "--model: wanted a known option"),
        (["stray"], "command line: wanted --field value, got 'stray'"),
        (["--model.width"], "--model.width: wanted int, got nothing"),
        (["--model.width", "1", "2"], "--model.width: wanted int, got '1 2'"),
        (["--model.width", "1.5"], "--model.width: wanted int, got '1.5'"),
        (["--model.width", "9" * 5000], "--model.width: wanted int"),
        (["--model.rate", "inf"], "--model.rate: wanted a finite float, got inf"),
        (["--model.gated=maybe"], "--model.gated: wanted True or False, got 'maybe'"),
        (["--model.gated"], "--model.gated: wanted True or False, got nothing"),
        (["--model.kind=mul"], "--model.kind: wanted 'add' or 'concat', got 'mul'"),
        (["--model.image_shape", "1", "2"], "--model.image_shape: wanted a tuple of 3: int, int, int, got '1 2'"),
    ],
)
def test_command_line_errors_name_the_argument(argv, expected, capsys):
    assert message(parse, RUN, argv).startswith(expected)
    assert capsys.readouterr() == ("", "")


CODE = [
    "__import__('os').system('touch PWNED')",
    "exec('1')",
    "${oc.env:HOME}",
    "!!python/object/apply:os.system [x]",
    "os.system",
    "\0",
    "{}",
    "[1",
]


@pytest.mark.parametrize("text", CODE)
def test_code_is_never_run(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for flag in ("width", "rate", "image_shape", "sizes", "kind", "gated", "classes"):
        message(parse, RUN, [f"--model.{flag}", text])
        message(from_json, Net, {"class": "Net", flag: text})
    message(from_json, Net, {"class": text})
    message(from_json, Net, {"class": "Net", text: 1})
    assert not list(tmp_path.iterdir())


def test_help_lists_every_field_with_type_and_default(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(RUN, ["--help"], description="What it does.")
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0 and "What it does." in text
    parts = ("--model.width INT", "channels of the network (default: 8)", "--model.kind {add,concat}", "--other.depth INT", "--workdir STR")
    for part in parts:
        assert part in text


def test_config_needs_no_jax():
    code = "import sys, jaxgen.config; assert not {'jax', 'tyro', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- Commands -----------------------------------------------------------------------------------------------------------------------


def test_a_command_line_is_a_dataclass_and_back():
    """Every option of every command: the words that `written` gives are read as the same dataclass."""
    for given in (
        commands.Evaluate("runs/x", 7, "validation", 16, 3, "importance"),
        commands.Sample("runs/x", n=3, label="big cat", temperature=0.5, seed=9, out="a.png", to="4", method="naive"),
        commands.Complete("-", keep="outside", split="train"),
        commands.Upscale("gs://b/x", n=8),
        commands.Bench("runs/x", None, "vae", True, (1, 2), 0, 1, 1, "b.json"),
        commands.Bench(),
        commands.Show("runs/x"),
    ):
        words = shlex.split(commands.written(given))
        assert words[0] == "jaxgen" and commands.parse(words[1], words[2:]) == given


@pytest.mark.parametrize("words", ["runs/x --n 3 --step=5", "--n=3 runs/x --step 5", "--step 5 --n 3 runs/x"])
def test_the_run_stands_anywhere(words):
    assert commands.parse("sample", words.split(" ")) == commands.Sample("runs/x", 5, 3)


def test_a_bare_flag_takes_no_word():
    assert commands.parse("bench", ["--all", "runs/x"]) == commands.Bench("runs/x", all=True)
    assert commands.parse("bench", ["--batches", "1", "2", "--all"]).batches == (1, 2)


def test_the_choices_of_commands_are_those_of_the_library():
    """commands.py imports no jax, so it writes them out once more."""
    hints = typing.get_type_hints(commands.Sample) | typing.get_type_hints(commands.Complete)
    assert typing.get_args(hints["split"]) == SPLITS and typing.get_args(hints["keep"]) == drawing.KEEP
    assert typing.get_args(typing.get_args(hints["method"])[0]) == tuple(METHODS)
    assert commands.Sample("x").n == ReportConfig().samples and commands.Bench().batches == benchmark.BATCHES
    assert commands.Bench().repetitions == benchmark.REPETITIONS


def test_a_run_that_goes_on_may_change_all_of_its_reports():
    assert {f"report.{one.name}" for one in fields(ReportConfig)} <= set(directory.HARMLESS)
    with pytest.raises(ConfigError, match=r"^--report.metrics: wanted some of bits_per_dim, .*, got nat; did you mean nats\?$"):
        parse(ReportConfig(), ["--metrics", "accuracy", "nat"])
    for words in ("samples=-1", "samples_every=0", "completions=-1"):
        with pytest.raises(ConfigError, match=rf"^--report\.\w+: wanted [01] or more, got {words.partition('=')[2]}$"):
            parse(ReportConfig(), [f"--{words}"])
