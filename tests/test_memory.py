"""Processes of commands keep the memory that they free; others, and those with settings of malloc of their own, do not. What a training
step of the denoising networks holds."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

PIECE = 2**26
COUNT = f"""
import resource
piece = b"x" * {PIECE}
first = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    del piece
    piece = b"x" * {PIECE}
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - first)
"""
KEEP = "from jaxgen.processes.memory import keep_freed; keep_freed()"
BEGIN = "import sys; sys.argv[0] = '-m'; import experiments"  # as `python -m experiments.NAME` begins
COMMAND = "import sys; sys.argv = ['jaxgen', '--version']; from jaxgen.__main__ import main; main()"
SCRIPT = """
import sys; sys.argv = ['own.py', '--no_such_option']
from jaxgen import cli, data, models
try: cli.main(cli.Experiment(model=models.VAEConfig(), data=data.DataConfig("digits")))
except SystemExit: pass
"""
glibc = pytest.mark.skipif(sys.platform != "linux" or os.confstr("CS_GNU_LIBC_VERSION") is None, reason="glibc on Linux only")


def pages(program: str, **environment: str) -> float:
    """How often a page of the piece is touched for the first time again, when the piece is freed and asked for four times."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", program + COUNT], env=kept | environment, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / (PIECE / os.sysconf("SC_PAGE_SIZE"))


@glibc
@pytest.mark.parametrize("program", [KEEP, BEGIN, COMMAND, SCRIPT])
def test_a_command_and_a_script_find_freed_memory_in_place(program):
    assert pages(program + "\n") < 0.1


@glibc
@pytest.mark.parametrize("program, environment", [("", {}), (KEEP, {"MALLOC_ARENA_MAX": "4"}), ("import experiments", {})])
def test_others_do_as_before(program, environment):
    assert pages(program + "\n", **environment) > 3.9


@pytest.fixture
def page(monkeypatch):
    """experiments/memory.py."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent))
    return importlib.import_module("experiments.memory")


@pytest.mark.parametrize(("network", "share"), [("unet", 0.3), ("dit", 0.1)])
def test_what_a_training_step_keeps_is_below_1_gb_and_remat_keeps_a_part_of_it(page, network, share):
    """32 x 32 x 3, a batch of 64, the default sizes: arrays that are kept from the loss for its gradient."""
    as_it_is, again = (page.kept(page.denoiser(network, remat)) for remat in (False, True))
    assert again < share * as_it_is < share * 1e9


@pytest.mark.skipif("JAXGEN_THOROUGH" not in os.environ, reason="make thorough has it")
def test_a_compiled_training_step_of_the_unet_holds_less_than_4_gb(page):
    """The same sizes: all that the compiler reserves, and the state; nothing is computed."""
    assert page.held(page.compiled_step(page.denoiser("unet", remat=False))) < 4e9
