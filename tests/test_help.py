"""What --help says: every field of every configuration and command, with a line on what it is, its type and its default."""

import dataclasses
import re

import pytest

from jaxgen import cli, config
from jaxgen.__main__ import COMMANDS, main
from jaxgen.experiment import Experiment
from jaxgen.models import MODELS
from jaxgen.training import OptimizerConfig

CONFIGS = {cli.module_name(model): config_class for config_class, model in MODELS.items()}
METAVAR = r"(?:\S*(?:[A-Z]{3}|\{)\S* ?|\.\.\.\]* ?|STR|INT|FLOAT)+"


def help_of(capsys, words: list[str]) -> str:
    """The help as one line without the frames."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(words)
    out, err = capsys.readouterr()
    assert (end.value.code, err) == (0, "")
    return " ".join(re.sub("[│╭╮╰╯─]", " ", out).split())


def entry(text: str, option: str) -> tuple[str, str]:
    """(what it is, its default) of an option."""
    found = re.search(rf"{re.escape(option)} {METAVAR}(.*?) ?\(default: ([^()]*)\)", text)
    assert found, option
    return found[1], found[2]


def is_a_line(words: str) -> bool:
    return len(re.findall(r"[a-z]{2,}", words)) >= 2


@pytest.mark.parametrize("name", CONFIGS)
def test_help_lists_every_field_with_a_line_a_type_and_a_default(capsys, name):
    text = help_of(capsys, ["train", name, "--help"])
    assert text.startswith(f"usage: jaxgen train {name} ") and all(flag in text for flag in ("--dry-run", "--restart", "--debug"))
    frozen = OptimizerConfig(frozen=getattr(CONFIGS[name], "stages", ()))
    fields = config.to_json(Experiment(CONFIGS[name](), optimizer=frozen, workdir=f"runs/{name}"))
    assert "--workdir STR folder of the run" in text
    wanted = {f"--{part}.{field}": value for part in fields for field, value in part_of(fields, part).items()}
    assert len(wanted) > 30
    for option, value in wanted.items():
        words, default = entry(text, option)
        assert is_a_line(words), (option, words)
        assert default == (" ".join(map(str, value)) if isinstance(value, list) else str(value)), option


def part_of(fields: dict, part: str) -> dict:
    """The values of the options of a part, those of the parts in it by their paths."""
    named = {field: value for field, value in fields[part].items() if field != "class"} if isinstance(fields[part], dict) else {}
    found = {field: value for field, value in named.items() if not isinstance(value, dict) or "class" not in value}
    return found | {f"{inner}.{field}": value for inner in named.keys() - found for field, value in part_of(named, inner).items()}


@pytest.mark.parametrize("name", cli.commands.COMMANDS)
def test_help_of_a_command_lists_every_option_with_a_line(capsys, name):
    text = help_of(capsys, [name, "--help"])
    assert text.startswith(f"usage: jaxgen {name} ")
    for field in dataclasses.fields(cli.commands.COMMANDS[name]):
        if field.name == "run":
            assert re.search(r"RUN\]? run directory", text)
        elif field.default is False:
            assert is_a_line(re.search(rf"--{field.name} ((?:(?!--\w).)*)\(default: False\)", text)[1])
        else:
            assert is_a_line(entry(text, f"--{field.name}")[0]), field.name


def test_a_field_without_a_line_is_found():
    assert not is_a_line(entry("--model.width INT (default: 3)", "--model.width")[0])
    assert entry("--model.kind {a,b} of the head (default: a)", "--model.kind") == ("of the head", "a")
    assert entry("--data.size [INT [INT ...]] two sides of it (default: )", "--data.size") == ("two sides of it", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys, command):
    assert main([command, "--help"]) == 0 if command == "train" else help_of(capsys, [command, "--help"])
