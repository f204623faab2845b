"""The pages of docs/: what they show is run as it stands there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "your_own_model.md").read_text()
MODEL, LOAD = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TINY = ["--train.steps=20", "--train.eval_every=20", "--train.batch_size=32", "--model.templates=5", "--workdir=runs/templates"]


def python(*words, cwd):
    """(exit code, stdout, stderr) of `python WORDS`."""
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """A folder with the page's model and a run of it."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "my_model.py").write_text(MODEL)
    code, out, err = python("my_model.py", *TINY, cwd=folder)
    assert (code, err) == (0, "") and re.search(r"^test bits_per_dim +\d", out, re.MULTILINE)
    return folder


def test_a_model_of_ones_own_is_short():
    assert len(MODEL.splitlines()) <= 60


def test_the_commands_of_a_script_work_on_its_run(script):
    shown = re.findall(r"^python my_model.py (evaluate|sample|show) (.*)$", PAGE, re.MULTILINE)
    assert [name for name, _ in shown] == ["evaluate", "sample", "show"]
    outs = {}
    for name, words in shown:
        code, outs[name], err = python("my_model.py", name, *words.split(), cwd=script)
        assert (code, err) == (0, ""), name
    assert re.match(r"test bits_per_dim +[\d.]+ \+- [\d.]+ +\(\d+ images\)\n", outs["evaluate"])
    assert outs["sample"].startswith("16 samples, ") and (script / "runs/templates/samples.png").exists()
    saved, _ = json.JSONDecoder().raw_decode(outs["show"])
    assert saved["model"] == {"class": "TemplatesConfig", "image_shape": [8, 8, 1], "levels": 17, "templates": 5}


def test_it_is_loaded_where_its_class_is_named(script):
    code, out, err = python("-c", LOAD + "print(images.shape, images.dtype)", cwd=script)
    assert (code, out, err) == (0, "(16, 8, 8, 1) uint8\n", "")
    code, _, err = python("-m", "jaxgen", "evaluate", "runs/templates", cwd=script)
    assert code == 2 and err.count("\n") == 1
    assert err.startswith("jaxgen: models: wanted the class of the run's model, which is not one of jaxgen.models, got TemplatesConfig; ")


def test_a_finished_run_says_so_and_a_mistyped_command_is_one_line(script):
    code, out, err = python("my_model.py", *TINY, cwd=script)
    assert (code, err) == (0, "") and "runs/templates is finished at step 20" in out
    code, out, err = python("my_model.py", "evalaute", "runs/templates", cwd=script)
    assert (code, out) == (2, "") and err.count("\n") == 1 and err.endswith("got 'evalaute'; did you mean evaluate?\n")
