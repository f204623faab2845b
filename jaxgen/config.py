"""Frozen dataclasses as JSON and from the command line, strictly.

A configuration is data, never code: `from_json` builds only the dataclasses it was given (and those their fields name), looked up by
class name; nothing in a file can name anything else to import or run. Field types: int, float, bool, str, None, Literal, tuples,
dataclasses and unions of these. An unknown name or a wrong type is a `ConfigError` that names the field.
"""

import contextlib
import dataclasses
import functools
import io
import math
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

from jaxgen.errors import ConfigError, did_you_mean, shown
from jaxgen.synonyms import nearest

Config = TypeVar("Config")
Classes = dict[str, type]


def to_json(config: Any) -> dict[str, Any]:
    """The nested dataclass as plain JSON values; every dataclass also says its class: `{"class": "VAEConfig", "width": 64, ...}`."""
    check_types(config)
    return _plain(config)


def from_json(classes: type | Iterable[type], data: Any) -> Any:
    """The dataclass that `to_json` wrote, one of `classes`; fields that the file lacks keep their defaults.

    A class whose attribute EARLIER names a field has another value for files that were written before the field existed. RENAMED is {name
    that a field had in files: its name now}.

    Raises ConfigError for an unknown class or field (with the nearest known one), a missing field and a wrong type.
    """
    given = (classes,) if isinstance(classes, type) else tuple(classes)
    return _from_dict(data, given, "config", _closed_set(given))


def check_types(config: Any) -> None:
    """Raise ConfigError for the first field whose value is not of its declared type; floats must be finite."""
    _check_fields(config, type(config).__name__ + ".")


def parse(
    config: Config,
    argv: Sequence[str],
    description: str | None = None,
    prog: str | None = None,
    found: Mapping[str, Any] = types.MappingProxyType({}),
    flags: Mapping[str, str] = types.MappingProxyType({}),
) -> Config:
    """The config with the command line's overrides: `--model.width 64`, `--model.width=64`, `--model.image_shape 28 28 1` or `=28,28,1`.

    found: values that replace defaults, {"model.image_shape": (8, 8, 1)}; the command line overrides them. flags: words that the
    caller has taken off the command line, such as --restart, for the hint beside a mistyped one, each with what the hint adds, such as
    ", which only scripts have", or "". `--help` prints every field with its type and default and exits with 0. Raises ConfigError for an
    unknown option, a wrong type, or a combination that the dataclasses refuse; all new values of one dataclass are applied together.
    """
    if "-h" in argv or "--help" in argv:
        _print_help(config, description, prog)
    options = dict(_leaves(config, ""))
    changes: dict[str, Any] = dict(found)
    for flag, words in _split(argv):
        name = flag.removeprefix("--").replace("-", "_")
        if name not in options:
            hint = _nearest(name, [*options, *(other[2:] for other in flags)], "--", options, flags)
            raise ConfigError(flag, "a known option", "an unknown one", hint)
        changes[name] = _from_words(flag, options[name], words)
    changed = _replace(config, changes, "")
    _check_fields(changed, "--")
    _check_given(changed, [flag.removeprefix("--").replace("-", "_") for flag, _ in _split(argv)], "")
    return changed


def parse_command(command: type[Config], words: Sequence[str], description: str | None = None, prog: str | None = None) -> Config:
    """The dataclass of a command from its command line: `runs/x --n 16` -> command(run="runs/x", n=16).

    Fields annotated with tyro's Positional are words without a name; a bool takes no word, a tuple all words up to the next option.
    `--help` and errors as in `parse`.
    """
    if "-h" in words or "--help" in words:
        _print_help(command, description, prog)
    hints, places = _hints(command), _positional(command)
    values, rest = {}, list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            if not places:
                raise ConfigError(prog or "command line", "one run directory and options", shown(word))
            values[places.pop(0)] = word
            continue
        flag, equals, value = word.partition("=")
        name, given = flag[2:].replace("-", "_"), [value] if equals else []
        if name not in hints or name in _positional(command):
            names = [other for other in (*hints, "debug") if other not in _positional(command)]
            raise ConfigError(flag, "a known option", "an unknown one", _nearest(name, names, "--", hints))
        if hints[name] is bool and not equals:
            given = ["True"]
        while not equals and hints[name] is not bool and rest and not rest[0].startswith("--") and (not given or _is_tuple(hints[name])):
            given.append(rest.pop(0))
        values[name] = _from_words(flag, hints[name], given)
    for field in dataclasses.fields(command):
        if field.default is dataclasses.MISSING and field.name not in values:
            raise ConfigError(field.name.upper(), "a run directory", "nothing")
    built = command(**values)
    _check_fields(built, "--")
    return built


