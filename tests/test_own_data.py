"""A kind of data and a model that the package does not know, one file each, through every command: those of docs/your_own_data.md."""

import importlib
import itertools
import json
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

import jaxgen
from jaxgen import cli, commands
from jaxgen.errors import ConfigError
from jaxgen.runs import directory

ROOT = Path(__file__).resolve().parent.parent
DATA, MODEL, *_ = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "your_own_data.md").read_text(), re.DOTALL)
WORDS = ["--data.name=mine", "--data.first=1", "--train.steps=20", "--train.eval_every=10", "--train.batch_size=32"]
SCORES = np.array([2.0, 1.0, 0.0, -1.0, 0.5])


def write_rankings(folder):
    """Files of the outsider's format, drawn from the model with SCORES; the items are numbered from 1."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for split, n in (("train", 200), ("validation", 30), ("test", 40)):
        rankings = np.argsort(-(SCORES + generator.gumbel(size=(n, 5))), axis=1)
        np.savetxt(folder / f"{split}.txt", rankings + 1, fmt="%d")


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The module of the model, in a folder of its own with a run, `runs/ranker`."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_rankings.py").write_text(DATA)
    (folder / "my_ranker.py").write_text(MODEL)
    write_rankings(folder / "mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.chdir(folder)
        yield importlib.import_module("my_ranker")


@pytest.fixture(scope="module")
def trained(script):
    """The script after a first run."""
    with pytest.raises(SystemExit) as end:
        cli.main(script.experiment, argv=WORDS)
    assert end.value.code == 0
    return script


@pytest.fixture
def run(script, capsys):
    """`run(words)`: (exit code, stdout, stderr) of `python my_ranker.py WORDS`."""

    def run(*words):
        with pytest.raises(SystemExit) as end:
            cli.main(script.experiment, argv=words)
        return end.value.code, *capsys.readouterr()

    return run


def test_both_files_are_short():
    assert len(DATA.splitlines()) <= 50 and len(MODEL.splitlines()) <= 60


def test_help_shows_the_fields_of_the_data(run):
    code, out, _ = run("--help")
    assert code == 0 and "--data.first INT" in out and "--data.name STR" in out and "default: rankings" in out


def test_a_dry_run_reads_no_data(run):
    code, out, err = run("--dry-run", "--data.name=not there")
    assert (code, err) == (0, "") and "not there, not read; rankings of 5 items, as the model says" in out
    assert re.search(r"^parameters +5$", out, re.MULTILINE) and re.search(r"^batch +64 rankings", out, re.MULTILINE)


def test_training_goes_on_where_it_stopped_and_starts_over(trained, run):
    code, out, err = run(*WORDS, "--train.steps=30", "--data.name=./mine")
    assert code == 0 and "resumed from step 20 of 30, data position 640 rankings" in out and "data.name changed" in err
    assert re.search(r"step 30 +validation bits_per_ranking \d", out)
    assert re.search(r"^test bits_per_ranking +\d.*\(40 rankings\)$", out, re.MULTILINE)
    code, out, _ = run(*WORDS)
    assert code == 0 and "runs/ranker is finished at step 30" in out
    code, out, err = run(*WORDS, "--restart")
    assert (code, err) == (0, "") and "training to step 20" in out
    assert len(Path("runs/ranker/images/samples_00000020.txt").read_text().splitlines()) == 64


def test_every_command_takes_the_run(trained, run):
    code, out, err = run("evaluate", "runs/ranker")
    model, test = jaxgen.load("runs/ranker", models=[trained.RankerConfig]), np.loadtxt("mine/test.txt", int) - 1
    bits = -np.asarray(model.log_prob(test)) / math.log(2)
    wanted = f"test bits_per_ranking       {bits.mean():.4f} +- {bits.std(ddof=1) / 40**0.5:.4f}  (40 rankings)\n"
    assert (code, err) == (0, "") and out.startswith(wanted)
    code, out, err = run("sample", "runs/ranker", "--n", "7")
    assert (code, err) == (0, "") and re.match(r"7 samples, [\d.]+ rankings/s .*samples.txt\n", out)
    drawn = [sorted(map(int, line.split())) for line in Path("runs/ranker/samples.txt").read_text().splitlines()]
    assert drawn == [[0, 1, 2, 3, 4]] * 7
    code, out, err = run("show", "runs/ranker")
    saved, _ = json.JSONDecoder().raw_decode(out)
    assert code == 0 and saved["data"]["class"] == "RankingData" and saved["data"]["first"] == 1
    assert "bits_per_ranking" in out and "parameters  5\n" in out


def test_bench_measures_it(trained, run, monkeypatch):
    monkeypatch.setattr("jaxgen.benchmark.pin", lambda cores: None)
    monkeypatch.setattr("jaxgen.benchmark.PEAK_SIZES", {"cpu": (32,)})
    code, out, err = run("bench", "runs/ranker", "--batches", "2", "--repetitions", "1", "--train_batch", "2")
    rows = json.loads(Path("runs/ranker/bench.json").read_text())["results"]
    assert (code, err) == (0, "") and {row["method"] for row in rows} == {"sample", "train"}


OF_IMAGES = "model: wanted a model of images, got Ranker of rankings of 5 items"
CANNOT = {
    "quality": "RUN: wanted a model that draws images, points or strings, got Ranker",
    "complete": "RUN: wanted a model that can complete images or strings, or continue a series, got Ranker",
    "upscale": r"RUN: wanted a model that upscales images \(low_resolution is set\), got Ranker",
    "reconstruct": OF_IMAGES,
    "interpolate": OF_IMAGES,
    "traverse": OF_IMAGES,
    "codemap": r"model: wanted a model whose codes are vectors \(.+\), got Ranker",
    "neighbours": "model: wanted a model of images or of points, which have squared distances, got a model of rankings of 5 items",
    "classify": r"model: wanted a class-conditional model with a likelihood or a bound \(.+\), got Ranker without a given label",
    "attack": "RUN: wanted a classifier of images, got Ranker",
}
CAN = ["evaluate", "sample", "show", "bench"]


@pytest.mark.parametrize("command", CANNOT)
def test_what_it_cannot_do_is_one_line(trained, run, command):
    before = sorted(Path("runs/ranker").rglob("*"))
    code, out, err = run(command, "runs/ranker")
    assert (code, out) == (2, "") and re.fullmatch(f"jaxgen: {CANNOT[command]}\n", err)
    assert sorted(Path("runs/ranker").rglob("*")) == before


def test_each_command_is_tried_above():
    assert sorted([*CAN, *CANNOT]) == sorted(commands.COMMANDS)


def test_the_command_of_the_library_says_which_script_knows_the_data(trained, capsys):
    assert cli.command("show", ["runs/ranker"], models=[trained.RankerConfig]) == 2
    assert capsys.readouterr().err == (
        "jaxgen: data: wanted the class of the library, got RankingData; the script that trained it: python my_model.py COMMAND RUN\n"
    )


def test_training_in_python(script):
    train = script.RankingData("mine", first=1).load("train")
    model = jaxgen.train(script.RankerConfig(), train, steps=60, learning_rate=0.1, eval_every=60)
    every = np.array(list(itertools.permutations(range(5))))
    assert np.exp(np.asarray(model.log_prob(every))).sum() == pytest.approx(1, abs=1e-5)
    scores = np.asarray(model.scores[...])
    assert np.argsort(scores).tolist() == np.argsort(SCORES).tolist()


@pytest.mark.parametrize(
    "words, code, wanted",
    [
        (["--data.first=0"], 3, "jaxgen: mine:ranking: wanted each of the items 0..4 once in every row, got 200 other rows\n"),
        (["--data.name=other"], 3, f"jaxgen: {Path('other/train.txt')}: wanted a file with one ranking a line, got nothing there\n"),
        (["--model.items=4"], 3, "jaxgen: mine/train: wanted rankings of 4 items as the model, got rankings of 5 items\n"),
        (["--data.fisrt=1"], 2, "jaxgen: --data.fisrt: wanted a known option, got an unknown one; did you mean --data.first?\n"),
        (["--data.augment=flip"], 2, "jaxgen: --data.augment: wanted none, since only images are augmented, got flip\n"),
        (["--report.metrics=frechet_pixels"], 2, "jaxgen: --report.metrics: wanted some of bits_per_ranking, nats, which"),
    ],
)
def test_mistakes_are_one_line(run, words, code, wanted):
    got, _, err = run(*WORDS, "--workdir=runs/none", *words)
    assert got == code and err.startswith(wanted) and err.count("\n") == 1


def test_a_model_without_a_likelihood_is_refused_before_it_trains(script, run, monkeypatch):
    monkeypatch.delattr(script.Ranker, "log_prob")
    code, out, err = run(*WORDS, "--workdir=runs/none")
    wanted = "log_prob or elbo, since samples of rankings of 5 items are not compared with a set"
    assert code == 2 and "validation" not in out and err == f"jaxgen: model: wanted {wanted}, got Ranker with neither\n"


def test_the_fingerprint_has_the_sizes_of_a_new_kind(script):
    data = script.RankingData("mine", first=1).load("train")
    print_of = data.fingerprint(32, 0)
    assert print_of["features"] == {"ranking": {"class": "Ranking", "items": 5}}
    config = {"model": {"class": "RankerConfig"}}
    larger = print_of | {"features": {"ranking": {"class": "Ranking", "items": 6}}}
    with pytest.raises(ConfigError, match="features.ranking.items changed from 5 to 6"):
        directory.check_same_run(epath.Path("x"), {"config": config, "fingerprint": print_of}, config, larger)
    old = {name: value for name, value in print_of.items() if name != "features"}
    directory.check_same_run(epath.Path("x"), {"config": config, "fingerprint": old}, config, print_of)
    assert jax.tree.all(jax.tree.map(lambda one, other: one == other, json.loads(json.dumps(print_of)), print_of))
