"""Ctrl-C ends a process of a command at once, from its first import to its report, even where Python cannot run a signal's handler.

The moments are processes forked from one that has imported jax and not used it yet. `stuck` is what a compilation is to Python: a call in C
that returns late and lets other threads run.
"""

import subprocess
import sys
from pathlib import Path

from jaxgen.processes import interruption

ROOT = Path(__file__).resolve().parent.parent

MOMENTS = """
import ctypes, os, signal, sys, threading, time
import jax
from pathlib import Path
from jaxgen import training
from jaxgen.processes import interruption
from jaxgen.processes.interruption import Interruption
from jaxgen.runs.lock import RunLock
from etils import epath

libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)

def stuck(number):
    threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)  # waits for ever

def report():
    stuck(signal.SIGINT)

def locked():
    RunLock(epath.Path(sys.argv[1]), True)
    stuck(signal.SIGINT)

def first_step(number=signal.SIGINT):
    with Interruption() as stop:
        assert not stop(7)
        stuck(number)

def first_step_sigterm():
    first_step(signal.SIGTERM)

def second_step():  # finished and saved: Ctrl-C once is no end
    with Interruption() as stop:
        assert not stop(7) and not stop(8)
        os.kill(os.getpid(), signal.SIGINT)
        while not stop(9):
            time.sleep(0.01)
        os.write(2, b"saved\\n")
        stuck(signal.SIGINT)

def callback():  # an exception of a handler would be printed here and lost
    class Freed:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    Freed()
    os._exit(1)

for moment in (report, locked, first_step, first_step_sigterm, second_step, callback):
    start, child = time.monotonic(), os.fork()
    if not child:
        interruption.begin()
        moment()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(moment.__name__, code, "late" if time.monotonic() - start > 5 else "in time", flush=True)
"""
# The script's own imports; the signal comes when it asks for jax.
IMPORTING = """
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "jax":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["-m"]
import experiments.vae_digits
"""


def test_every_moment_ends_at_once(tmp_path):
    done = subprocess.run([sys.executable, "-c", MOMENTS, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    codes = {"report": 130, "locked": 130, "first_step": 130, "first_step_sigterm": 75, "second_step": 130, "callback": 130}
    assert done.stdout.splitlines() == [f"{name} {code} in time" for name, code in codes.items()]
    line, new = interruption.LINE, interruption.NOTHING_NEW
    assert done.stderr.splitlines() == [line, line, line, new, "saved", line, line]
    assert (tmp_path / "lock").read_text() == ""  # so the next run does not speak of a run that is gone


def test_while_a_script_imports_jax():
    done = subprocess.run([sys.executable, "-c", IMPORTING], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", interruption.LINE + "\n")