def field_values(config: Any) -> dict[str, Any]:
    """{dotted path: value} of every field of the dataclass and of those in its fields: {"model.width": 64, ...}."""
    return {path: functools.reduce(getattr, path.split("."), config) for path, _ in _leaves(config, "")}


# --- JSON ---------------------------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {"class": type(value).__name__, **{f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _closed_set(classes: Iterable[type]) -> Classes:
    """The dataclasses given, and all that their fields are annotated with, by name."""
    known: Classes = {}
    queue = list(classes)
    while queue:
        hint = queue.pop()
        if not dataclasses.is_dataclass(hint):
            queue += typing.get_args(hint)
        elif hint.__name__ not in known:
            known[hint.__name__] = hint
            queue += _hints(hint).values()
        elif known[hint.__name__] is not hint:
            raise ConfigError("config", "classes of different names", f"two named {hint.__name__}", "give yours another name")
    return known


def _from_dict(data: Any, allowed: tuple[type, ...], name: str, known: Classes) -> Any:
    """One of the dataclasses `allowed` or a known subclass of one (any known one if empty) from `{"class": ..., fields}`."""
    if not isinstance(data, dict):
        raise ConfigError(name, "a JSON object", shown(data))
    label = data.get("class")
    cls = known.get(label) if isinstance(label, str) else None
    names = [c.__name__ for c in allowed] + [n for n, c in sorted(known.items()) if c not in allowed and issubclass(c, allowed or object)]
    if cls is None or cls.__name__ not in names:
        raise ConfigError(f"{name}.class", "one of " + ", ".join(names), shown(label), _nearest(label, names))
    hints, renamed = _hints(cls), getattr(cls, "RENAMED", {})
    data = {renamed.get(key, key): value for key, value in data.items()}
    for key in data:
        if key != "class" and key not in hints:
            raise ConfigError(f"{name}.{key}", f"a field of {cls.__name__}", "an unknown one", _nearest(key, hints))
    for field in dataclasses.fields(cls):
        if field.name not in data and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{name}.{field.name}", type_name(hints[field.name]), "nothing: the field is missing")
    data = getattr(cls, "EARLIER", {}) | data
    return cls(**{key: _convert(value, hints[key], f"{name}.{key}", known) for key, value in data.items() if key != "class"})


def _convert(value: Any, hint: Any, name: str, known: Classes) -> Any:
    """The JSON value as the declared type: lists become tuples, objects dataclasses, whole numbers floats where a float is declared."""
    if typing.get_origin(hint) is dict and isinstance(value, dict):
        return {key: _convert(item, typing.get_args(hint)[1], f"{name}.{key}", known) for key, item in value.items()}
    allowed = tuple(arm for arm in _arms(hint) if dataclasses.is_dataclass(arm))
    if isinstance(value, dict) and (allowed or _is_open(hint)):
        return _from_dict(value, allowed, name, known)
    value = _tupled(value)
    for arm in _arms(hint):
        if _matches(value, arm):
            return _floated(value, arm)
    raise ConfigError(name, type_name(hint), shown(value))


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value


def _floated(value: Any, hint: Any) -> Any:
    if typing.get_origin(hint) is tuple:
        return tuple(_floated(item, inner) for item, inner in zip(value, _items(hint, len(value)), strict=True))
    return float(value) if hint is float else value


