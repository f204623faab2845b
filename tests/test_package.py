"""The package as a whole: who may import whom, a light start, and what is installed; see test_unsafe.py for what may run code."""

import ast
import graphlib
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

import jaxgen

ROOT = Path(__file__).resolve().parent.parent
CODE = sorted(path for folder in ("jaxgen", "experiments", "tests") for path in (ROOT / folder).rglob("*.py"))
PACKAGE = [path for path in CODE if path.is_relative_to(ROOT / "jaxgen")]

# One way down: a file imports from the rows named for its own, and from the files before it in its own row's order, if it has one.
# A room (a folder) is one word here; what its files may use of each other stands in ROOMS.
MAY_IMPORT = {
    "errors": set(),
    "synonyms": set(),
    "processes": {"errors"},
    "config": {"errors", "synonyms"},
    "commands": {"errors", "config", "processes"},
    "checks": {"config", "errors"},
    "sharding": {"errors", "processes"},
    "distributions": {"errors"},
    "measures": {"errors"},
    "data": {"errors", "processes", "runs"},
    "statistics": {"errors"},
    "attacks": {"errors", "layers"},
    "runs": {"errors", "measures", "processes", "sharding"},
    "sampling": {"errors", "checks", "distributions"},
    "places": {"errors", "checks", "sampling"},
    "layers": {"errors", "config", "checks", "data", "distributions", "sampling", "sharding"},
    "denoising": {"checks", "distributions", "errors"},
    "models": {"errors", "config", "checks", "data", "denoising", "distributions", "layers", "sampling", "statistics"},
    "optimizers": {"errors"},
    "packing": {"sharding"},
    "training": {"errors", "optimizers", "packing", "sharding", "statistics"},
    "reinforcement": {"checks", "errors", "training"},
    "latent": {"data", "errors", "evaluation", "models", "sharding"},
    "trained": {"config", "errors", "models", "runs", "sharding"},
    "stages": {"config", "errors", "models", "runs", "trained", "training"},
    "evaluation": {"data", "errors", "measures", "sharding", "distributions"},
    "benchmark": {"commands", "errors", "config", "data", "denoising", "layers", "measures", "models", "processes", "runs", "sampling"}
    | {"sharding", "training"},
    "reports": {"attacks", "benchmark", "data", "errors", "evaluation", "latent", "measures", "models", "runs", "sharding", "stages"}
    | {"trained"},
    "experiment": {"config", "data", "errors", "evaluation", "measures", "models", "processes", "reports", "runs", "sharding", "stages"}
    | {"trained", "training"},
    "notebook": {"data", "errors", "experiment", "models", "runs", "stages", "trained", "training"},
    "run_commands": {"benchmark", "checks", "commands", "config", "data", "errors", "experiment", "models", "processes", "reports", "runs"}
    | {"sharding", "trained"},
    "cli": {"commands", "config", "errors", "experiment", "models", "processes", "reports", "run_commands", "runs", "sharding", "stages"}
    | {"trained", "training"},
    "__main__": {"errors", "cli", "commands", "processes"},
}
# Inside a room: a file and the files of its room that it may import.
ROOMS = {
    "data": {
        **dict.fromkeys(("archives", "augment", "box_filter", "kind", "simple_molecules", "tokenizers"), set()),
        "features": {"box_filter"},
        "arrays": {"features"},
        "class_names": {"archives"},
        "decoding": {"archives"},
        "pictures": {"archives", "class_names", "decoding"},
        "pairs": {"archives", "box_filter", "decoding", "features", "pictures"},
        "images": {"archives", "arrays", "decoding", "features", "kind", "pairs", "pictures"},
        "tfds": {"arrays", "features", "images", "kind"},
        "series": {"archives", "arrays", "features", "kind"},
        "dataset": {"arrays", "features", "images", "series", "tfds"},
        "points": {"arrays", "dataset", "features", "kind"},
        "text": {"arrays", "features", "images", "kind", "simple_molecules", "tokenizers"},
        "photographs": {"arrays", "features", "kind"},
        "loading": {"augment", "class_names", "dataset", "decoding", "features", "images", "kind", "pairs", "photographs", "points"}
        | {"series", "text", "tfds"},
        "__init__": {"dataset", "loading"},
    },
    "layers": {
        "convolutions": set(),
        "attention": {"convolutions", "growing_caches"},
        **dict.fromkeys(("autoregressive", "fronts", "logistic_mixture", "masked"), {"convolutions"}),
        **dict.fromkeys(("causal_convolutions", "masked_dense", "residual_cells", "spectral", "weight_norm"), {"convolutions"}),
        **dict.fromkeys(("adversarial", "bijections", "dequantised", "diagonals", "growing_caches", "learned_schedule", "strings"), set()),
        "recurrent": {"convolutions", "masked"},
        "transformer": {"attention", "convolutions"},
        "denoiser_parts": {"attention", "convolutions"},
        "denoising_mlp": {"denoiser_parts", "residual_cells"},
        "dit": {"denoiser_parts", "residual_cells"},
        "unet": {"convolutions", "denoiser_parts", "residual_cells"},
        "image_networks": {"convolutions", "logistic_mixture"},
        "pixelcnn_fronts": {"convolutions", "fronts", "masked"},
        "gated_resnet": {"autoregressive", "convolutions", "weight_norm"},
        "gan_networks": {"convolutions", "spectral"},
        "image_to_image": {"convolutions"},
        "image_flows": {"dequantised"},
        "denoising_network": {"convolutions", "denoising_mlp", "dit", "unet"},
        "__init__": set(),
    },
    "denoising": {
        "schedules": set(),
        "bound": {"schedules"},
        "exact": {"schedules"},
        "samplers": {"exact", "schedules"},
        "ode": {"exact", "schedules"},
        "transport": set(),
        "__init__": set(),
    },
    "evaluation": {
        "likelihoods": set(),
        "sample_quality": {"likelihoods"},
        "features": set(),
        "__init__": {"features", "likelihoods", "sample_quality"},
    },
    "attacks": {
        "losses": set(),
        "balls": set(),
        "loops": set(),
        "inputs": {"balls"},
        "functions": {"inputs"},
        "audits": {"balls", "gradient", "inputs", "losses"},
        **dict.fromkeys(("black_box", "physical"), {"balls", "gradient", "inputs", "loops", "losses"}),
        **dict.fromkeys(("gradient", "inside", "minimal", "nets"), {"balls", "inputs", "loops", "losses"}),
        "robustness": {"functions", "inputs"},
        "__init__": {"audits", "black_box", "functions", "gradient", "inputs", "inside", "losses", "minimal", "nets", "physical"}
        | {"robustness"},
    },
    "latent": {
        **dict.fromkeys(("codes", "generative_classifier", "neighbours"), set()),
        "__init__": {"codes", "generative_classifier", "neighbours"},
    },
    "measures": dict.fromkeys(("metrics", "flops", "frechet", "jackknife", "neighbours", "train_on_samples", "__init__"), set())
    | dict.fromkeys(("pairs", "molecules", "n_gram", "n_gram_samples"), set())
    | {"kernel_distance": {"jackknife"}, "classifier_score": {"jackknife"}, "memorisation": {"neighbours"}}
    | {"scores": {"metrics"}},
    "processes": {
        "printing": set(),
        "interruption": {"printing"},
        "memory": set(),
        "roll_call": {"printing"},
        "__init__": set(),
    },
    "reports": {
        **dict.fromkeys(("drawing", "__init__"), set()),
        **dict.fromkeys(("attacked", "final_report", "game", "latent_verbs", "molecules", "quality"), {"drawing"}),
        "first_line": {"drawing", "final_report"},
    },
    "runs": {
        "leaves": set(),
        "lock": set(),
        "directory": set(),
        "manifest": {"directory"},
        "storage": set(),
        "checkpoint": {"directory", "leaves", "lock", "manifest", "storage"},
        "figures": set(),
        "progress": set(),
        "report": {"directory", "figures", "progress"},
        "__init__": set(),
    },
}

