"""How far a training is: lines in a terminal, a bar in a notebook, and the times in its rows of metrics."""

import json
import sys
import types

import jax.numpy as jnp
import pytest

from jaxgen.runs import progress, report
from jaxgen.runs.progress import Clock


@pytest.fixture(name="start")
def start_reporter():
    """`start(...)` is a Reporter that the end of the test closes."""
    begun = []
    yield lambda *args: begun.append(report.Reporter(*args)) or begun[-1]
    for one in begun:
        one.close()


@pytest.fixture
def now(monkeypatch):
    """The monotonic clock, [seconds]."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_progress_has_rate_and_time_left_and_one_line_each_interval(start, tmp_path, now, monkeypatch, capsys):
    """One step a second at batch 32; the wall clock jumps back an hour, which must not show."""
    monkeypatch.setattr(progress.time, "time", lambda: 1e9 - 3600 * now[0])
    reporter = start(tmp_path)
    for step in range(1, 101):
        reporter.progress(step, 100, 32, {"bits_per_dim": jnp.float32(4) / step, "loss": 9.0})
        now[0] += 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step   1/100  bits/dim 4.0000"
    assert lines[1] == "step  11/100  bits/dim 0.3636  images/s 32  time left 1:29"
    assert lines[-1] == "step 100/100  bits/dim 0.0400  images/s 32  time left 0:00"
    assert len(lines) == 11


def test_progress_shows_a_bound_as_a_bound(start, tmp_path, capsys):
    start(tmp_path).progress(1, 5, 8, {"bits_per_dim_bound": 2.0, "loss": 9.0})
    assert "bits/dim (bound) 2.0000" in capsys.readouterr().out


@pytest.fixture
def notebook(monkeypatch):
    """IPython as in a notebook: its shell has a kernel."""
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    return shell


def test_a_notebook_has_a_bar_instead_of_lines(start, tmp_path, notebook, now, capsys):
    reporter = start(tmp_path)
    for step in range(41, 101):
        reporter.progress(step, 100, 32, {"bits_per_dim": jnp.float32(4) / step})
        now[0] += 1
    assert reporter._progress._bar.n == 100 and reporter._progress._bar.total == 100
    reporter.close()
    out, err = capsys.readouterr()
    assert out == "" and "100/100" in err and "bits/dim 0.0400  images/s 32" in err


def test_a_terminal_is_no_notebook(notebook, monkeypatch):
    assert progress.in_notebook()
    del notebook.kernel  # IPython in a terminal
    assert not progress.in_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not progress.in_notebook()


def test_the_clock_has_seconds_and_a_rate_without_validation(now):
    clock = Clock(seconds_before=100.0)
    now[0] += 5
    assert clock.row(10, 32, "image") == {"seconds": 105.0}
    now[0] += 4
    assert clock.row(20, 32, "image") == {"seconds": 109.0, "images_per_second": 80.0}
    now[0] += 50
    clock.restart(22)
    now[0] += 2
    assert clock.row(30, 16, "string") == {"seconds": 161.0, "strings_per_second": 64.0}


def test_a_run_that_goes_on_counts_its_seconds_on(start, tmp_path, now):
    reporter = start(tmp_path)
    for step in (1, 2, 3):
        now[0] += 10
        reporter.scalars(step, {"loss": 1.0} | reporter.times(step, 4))
    reporter.close()
    now[0] += 1000
    resumed = start(tmp_path, 2)  # step 3 is cut
    now[0] += 1
    resumed.scalars(3, resumed.times(3, 4))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["seconds"] for row in rows] == [10, 20, 21] and rows[1]["images_per_second"] == 0.4