# --- Types --------------------------------------------------------------------------------------------------------------------------


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _is_open(hint: Any) -> bool:
    """Whether a field may hold any of the known dataclasses, such as the model of an experiment."""
    return hint in (Any, object) or isinstance(hint, TypeVar)


def _arms(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _items(hint: Any, length: int) -> tuple[Any, ...]:
    """The types of a tuple's items: `tuple[int, ...]` has as many as needed."""
    args = typing.get_args(hint)
    return (args[0],) * length if args[-1:] == (Ellipsis,) else args


def _matches(value: Any, hint: Any) -> bool:
    """Exact types: a bool is not an int, a numpy scalar is not a number; an int may stand for a float."""
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_matches(value, arm) for arm in _arms(hint))
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in typing.get_args(hint))
    if origin is tuple:
        inner = _items(hint, len(value)) if isinstance(value, tuple) else ()
        return isinstance(value, tuple) and len(inner) == len(value) and all(map(_matches, value, inner))
    if origin is dict:
        of_key, of_item = typing.get_args(hint)
        return isinstance(value, dict) and all(_matches(key, of_key) and _matches(item, of_item) for key, item in value.items())
    if hint is float:
        return type(value) is float and math.isfinite(value) or type(value) is int and abs(value) < 2**1023
    if dataclasses.is_dataclass(hint):
        return isinstance(value, hint)
    if _is_open(hint):
        return dataclasses.is_dataclass(value)
    return type(value) is hint


def _check_fields(config: Any, prefix: str) -> None:
    for name, hint in _hints(type(config)).items():
        value = getattr(config, name)
        if not _matches(value, hint):
            raise ConfigError(prefix + name, type_name(hint), shown(value))
        for path, inner in _nested(value, prefix + name):
            _check_fields(inner, f"{path}.")


def _check_given(config: Any, given: Collection[str], prefix: str) -> None:
    """Calls `check_given(names)` of each dataclass that has this method, with the names of its fields that the command line gives.

    given: their paths, such as optimizer.b1. An error names the path."""
    if hasattr(config, "check_given"):
        try:
            config.check_given([path.removeprefix(prefix) for path in given if path.startswith(prefix)])
        except ConfigError as error:
            raise ConfigError(f"--{prefix}{error.argument.rpartition('.')[2]}", error.wanted, error.got, error.hint) from None
    for name in _hints(type(config)):
        for path, inner in _nested(getattr(config, name), prefix + name):
            _check_given(inner, given, f"{path}.")


def _nested(value: Any, path: str) -> list[tuple[str, Any]]:
    """The dataclasses that a field holds, each with its path: itself, or those of a dict by their names; [] for any other value."""
    if dataclasses.is_dataclass(value):
        return [(path, value)]
    return [(f"{path}.{key}", item) for key, item in value.items()] if isinstance(value, dict) else []


