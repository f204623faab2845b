"""`jaxgen train` in a process of its own, forked from a server that has imported the package and computed nothing: it begins at once.

Started with the interpreter, each of these processes would import for seconds. Here is little to import: a process does that, too.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["jaxgen.cli", "orbax.checkpoint"])


def train(words: Sequence[str], out: Path, err: Path, patch: Callable[[], None] | None) -> None:
    """The command without the report at its end and without curves; what it prints goes into these files."""
    for path, descriptor in ((out, 1), (err, 2)):
        with open(path, "wb") as file:
            os.dup2(file.fileno(), descriptor)
    from compiling import in_a_process

    from jaxgen import __main__, cli
    from jaxgen.runs import figures

    in_a_process()
    cli.finish = lambda experiment: None
    figures.curve = lambda *_: b""
    if patch is not None:
        patch()
    sys.argv = ["jaxgen", *words]
    sys.exit(__main__.main())


def _killed_inside_a_save(after: bool) -> None:
    from jaxgen.runs import manifest

    write, saves = manifest.write, []

    def killer(*args, **options):
        saves.append(1)
        if len(saves) == 2 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*args, **options)
        if len(saves) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    manifest.write = killer


def killed_before_the_manifest() -> None:
    """Kills itself inside its second save: after the arrays, before the manifest that makes them a checkpoint."""
    _killed_inside_a_save(after=False)


def killed_after_the_manifest() -> None:
    """The same after the manifest."""
    _killed_inside_a_save(after=True)


def slow_steps(seconds: float) -> None:
    """Every step takes so much longer, so that what a test does falls between two of them."""
    from jaxgen.processes import interruption

    go_on = interruption.Interruption.__call__
    interruption.Interruption.__call__ = lambda self, step: time.sleep(seconds) or go_on(self, step)


def steady() -> None:
    """Steps of a tenth of a second, so that the run is not over before a signal comes, on a busy machine too; and Ctrl-C waits for the end
    of its step however long the validation's programs take to compile."""
    from jaxgen.processes import interruption

    slow_steps(0.1)
    interruption.MAKES = 100.0


def slow_save() -> None:
    """As `steady`, and saves so slowly, with half of the files written, that a second Ctrl-C comes in time."""
    from jaxgen.runs import storage

    steady()
    save = storage.save

    def slow(*args):
        save(*args)
        print("saving", flush=True)
        time.sleep(100)

    storage.save = slow


def slow_validation() -> None:
    """Validates for longer than anybody waits."""
    from jaxgen import evaluation

    def slow(*args, **options):
        print("validating", flush=True)
        time.sleep(100)

    evaluation.evaluate = slow
