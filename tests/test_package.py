"""The package as a whole: who may import whom, nothing that runs code from data, a light start, and what is installed."""

import ast
import graphlib
import re
import subprocess
import sys
import time
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import jaxgen

ROOT = Path(__file__).resolve().parent.parent
CODE = sorted(path for folder in ("jaxgen", "experiments", "tests") for path in (ROOT / folder).rglob("*.py"))
PACKAGE = [path for path in CODE if path.is_relative_to(ROOT / "jaxgen")]

# One way down. Every file of jaxgen/ belongs to one row and imports only from its own row, if that is allowed, and from the rows named.
COMMON = {"errors", "config", "sharding"}
LAYERS = {"layers", "distributions", "conditions", "sampling", "masked", "logistic_mixture", "weight_norm", "block_attention"}
LAYERS |= {"gated_resnet", "fronts"}
MODELS = {"models"}
RUNS = {"training", "evaluation", "data", "checkpoint", "report"} | {"figures", "images", "leaves", "lock", "manifest", "ring", "rundir"}
RUNS |= {"tfds_images"}
COMMANDS = {"experiment", "benchmark", "cli", "__main__"}
MAY_IMPORT = [
    (COMMON, COMMON),
    (LAYERS, COMMON | LAYERS),
    (MODELS, COMMON | LAYERS),
    (RUNS, COMMON | RUNS | {"distributions"}),
    (COMMANDS, COMMON | LAYERS | MODELS | RUNS | COMMANDS),
]
# checkpoint.load rebuilds a model from the closed list of configurations.
EXCEPTIONS = {("checkpoint", "models")}
# data.load("ring") makes its set in a file that builds a Dataset: the only pair that needs each other, at different times.
CYCLES = {("data", "ring")}
# Models that a paper composes of others (none yet), and a model of two cached forms, each in a file of its own.
COMPOSED_MODELS = {("pixelcnn", "pixelcnn_fronts")}


@cache
def tree(path):
    return ast.parse(path.read_text("utf-8"), str(path))


def imports(path):
    """Full names of all that a file imports, also inside functions: "jax.numpy", "jaxgen.data.load"."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(path):
    """The row's word for a file: models/vae.py -> models, data.py -> data."""
    return path.relative_to(ROOT / "jaxgen").parts[0].removesuffix(".py")


def dependencies(path):
    return {name.split(".")[1] for name in imports(path) if name.startswith("jaxgen.")}


# --- Structure ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [p for p in PACKAGE if p.name != "__init__.py" or p.parent.name == "models"], ids=str)
def test_imports_run_one_way(path):
    rows = [allowed for row, allowed in MAY_IMPORT if part(path) in row]
    assert len(rows) == 1, f"{path.name} is new: give it its row above"
    own = MODELS if path.name == "__init__.py" else set()
    wrong = {other for other in dependencies(path) - rows[0] - own if (part(path), other) not in EXCEPTIONS}
    if part(path) == "models" and path.name != "__init__.py":
        used = {name.split(".")[2] for name in imports(path) if name.startswith("jaxgen.models.")}
        wrong = (wrong - MODELS) | {other for other in used if (path.stem, other) not in COMPOSED_MODELS}
    assert not wrong


def test_imports_have_no_cycle():
    graph = {}
    for path in PACKAGE:
        if path != ROOT / "jaxgen" / "__init__.py":
            others = {other for other in dependencies(path) if other != part(path) and (part(path), other) not in CYCLES}
            graph.setdefault(part(path), set()).update(others)
    assert set(graph) >= COMMON | LAYERS | {"training"}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_training_and_commands_name_no_model():
    for path in PACKAGE:
        if part(path) in COMMON | LAYERS | RUNS | COMMANDS:
            named = {name for name in imports(path) if name.startswith("jaxgen.models.")}
            assert named <= {"jaxgen.models.MODELS", "jaxgen.models.build"}, path


@pytest.mark.parametrize("script", sorted((ROOT / "experiments").glob("*.py")), ids=lambda path: path.name)
def test_experiments_import_only_the_public_surface(script):
    assert dependencies(script) <= {"cli", "models", "data", "training", "experiment", "evaluation"}, script


