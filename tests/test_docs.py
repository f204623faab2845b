"""The pages of docs/: what they show is run as it stands there."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from jaxgen import __main__

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "your_own_model.md").read_text()
MODEL, LOAD = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TINY = ["--train.steps=20", "--train.eval_every=20", "--train.batch_size=32", "--model.templates=5", "--workdir=runs/templates"]
TINY += ["--report.samples=0", "--report.rulers=False"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the page's model and a run of it, by a process as a user starts it."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "my_model.py").write_text(MODEL)
    command, environment = [sys.executable, "my_model.py", *TINY], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and re.search(r"^test bits_per_dim +\d", done.stdout, re.MULTILINE)
    return folder


@pytest.fixture
def python(folder, monkeypatch, capsys):
    """`python("file.py", *words)` is what `python file.py WORDS` does in the folder, in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))

    def run(file, *words):
        monkeypatch.setattr(sys, "argv", [file, *words])
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(file, run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    yield run
    sys.modules.pop("my_model", None)


def test_a_model_of_ones_own_is_short():
    assert len(MODEL.splitlines()) <= 60


def test_the_commands_of_a_script_work_on_its_run(folder, python):
    shown = re.findall(r"^python my_model.py (evaluate|sample|show) (.*)$", PAGE, re.MULTILINE)
    assert [name for name, _ in shown] == ["evaluate", "sample", "show"]
    outs = {}
    for name, words in shown:
        code, outs[name], err = python("my_model.py", name, *words.split())
        assert (code, err) == (0, ""), name
    assert re.match(r"test bits_per_dim +[\d.]+ \+- [\d.]+ +\(\d+ images\)\n", outs["evaluate"])
    assert outs["sample"].startswith("16 samples, ") and (folder / "runs/templates/samples.png").exists()
    saved, _ = json.JSONDecoder().raw_decode(outs["show"])
    assert saved["model"] == {"class": "TemplatesConfig", "image_shape": [8, 8, 1], "levels": 17, "templates": 5}


def test_it_is_loaded_where_its_class_is_named(folder, python, capsys):
    (folder / "load.py").write_text(LOAD + "print(images.shape, images.dtype)")
    assert python("load.py") == (0, "(16, 8, 8, 1) uint8\n", "")
    code, err = __main__.main(["evaluate", "runs/templates"]), capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1
    assert err.startswith("jaxgen: models: wanted the class of the run's model, which is not one of jaxgen.models, got TemplatesConfig; ")


def test_a_finished_run_says_so_and_a_mistyped_command_is_one_line(python):
    code, out, err = python("my_model.py", *TINY)
    assert (code, err) == (0, "") and "runs/templates is finished at step 20" in out
    code, out, err = python("my_model.py", "evalaute", "runs/templates")
    assert (code, out) == (2, "") and err.count("\n") == 1 and err.endswith("got 'evalaute'; did you mean evaluate?\n")


def test_every_notebook_has_its_own_badge_and_the_same_first_cell():
    links, installs = {}, set()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        links[path.name] = re.findall(r"colab-badge.svg\)\]\(https://\S+/jaxgen/blob/main/notebooks/(\S+)\)", "".join(cells[0]["source"]))
        installs.add(next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
        assert all(cell["outputs"] for cell in cells if cell["cell_type"] == "code" and "show(" in "".join(cell["source"][-1:])), path
    assert len(links) == 6 and links == {name: [name] for name in links} and len(installs) == 1


def test_the_badge_opens_a_notebook_whose_first_cell_keeps_the_jax_of_colab():
    """The same lines stand in the README; outside of Colab the cell does nothing."""
    notebook = json.loads((ROOT / "notebooks" / "autoregressive_images.ipynb").read_text("utf-8"))
    readme, first = (ROOT / "README.md").read_text("utf-8"), "".join(notebook["cells"][0]["source"])
    links = re.findall(r"https://colab\.research\.google\.com/github/OWNER/jaxgen/blob/main/(\S+)\)", readme + first)
    assert len(links) == 2 and all((ROOT / link).exists() for link in links)
    install = next("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert 'if "google.colab" in sys.modules:' in install
    for line in re.findall(r"^[!%].*(?:freeze|install).*$", readme, re.M):
        assert f"    {line}\n" in install + "\n"
    kept = re.search(r'grep -iE "(.*)"', install)[1]
    versions = "numpy==2.0\njax==0.10\njaxlib==0.10\njax-cuda12-plugin==0.10\nlibtpu==0.1\nflax==0.12\njaxgen @ file:///here\n"
    found = subprocess.run(["grep", "-iE", kept], input=versions, capture_output=True, text=True, check=True).stdout
    assert found.split() == ["numpy==2.0", "jax==0.10", "jaxlib==0.10", "jax-cuda12-plugin==0.10", "libtpu==0.1"]
