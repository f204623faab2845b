"""Ctrl-C in a process that runs a command or an experiment script: one line and exit code 130, at once, whatever the process is doing.

Python runs a signal's handler in the main thread, between two of its instructions. While that thread compiles a model, which can take
minutes, no handler runs; and an exception that a handler raises inside a callback of jax is printed and lost. So a second thread waits for
signals: Python writes the number of each one into a socket the moment it arrives (`signal.set_wakeup_fd`), and the thread that reads
the socket ends the process, or hands the signal to the training that has asked for it (`Interruption`).

The process ends as if it was killed: its checkpoints are written such that they survive that. Nothing of this happens in a program that
does not call `begin`, such as a notebook. Scripts call `begin` before they import anything else, so this file imports what takes time only
inside functions.
"""

import os
import signal
import sys
import time
from collections.abc import Callable

LINE = "jaxgen: interrupted; checkpoints that were saved before are intact"
INTERRUPTED, PREEMPTED = 130, 75
"""Exit codes after Ctrl-C and after SIGTERM."""
PATIENCE = 2.0
"""Seconds after Ctrl-C until NOTICE is printed, if the training has not stopped by then."""
NOTICE = "jaxgen: Ctrl-C: this step is finished and saved first; Ctrl-C again ends at once"
NOTHING_NEW = "jaxgen: stopped by SIGTERM before the first step; there is nothing new to save, the same command goes on from there"
COMPILING = "jaxgen: interrupted while a program was compiled; the same command goes on from "
BETWEEN = "jaxgen: interrupted between two steps; saved; the same command goes on from there"
COMPILES = ("jax/_src/compiler.py", "jax/_src/interpreters/partial_eval.py", "jax/_src/interpreters/mlir.py")
"""Files of jax whose functions run while it makes a program: tracing, lowering, compiling."""
SAVES = "jaxgen/runs/checkpoint.py"
MAKES = 1.0
"""Seconds of making programs, or between two steps, after Ctrl-C, until the process ends."""

takers: list[Callable[[int], None]] = []
"""The last of them is called for every signal that has a handler, with its number, in the thread that waits for signals."""
last_acts: list[Callable[[], None]] = []
"""What `leave` calls before the process ends. It must take no time; an OSError of it is ignored."""
_watched = False


def begin() -> None:
    """From now on Ctrl-C ends this process within moments, unless a training takes it. Does nothing where the program handles Ctrl-C
    in its own way (a debugger), outside the main thread, which alone may handle signals, and at a second call."""
    global _watched
    if _watched or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    try:
        signal.signal(signal.SIGINT, lambda number, frame: leave())  # until the thread is there
    except ValueError:  # not the main thread
        return
    import atexit
    import socket
    import threading

    receiver, sender = socket.socketpair()
    sender.setblocking(False)  # a signal handler must never wait
    signal.set_wakeup_fd(sender.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(receiver,), name="signals", daemon=True).start()
    signal.signal(signal.SIGINT, lambda number, frame: None)  # the thread does it; without a handler of Python nothing is written
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # all is done, and Python would end as if it was killed
    _watched = True


def leave(code: int = INTERRUPTED, line: str = LINE) -> None:
    """End the process now, with a line on stderr; of its code only `last_acts` run."""
    for act in (*last_acts, lambda: os.write(2, f"{line}\n".encode())):
        try:  # noqa: SIM105  (contextlib may not be imported yet)
            act()
        except OSError:
            pass
    os._exit(code)


def makes_program(frame) -> bool:
    """Whether a frame of Python, or one that called it, is jax making a program, and none is a save of a checkpoint."""
    files = []
    while frame is not None:
        files.append(frame.f_code.co_filename.replace(os.sep, "/"))
        frame = frame.f_back
    return any(file.endswith(COMPILES) for file in files) and not any(file.endswith(SAVES) for file in files)


def _watch(receiver) -> None:
    while number := receiver.recv(1):
        if takers:
            takers[-1](number[0])
        elif number[0] == signal.SIGINT:
            leave()