def test_nothing_is_longer_than_400_lines():
    long = {str(path): lines for path in CODE if (lines := len(path.read_text("utf-8").splitlines())) > 400}
    assert not long


# --- Nothing runs code from data ----------------------------------------------------------------------------------------------------

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


# --- A light start ------------------------------------------------------------------------------------------------------------------

HEAVY = ["tensorflow_datasets", "orbax", "grain", "matplotlib", "sklearn", "PIL", "tensorboardX", "tensorflow", "scipy.stats", "tyro"]


def python(code):
    """What `python -c code` prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()


def test_importing_jaxgen_imports_nothing():
    code = "import sys; before = set(sys.modules); import jaxgen; print(*set(sys.modules) - before)"
    names = python(code)
    assert [name for name in names if name.split(".")[0] not in sys.stdlib_module_names] == ["jaxgen"] and len(names) < 10


def test_the_modules_of_a_notebook_add_nothing_heavy_and_touch_no_device():
    """All of jaxgen but the command, beside what jax and flax load themselves."""
    code = f"""
import sys, jax, optax
from flax import nnx
before = set(sys.modules)
from jaxgen import checkpoint, config, data, distributions, evaluation, layers, models, report, sampling, sharding, training
print(*[name for name in {HEAVY} if name in set(sys.modules) - before])
from jax._src import xla_bridge
print("devices" if xla_bridge.backends_are_initialized() else "")
"""
    assert python(code) == []


def test_help_and_mistakes_need_no_jax():
    code = """
import sys
from jaxgen.__main__ import main
assert main(["--help"]) == 0 and main([]) == 0 and main(["trian"]) == 2
assert not {"jax", "numpy", "flax"} & set(sys.modules)
"""
    words = python(code)
    for command in ("train", "evaluate", "sample", "complete", "bench", "show"):
        assert command in words


def test_help_answers_within_a_second():
    times = []
    for _ in range(3):
        start = time.monotonic()
        python("from jaxgen.__main__ import main; main(['--help'])")
        times.append(time.monotonic() - start)
    assert min(times) < 1.0


def test_a_mistyped_command_is_one_line_with_a_suggestion(capsys):
    from jaxgen.__main__ import main

    assert main(["evalaute"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "got 'evalaute'; did you mean evaluate?" in err


# --- What is installed --------------------------------------------------------------------------------------------------------------


@cache
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def locked():
    return [Requirement(line) for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_lock_has_one_exact_allowed_version_of_every_dependency(version):
    environment = {"python_version": version, "python_full_version": version + ".0"}
    pins = {}
    for pin in locked():
        if pin.marker is None or pin.marker.evaluate(environment):
            (exact,) = pin.specifier
            assert exact.operator == "==" and pin.name.lower() not in pins
            pins[pin.name.lower()] = exact.version
    for line in [*project()["dependencies"], *project()["optional-dependencies"]["test"]]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(pins[wanted.name.lower()]), line
    assert "tensorflow" not in " ".join(pins).replace("tensorflow-datasets", "").replace("tensorflow-metadata", "")


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml", "Makefile", ".ci/run"])
def test_no_registry_is_named(name):
    text = (ROOT / name).read_text("utf-8")
    assert not re.search(r"https?://|index-url|--index|find-links|--hash|\bpypi\b", text, re.IGNORECASE)


def test_no_file_names_a_registry_host():
    hosts = re.compile("py" + r"pi\.org|python" + r"hosted\.org|conda\." + r"anaconda\.org|index" + "-url", re.IGNORECASE)
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    texts = [name for name in names if not name.endswith(".png") and name != "tests/test_package.py"]
    assert len(texts) > 80
    assert not [name for name in texts if hosts.search((ROOT / name).read_text("utf-8"))]


def test_one_version_everywhere():
    assert project()["version"] == jaxgen.__version__
    assert f"version: {jaxgen.__version__}" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"## {jaxgen.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_packaged_folders_are_complete():
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE}
    assert folders == set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"])
    assert (ROOT / "jaxgen" / "py.typed").exists()
    for test in re.findall(r"tests/\w+\.py", (ROOT / "SECURITY.md").read_text("utf-8")):
        assert (ROOT / test).exists(), test
