"""What serves every model and every data set does not ask which one it has: a search in the syntax of its files."""

import ast
import re
from pathlib import Path

import pytest

from jaxgen.models import MODELS

ROOT = Path(__file__).resolve().parent.parent


def families() -> set[str]:
    """What a model or a data set is called: classes of models and their configurations, their files, sets with a name of their own."""
    classes = {cls for pair in MODELS.items() for cls in pair}
    return {cls.__name__ for cls in classes} | {cls.__module__.split(".")[-1] for cls in classes} | {"digits", "ring", "Ring"}


def branches(syntax, names):
    """Where code asks which model or which data set it has: a name of the list in code, or a class or its name compared with anything."""
    of_class = (".__class__", ".__name__", ".__qualname__", ".__module__")
    for node in ast.walk(syntax):
        text = ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute | ast.Call) else ""
        if isinstance(node, ast.Name | ast.Attribute) and text.split(".")[-1] in names:
            yield text
        elif isinstance(node, ast.Constant | ast.MatchClass | ast.MatchValue) and getattr(node, "value", None) in names:
            yield repr(node.value)
        elif isinstance(node, ast.Call) and text.startswith(("isinstance(", "issubclass(")):
            subject = ast.unparse(node.args[0]).split(".")[-1].strip("_")
            classes = ast.unparse(node.args[1])
            if subject in ("model", "config", "dataset") and classes not in ("nnx.Module", "type"):
                yield text
        elif isinstance(node, ast.Compare):
            sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
            subjects = [side.split(".")[-1] for side in sides]
            model = any(word in side for side in sides for word in ("model", "config", "dataset"))
            if model and any(side.endswith(of_class) or side.startswith("type(") for side in sides):
                yield ast.unparse(node)
            if subjects[0] == "name" and any(word in sides[0] for word in ("dataset.", "data.", "model.", "config.")):
                yield ast.unparse(node)


def kinds(syntax):
    """Where code guesses the kind of data from sizes: `levels == 0` or `levels` alone as a condition, `ndim == 2`, `len(image_shape) == 1`;
    or from the name of a column, as in `config.modelled == "image"`.

    A check whose only consequence is an error is no guess, and neither is the number of axes of a weight, a bias or a label.
    """
    no_guess = set()
    for node in ast.walk(syntax):
        if isinstance(node, ast.If) and all(isinstance(line, ast.Raise) for line in node.body) and not node.orelse:
            no_guess |= set(ast.walk(node.test))
    for node in ast.walk(syntax):
        conditions = [node.test] if isinstance(node, ast.If | ast.IfExp | ast.While) else []
        conditions += node.values if isinstance(node, ast.BoolOp) else []
        conditions += [node.operand] if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not) else []
        conditions += [node] if isinstance(node, ast.Compare) else []
        yield from (ast.unparse(condition) for condition in conditions if condition not in no_guess and guesses(condition))


def guesses(condition) -> bool:
    """Whether one condition is a guess."""
    if isinstance(condition, ast.Name | ast.Attribute):
        return ast.unparse(condition).split(".")[-1] == "levels"
    sides = [condition.left, *condition.comparators] if isinstance(condition, ast.Compare) else []
    if any(ast.unparse(side).endswith(".modelled") for side in sides):
        return not any(isinstance(side, ast.Name) for side in sides)
    if not isinstance(condition, ast.Compare) or not all(ast.unparse(side).strip("()")[:1].isdigit() for side in condition.comparators):
        return False
    left = ast.unparse(condition.left)
    if left.split(".")[-1] == "levels":
        return ast.unparse(condition.comparators[0]) in ("0", "1")
    axes = re.fullmatch(r"(.*)\.ndim|(?:np|jnp)\.ndim\((.*)\)|len\((.*)\.shape\)|len\((.*_shape)\)", left)
    return bool(axes) and next(filter(None, axes.groups())).split(".")[-1] not in ("leaf", "bias", "label")


SHARED = [path for path in sorted((ROOT / "jaxgen").rglob("*.py")) if path.parent.name not in ("models", "layers", "data")]


@pytest.mark.parametrize("path", SHARED, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_serves_every_model_does_not_ask_which_one_it_has(path):
    """What a model can do is read from its methods, and what a data set holds from its features."""
    assert not list(branches(ast.parse(path.read_text("utf-8")), families()))


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(model, VAE)",
        "isinstance(self.model, sequence.Anything)",
        "isinstance(model.config, (A, B))",
        "type(model) is Anything",
        "type(model).__name__ == 'Anything'",
        "model.__class__ == Anything",
        "type(config).__module__.endswith('x') or type(config).__name__ in ('A', 'B')",
        "data.name == 'mine'",
        "experiment.data.name in ('mine', 'yours')",
        "kind = {'vae': 1}",
        "name == 'ring'",
        "match name:\n    case 'gan':\n        pass",
        "models.GANConfig",
    ],
)
def test_the_check_for_branches_finds_them(code):
    assert list(branches(ast.parse(code), families()))
    fine = "hasattr(model, 'log_prob'); isinstance(model, nnx.Module); name == 'exact'; isinstance(value, int); step == options.steps"
    assert not list(branches(ast.parse(fine), families()))


@pytest.mark.parametrize(
    "path", [path for path in sorted((ROOT / "jaxgen").rglob("*.py")) if path.parent.name != "data"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_nothing_but_the_kinds_of_data_guesses_what_an_example_is_from_sizes(path):
    """Whether values are integers, and what an example is, says the feature."""
    assert not list(kinds(ast.parse(path.read_text("utf-8"))))


@pytest.mark.parametrize(
    "code",
    [
        "points = config.levels == 0",
        "x if self.levels else y",
        "if not config.levels:\n    f()",
        "if train and levels > 0:\n    f()\n    raise E",
        "plot(samples) if samples.ndim == 2 else grid(samples)",
        "np.ndim(x) == 4",
        "len(self.config.image_shape) == 1",
        "len(batch.shape) in (2, 4)",
        "model.config.modelled == 'image'",
        "config.modelled in ('image', 'point')",
    ],
)
def test_the_check_for_guesses_finds_them(code):
    assert list(kinds(ast.parse(code)))
    fine = "feature.discrete; name == config.modelled; levels == 2; leaf.ndim >= 2; levels > best"
    fine += "\nlen(images) == 0\nif x.ndim != 4:\n    raise E"
    assert not list(kinds(ast.parse(fine)))