# A model that is made of others: their files.
COMPOSED = {
    "conditional_gan": {"gan"},
    "deep_gmm": {"gmm"},
    "latent_diffusion": {"diffusion", "vae"},
    "rulers": {"multivariate_gaussian", "uniform"},  # no model of a run: what the models of runs are compared with
    "vae_gan": {"vae"},
    "vqvae2": {"gated_pixelcnn", "pixelsnail", "vqvae", "vqvae2_codes"},
    "vqvae2_codes": {"vqvae"},
}


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


def inside_its_room(path):
    """The files of its own room that a file imports."""
    return {name.split(".")[2] for name in imports(path) if name.startswith(f"jaxgen.{part(path)}.")}


@pytest.mark.parametrize("path", [p for p in PACKAGE if p != ROOT / "jaxgen" / "__init__.py"], ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    room = part(path)
    assert room in MAY_IMPORT, f"{path.name} is new: give it its row above"
    assert not dependencies(path) - MAY_IMPORT[room] - {room}
    if room in ROOMS:
        assert path.stem in ROOMS[room], f"{path.name} is new in its room: give it its row above"
        assert not inside_its_room(path) - ROOMS[room][path.stem]
    if room == "models":
        assert {name.split(".")[2] for name in imports(path) if name.startswith("jaxgen.data.")} <= {"features", "series"}
    if room == "models" and path.stem != "__init__":
        assert inside_its_room(path) <= COMPOSED.get(path.stem, set()), "a model imports another one only where the paper composes them"


def test_imports_have_no_cycle():
    files = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE}
    graph = {}
    for name, path in files.items():
        if name != "jaxgen.__init__":
            words = {word for word in imports(path) if word.startswith("jaxgen.")}
            graph[name] = {other for other in files if any(word == other or word.startswith(f"{other}.") for word in words)}
            graph[name] |= {other for other in files if other.removesuffix(".__init__") in words and other.endswith(".__init__")}
    assert len(graph) > 30 and graph["jaxgen.training"] >= {"jaxgen.sharding", "jaxgen.errors"}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_training_and_commands_name_no_model():
    for path in PACKAGE:
        if part(path) != "models":
            named = {name for name in imports(path) if name.startswith("jaxgen.models.")}
            assert named <= {f"jaxgen.models.{name}" for name in ("MODELS", "RULERS", "build", "count_parameters")}, path


