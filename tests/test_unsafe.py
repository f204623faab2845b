"""Nothing in the package, its scripts and its tests runs code from data: no pickle, no eval, no numpy file of objects."""

import ast

import pytest
from test_package import CODE, ROOT, tree

UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch", "yaml"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}


def unsafe(syntax):
    """What a syntax tree contains that could run code out of data."""
    numpy, load = {"np", "numpy"}, set()  # names under which the file has the module, and numpy.load
    for node in ast.walk(syntax):
        if isinstance(node, ast.Import):
            numpy |= {alias.asname for alias in node.names if alias.name == "numpy" and alias.asname}
            yield from (alias.name for alias in node.names if is_unsafe(alias.name))
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            load |= {alias.asname or alias.name for alias in node.names if (module, alias.name) == ("numpy", "load")}
            if is_unsafe(module) or module == "builtins" and UNSAFE_CALLS & {alias.name for alias in node.names}:
                yield module
    for node in ast.walk(syntax):
        if isinstance(node, ast.Call):
            yield from unsafe_call(node, {f"{name}.load" for name in numpy} | load)


def is_unsafe(module):
    return module.split(".")[0] in UNSAFE_MODULES


def unsafe_call(node, loads):
    """eval and friends; an unsafe module by its name; an `allow_pickle` that is not the constant False; a np.load that does not refuse."""
    name = ast.unparse(node.func)
    if name.removeprefix("builtins.") in UNSAFE_CALLS:
        yield name
    if name.split(".")[-1] == "import_module" and any(isinstance(word, ast.Constant) and is_unsafe(str(word.value)) for word in node.args):
        yield name
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    refused = isinstance(keywords.get("allow_pickle"), ast.Constant) and keywords["allow_pickle"].value is False
    if "allow_pickle" in keywords and not refused:
        yield "allow_pickle"
    if name in loads and not refused:
        yield "np.load without allow_pickle=False"


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles_or_evaluates(path):
    assert not list(unsafe(tree(path)))


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "def f():\n    from joblib import load",
        "import cloudpickle as c",
        "eval('1')",
        "x = [exec(y) for y in z]",
        "np.load(f)",
        "numpy.load(f, allow_pickle=flag)",
        f"np.load(f, allow_pickle={True})",
        f"np.lib.format.read_array(f, allow_pickle={True})",
        "__import__('os')",
        "import builtins\nbuiltins.eval('1')",
        "from builtins import exec as run",
        "import importlib\nimportlib.import_module('pickle')",
        "from importlib import import_module\nimport_module('torch.serialization')",
        "def f():\n    load(g)\nfrom numpy import load",
        "from numpy import load as read\nread(f)",
        "import numpy as n\nn.load(f)",
        "import numpy as n\nn.load(f, allow_pickle=0)",
    ],
)
def test_the_check_for_unsafe_code_finds_it(code):
    assert list(unsafe(ast.parse(code)))
    fine = "model.eval(); jax.eval_shape(f); np.load(f, allow_pickle=False); re.compile('x'); jaxgen.load(f); import_module('jaxgen.data')"
    assert not list(unsafe(ast.parse(fine)))
