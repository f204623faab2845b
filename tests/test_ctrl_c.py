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

def first_step_of_several():
    jax.process_count = lambda: 2
    first_step()

def compiled(inside, number=signal.SIGINT):
    from jax._src import compiler
    compiler.backend_compile_and_load = lambda *_, **__: inside()
    with Interruption(lambda: [3, 5]) as stop:
        assert not stop(7) and not stop(8)
        jax.jit(lambda x: x * time.time())(1.0)

def later_program():
    compiled(lambda: stuck(signal.SIGINT))

def saved_first():  # by a function of the file that saves
    def inside():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.7)
        os.write(2, b"saved\\n")
        os._exit(7)
    exec(compile("compiled(inside)", "x/jaxgen/runs/checkpoint.py", "exec"), globals() | {"inside": inside})

def between(save, number=signal.SIGINT):  # in a validation, say
    with Interruption(lambda: [3]) as stop:
        assert not stop(7) and not stop(8)
        stop.save_by(save)
        stuck(signal.SIGINT)

def validation():
    between(lambda: os.write(2, b"saved\\n"))

def validation_full_disk():
    def full():
        raise OSError("no space left")
    between(full)

def step_after_validation():  # the state is given away again: nothing may save it
    with Interruption(lambda: [3]) as stop:
        assert not stop(7) and not stop(8)
        stop.save_by(lambda: os._exit(9))
        stop.save_by(None)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.5)
        assert stop(9)
        os.write(2, b"saved\\n")
        os._exit(7)

def done():
    import atexit
    atexit._run_exitfuncs()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)
    os._exit(0)

ALL = (report, locked, first_step, first_step_sigterm, second_step, callback, first_step_of_several)
ALL += (later_program, saved_first, validation, validation_full_disk, step_after_validation, done)
start, children = time.monotonic(), {}
for moment in ALL:  # all at once: most of them only wait
    child = os.fork()
    if not child:
        os.dup2(os.open(f"{sys.argv[2]}/{moment.__name__}", os.O_WRONLY | os.O_CREAT), 2)
        interruption.begin()
        moment()
    children[moment.__name__] = child
for name, child in children.items():
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(name, code, "late" if time.monotonic() - start > 5 else "in time", flush=True)
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


def test_every_moment_ends_at_once(tmp_path_factory):
    """What each moment wrote on stderr, and the code with which it ended."""
    run, errors = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("errors")
    done = subprocess.run([sys.executable, "-c", MOMENTS, run, errors], cwd=ROOT, capture_output=True, text=True, timeout=120)
    line, new = interruption.LINE, interruption.NOTHING_NEW
    ends = {"report": (130, line), "locked": (130, line), "first_step": (130, line), "first_step_sigterm": (75, new)}
    ends |= {"second_step": (130, "saved", line), "callback": (130, line), "first_step_of_several": (130, line)}
    ends |= {"later_program": (130, interruption.COMPILING + "step 5, the last that is saved"), "saved_first": (7, "saved")}
    ends |= {"validation": (130, "saved", interruption.BETWEEN), "step_after_validation": (7, "saved"), "done": (0,)}
    ends |= {"validation_full_disk": (130, "jaxgen: interrupted, and not saved: no space left")}
    assert sorted(done.stdout.splitlines()) == sorted(f"{name} {code} in time" for name, (code, *_) in ends.items()) and not done.stderr
    assert {name: (errors / name).read_text().splitlines() for name in ends} == {name: said for name, (_, *said) in ends.items()}
    assert (run / "lock").read_text() == ""  # so the next run does not speak of a run that is gone


def test_while_a_script_imports_jax():
    done = subprocess.run([sys.executable, "-c", IMPORTING], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", interruption.LINE + "\n")


STARTING = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == sys.argv[2]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from jaxgen.__main__ import main
main()
"""


def test_the_command_is_ready_before_it_imports_anything_that_takes_time():
    for name in ("socket", "logging", "difflib", "tyro"):
        done = subprocess.run([sys.executable, "-c", STARTING, "show", name], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", interruption.LINE + "\n"), name