@pytest.mark.parametrize("script", sorted((ROOT / "experiments").glob("*.py")), ids=lambda path: path.name)
def test_experiments_import_only_the_public_surface(script):
    parts = {"layer_speed": {"benchmark", "layers"}, "code_prior_speed": {"benchmark"}, "compare_inversion": {"benchmark"}}
    parts |= {"sampler_steps": {"denoising"}, "completions": {"denoising"}, "compare_gans": {"sharding"}}
    parts |= {"gan_pictures": {"reports", "runs"}, "autoregression_sunspots": {"runs"}}
    parts |= {"stack_gru_smiles": {"measures", "reinforcement", "runs"}}
    parts |= dict.fromkeys(("attacks_curves", "attacks_pictures", "attacks_unseen"), {"attacks"})
    measures = parts.get(script.stem, set())  # what is timed, compared or drawn
    first = {"processes"} if script.name == "__init__.py" else set()  # what runs before any script
    assert dependencies(script) <= {"cli", "models", "data", "stages", "training", "experiment", "evaluation"} | measures | first, script


def test_nothing_is_longer_than_400_lines():
    long = {str(path): lines for path in CODE if (lines := len(path.read_text("utf-8").splitlines())) > 400}
    assert not long


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
from jaxgen import config, data, distributions, evaluation, layers, models, sampling, sharding, training
from jaxgen.runs import checkpoint, report
print(*[name for name in {HEAVY} if name in set(sys.modules) - before])
from jax._src import xla_bridge
print("devices" if xla_bridge.backends_are_initialized() else "")
"""
    assert python(code) == []


def test_all_submodules_are_listed_and_known_to_editors():
    """dir(jaxgen), __all__ and the imports that type checkers read name every file and folder of the package, and the two functions."""
    here = {path.relative_to(ROOT / "jaxgen").parts[0].removesuffix(".py") for path in PACKAGE} - {"__init__", "__main__"}
    assert set(dir(jaxgen)) == set(jaxgen.__all__) == here | {"__version__", "load", "train"}
    for name in here:
        assert getattr(jaxgen, name).__name__ == f"jaxgen.{name}"
    (block,) = (node for node in tree(ROOT / "jaxgen" / "__init__.py").body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    known = {f"{node.module}.{alias.name}" for node in block.body for alias in node.names}
    assert known == {f"jaxgen.{name}" for name in here} | {f"{module}.{name}" for name, module in jaxgen._FUNCTIONS.items()}


def test_help_and_mistakes_need_no_jax():
    code = """
import sys
from jaxgen.__main__ import main
assert main(["--help"]) == 0 and main([]) == 0 and main(["help"]) == 0 and main(["--version"]) == 0 and main(["trian"]) == 2
assert main(["evaluate", "runs/x", "--stp=3"]) == 2 and main(["sample"]) == 2
try:
    main(["sample", "--help"])
except SystemExit as end:
    assert end.code == 0
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
    assert main(["--verson"]) == 2 and "did you mean --version?" in capsys.readouterr().err


def test_help_and_version(capsys):
    from jaxgen.__main__ import main

    assert main(["--version"]) == 0 and capsys.readouterr().out == f"jaxgen {jaxgen.__version__}\n"
    assert main(["--help"]) == 0
    wanted = capsys.readouterr().out
    assert main(["help"]) == 0 and capsys.readouterr().out == wanted and "jaxgen help COMMAND" in wanted
    for words in (["sample", "--help"], ["help", "sample"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0 and capsys.readouterr().out.startswith("usage: jaxgen sample ")