class Interruption:
    """SIGTERM and Ctrl-C ask the loop to stop after the current step; a second Ctrl-C stops at once.

    In a process that called `begin` they end it at once before the first step of this call is done, even while the step is compiled: there
    is nothing new to save. In any other program Python passes signals on between two instructions of the main thread, and the second
    Ctrl-C raises KeyboardInterrupt.

    Only the main thread may handle signals: in another one none is handled, and a line on stderr says so.

    Nothing can be saved either while a later program is compiled, since the step before it has given its arrays away. Ctrl-C then ends the
    process after MAKES seconds, with a line that says from which step the run goes on: the last of `saved()`, the steps that are saved.
    Between two steps, in a validation that may take minutes, the state is there: after `save_by(save)` Ctrl-C saves it and ends the
    process after MAKES seconds.

    Several processes agree on the step through jax's own preemption notice, which is SIGTERM, so that all save the same one; there Ctrl-C
    is passed on as that notice once a step is done.
    """

    def __init__(self, saved: Callable[[], list[int]] = list):
        import threading

        from jaxgen.processes.printing import say

        self._saved, self._left = saved, False
        self.signal: int | None = None  # what stops the run
        self._asked: int | None = None
        self._first: int | None = None  # the step at which the loop began
        self._trained = False  # whether a step is done, so that there is something to save
        self._save: Callable[[], None] | None = None  # saves the state, between two steps
        self._lock = threading.Lock()  # held while the state is saved by the other thread
        self._notice = threading.Timer(PATIENCE, say, (NOTICE, sys.stderr))
        self._notice.daemon = True

    def __enter__(self):
        import threading

        import jax

        from jaxgen.processes.printing import say

        self._several = jax.process_count() > 1
        wanted = [signal.SIGINT] if self._several else [signal.SIGINT, signal.SIGTERM]
        if threading.current_thread() is not threading.main_thread():
            say("jaxgen: training in a thread: Ctrl-C and SIGTERM do not save, the last checkpoint stays", sys.stderr)
            wanted = []
        self._watched = bool(wanted) and _watched
        if self._watched:
            takers.append(self._take)
        self._before = {number: signal.signal(number, self._handle) for number in wanted}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._watched:
            takers.remove(self._take)
        self._left = True
        self._notice.cancel()

    def _handle(self, number, frame):
        if not self._watched:  # else the other thread has called it already
            self._take(number)

    def _take(self, number: int) -> None:
        """What a signal does, in the main thread or in the one that waits for signals."""
        if number == self._asked == signal.SIGINT:
            if not self._watched:
                raise KeyboardInterrupt
            leave()
        begun, self._asked = self._asked is None, number
        if self._several and (self._trained or not self._watched):
            os.kill(os.getpid(), signal.SIGTERM)
        elif self._watched and not self._trained:
            leave(*((PREEMPTED, NOTHING_NEW) if number == signal.SIGTERM else ()))
        else:
            self.signal = number
        if begun and number == signal.SIGINT:
            self._notice.start()
            if self._watched and not self._several:
                self._end_soon()

    def save_by(self, save: Callable[[], None] | None) -> None:
        """From now on, between two steps, Ctrl-C calls `save()` in another thread and ends the process; None: the next step begins."""
        with self._lock:  # while the other thread saves, this one waits, for the end of the process
            self._save = save

    def _end_soon(self) -> None:
        """Watch the main thread, from a thread of its own, until the run has stopped, or was between two steps or made programs for MAKES
        seconds."""
        import threading

        main_thread, pause = threading.main_thread().ident, 0.05

        def watch():
            spent = 0.0
            while spent < MAKES:
                time.sleep(pause)
                if self._left:
                    return
                spent += pause if self._save or makes_program(sys._current_frames().get(main_thread)) else 0.0
            with self._lock:
                if self._save:
                    try:
                        self._save()
                    except (OSError, ValueError, RuntimeError) as error:  # CheckpointError is a ValueError
                        leave(INTERRUPTED, f"jaxgen: interrupted, and not saved: {error}")
                    leave(INTERRUPTED, BETWEEN)
            steps = self._saved()
            where = f"step {max(steps)}, the last that is saved" if steps else "its beginning: nothing is saved yet"
            leave(INTERRUPTED, COMPILING + where)

        threading.Thread(target=watch, daemon=True).start()

    def __call__(self, step: int) -> bool:
        """Whether to stop after this step."""
        self._first = step if self._first is None else self._first
        self._trained = step > self._first
        if self._several:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self.signal = self._asked or signal.SIGTERM
        return self.signal is not None
