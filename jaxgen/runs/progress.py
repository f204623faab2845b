"""How far a training is: a line every few seconds, in a notebook a bar, and the times that stand in its rows of metrics."""

import sys
import time
import warnings
from collections.abc import Mapping
from typing import Any

from jaxgen.measures.metrics import METRICS
from jaxgen.processes.printing import say

PROGRESS_SECONDS = 10.0
"""The time from one line to the next."""
SHOWN = {name: METRICS[name].unit for name in ("bits_per_dim", "bits_per_dim_bound", "bits_per_character", "accuracy")} | {"loss": "loss"}


class Clock:
    """The time of a training: seconds in all, and examples a second from one row of metrics to the next.

    seconds_before: of the run that this one goes on from, so that the seconds of its rows rise on. Both use a monotonic clock.
    """

    def __init__(self, seconds_before: float = 0.0):
        self._start = time.monotonic() - seconds_before
        self._last: tuple[float, int] | None = None

    def row(self, step: int, batch_size: int, noun: str) -> dict[str, float]:
        """{"seconds": since the first start, "images_per_second": since the last row or `restart`}; the first row has no rate."""
        now, last = time.monotonic(), self._last
        self._last = now, step
        row = {"seconds": now - self._start}
        if last is not None and step > last[1] and now > last[0]:
            row[f"{noun}s_per_second"] = (step - last[1]) * batch_size / (now - last[0])
        return row

    def restart(self, step: int) -> None:
        """Leave out the time up to here, which validation took, from the next row's rate."""
        self._last = time.monotonic(), step


class Progress:
    """One line a while, `step  11/100  bits/dim 0.3636  images/s 32  time left 1:29`, or in a notebook tqdm's bar with the same numbers."""

    def __init__(self):
        self._clock: tuple[float, int, float, int] | None = None  # first time and step, last time and step
        self._bar: Any = None

    def show(self, step: int, steps: int, batch_size: int, metrics: Mapping[str, Any], noun: str) -> None:
        """The first and the last step are shown, and one step in PROGRESS_SECONDS between them; a bar moves with every step."""
        now = time.monotonic()
        first_time, first_step, last_time, last_step = self._clock or (now, step, now, step)
        if self._clock is None and in_notebook():
            self._bar = _bar(step, steps)
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
        if self._clock and now - last_time < (1.0 if self._bar is not None else PROGRESS_SECONDS) and step < steps:
            return
        self._clock = first_time, first_step, now, step
        parts = [f"{label} {float(metrics[name]):.4f}" for name, label in SHOWN.items() if name in metrics][:1]
        if step > last_step and now > last_time:
            rate = (step - last_step) * batch_size / (now - last_time)
            parts.append(f"{noun}s/s {rate:.0f}" if rate >= 10 else f"{noun}s/s {rate:.2f}")
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(parts))
            return
        if len(parts) > 1:
            parts.append(f"time left {_duration((steps - step) * (now - first_time) / (step - first_step))}")
        say("  ".join([f"step {step:>{len(str(steps))}}/{steps}", *parts]))

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def in_notebook() -> bool:
    """Whether this code runs in the kernel of a notebook (Jupyter, Colab), not in a terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def _bar(step: int, steps: int) -> Any:
    """A progress bar: a widget where the notebook shows widgets, else text. tqdm's warning that there are no widgets is not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm

        return tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