def type_name(hint: Any) -> str:
    """The type in words: "int or None", "'a' or 'b'", "tuple of 3: int, int, int"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(type_name, args))
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin is dict:
        return f"names, each with its {type_name(args[1])}"
    if origin is tuple and args[-1] is Ellipsis:
        return f"a tuple of any number of {type_name(args[0])}"
    if origin is tuple:
        return f"a tuple of {len(args)}: " + ", ".join(map(type_name, args))
    special = {type(None): "None", float: "a finite float", bool: "True or False", Any: "a dataclass", object: "a dataclass"}
    return special.get(hint) or getattr(hint, "__name__", str(hint))


def _nearest(
    name: Any,
    names: Iterable[str],
    prefix: str = "",
    hints: Mapping[str, Any] = types.MappingProxyType({}),
    more: Mapping[str, str] = types.MappingProxyType({}),
) -> str:
    """`did you mean X?`, or on a command line (with a prefix) where to look. hints: the types of fields, of which X may be a value, as in
    `--optimizer.name adam`; more: what is said after some of the names."""
    found = nearest(str(name), names, {field: _choices(hint) for field, hint in hints.items()})
    return f"did you mean {prefix}{found}{more.get(f'{prefix}{found}', '')}?" if found else "see --help" if prefix else ""


def _choices(hint: Any) -> list[str]:
    """The strings that a field of this type may have, where it is a Literal or a union with one; else []."""
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return [value for value in inner if isinstance(value, str)]
    return [value for part in inner for value in _choices(part)] if typing.get_origin(hint) in (Union, types.UnionType) else []


# --- Command line -------------------------------------------------------------------------------------------------------------------


def _leaves(config: Any, prefix: str) -> Iterable[tuple[str, Any]]:
    """Every field that is not itself a dataclass, as `model.width` with its type."""
    for name, hint in _hints(type(config)).items():
        value = getattr(config, name)
        for path, inner in _nested(value, prefix + name):
            yield from _leaves(inner, f"{path}.")
        if not dataclasses.is_dataclass(value) and not isinstance(value, dict):
            yield prefix + name, hint


def _split(argv: Sequence[str]) -> Iterable[tuple[str, list[str]]]:
    """`["--a=1", "--b", "2", "3"]` -> ("--a", ["1"]), ("--b", ["2", "3"]); a word after `=` may begin with a dash."""
    groups: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            groups.append((flag, [value] if equals else []))
        elif not groups:
            raise ConfigError("command line", "--field value", shown(word))
        else:
            groups[-1][1].append(word)
    return groups


def _from_words(flag: str, hint: Any, words: list[str]) -> Any:
    """The words as the declared type, by tyro; a tuple may also be one word with commas or spaces."""
    import tyro

    if len(words) == 1 and _is_tuple(hint):
        words = words[0].replace(",", " ").split()
    holder = dataclasses.make_dataclass("Field", [("value", hint)])
    args = [f"--value={words[0]}"] if len(words) == 1 else ["--value", *words]
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return tyro.cli(holder, args=args, config=(tyro.conf.FlagConversionOff,), console_outputs=False).value
    except SystemExit:
        given = " ".join(words)
        raise ConfigError(flag, type_name(hint), shown(given), did_you_mean(given, _choices(hint)) or "see --help") from None


def _replace(config: Config, changes: dict[str, Any], prefix: str) -> Config:
    """`dataclasses.replace` at every level, so that each dataclass validates all of its new values at once."""
    new = {}
    for name in _hints(type(config)):
        value, path = getattr(config, name), prefix + name
        if dataclasses.is_dataclass(value):
            new[name] = _replace(value, changes, path + ".")
        elif isinstance(value, dict):
            new[name] = {key: _replace(item, changes, f"{path}.{key}.") for key, item in value.items()}
        elif path in changes:
            new[name] = changes[path]
    try:
        return dataclasses.replace(config, **new) if new else config
    except ConfigError as error:  # with the field's path on the command line; some dataclasses give it themselves
        name = error.argument.removeprefix(f"{type(config).__name__}.")
        head, _, rest = name.partition(".")
        name = name if name.startswith(prefix) else prefix + (rest if f".{prefix}".endswith(f".{head}.") else name)
        raise ConfigError(f"--{name}", error.wanted, error.got, error.hint) from None


def _positional(command: type) -> list[str]:
    """The fields of a command that are given without a name."""
    import tyro

    hints = typing.get_type_hints(command, include_extras=True)
    return [name for name, hint in hints.items() if tyro.conf.Positional in getattr(hint, "__metadata__", ())]


def _is_tuple(hint: Any) -> bool:
    return any(typing.get_origin(arm) is tuple for arm in _arms(hint))


def _print_help(config: Any, description: str | None, prog: str | None) -> None:
    """Prints the options of a configuration, or of a command's class, and exits with 0."""
    import tyro

    options = {"prog": prog, "args": ["--help"], "description": description, "use_underscores": True}
    if isinstance(config, type):
        tyro.cli(config, config=(tyro.conf.FlagCreatePairsOff,), **options)
    tyro.cli(type(config), default=config, config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands), **options)
