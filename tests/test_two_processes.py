"""Two real processes on loopback are one run: the numbers of one process, one report, one step that a signal to either of them saves."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from compiling import IN_A_PROCESS, virtual_devices
from tiny_runs import of_the_clock

from jaxgen import cli, data, experiment
from jaxgen.data import DataConfig
from jaxgen.experiment import Experiment
from jaxgen.models import GatedPixelCNNConfig
from jaxgen.runs.report import ReportConfig
from jaxgen.training import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
# The command as it is, several times in one process.
PROGRAM = f"""
import sys
from jaxgen import __main__
{IN_A_PROCESS}
sys.exit(max(__main__.main(words.split("|")) for words in sys.argv[1:]))
"""


def start(folder: Path, *commands: list[str], devices: int = 1) -> list[subprocess.Popen]:
    """Both processes of a run, each with so many devices and writing into files of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free.getsockname()[1]}", "JAX_NUM_PROCESSES": "2"}
    group |= virtual_devices(devices)
    processes = []
    for number in range(2):
        with open(folder / f"out{number}", "w") as out, open(folder / f"err{number}", "w") as err:
            words = [sys.executable, "-c", PROGRAM, *("|".join(words) for words in commands)]
            environment = os.environ | group | {"JAX_PROCESS_ID": str(number), "PYTHONUNBUFFERED": "1"}
            processes.append(subprocess.Popen(words, cwd=ROOT, env=environment, stdout=out, stderr=err))
    return processes


def end(folder: Path, processes: list[subprocess.Popen], seconds: float = 200) -> list[int]:
    """Both exit codes; nothing is left behind, and what they wrote is shown where the test fails."""
    try:
        return [process.wait(seconds) for process in processes]
    finally:
        for number, process in enumerate(processes):
            process.kill()
            process.wait()
            print(f"process {number}:", (folder / f"out{number}").read_text(), (folder / f"err{number}").read_text()[-3000:])


def numbers(workdir: Path) -> dict[tuple[int, str], float]:
    """Every number of metrics.jsonl by step and name; none is there twice."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    pairs = [((row["step"], name), value) for row in rows for name, value in row.items() if name != "step" and not of_the_clock(name)]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


@pytest.fixture
def one_process(tmp_path):
    """The same run here, and its configuration."""
    digits = data.load("digits", "train")
    np.savez(tmp_path / "digits.npz", image=np.asarray(digits.images)[:500], label=np.asarray(digits.labels)[:500])
    run = Experiment(
        GatedPixelCNNConfig(num_classes=10, layers=1, width=6, head_width=8), DataConfig(str(tmp_path / "digits.npz"), levels=17),
        train=TrainConfig(steps=20, batch_size=16, log_every=1, eval_every=10), report=ReportConfig(samples=0),
        workdir=str(tmp_path / "one"),
    )  # fmt: skip
    assert experiment.train(run) == 0
    return run


def test_two_processes_are_one_run(one_process, tmp_path, capsys):
    words = ["train", "gated_pixelcnn", "--model.num_classes=10", "--model.layers=1", "--model.width=6", "--model.head_width=8"]
    words += [f"--data.name={tmp_path / 'digits.npz'}", "--data.levels=17", "--train.steps=20", "--train.batch_size=16"]
    words += ["--train.log_every=1", "--train.eval_every=10", f"--workdir={tmp_path / 'two'}"]
    words += ["--report.samples=4", "--report.completions=4", "--report.rulers=False"]

    processes = start(tmp_path, words)
    while not re.search("step +1/20", (tmp_path / "out0").read_text()) and processes[0].poll() is None:
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGINT)
    assert end(tmp_path, processes) == [75, 130]
    assert (tmp_path / "out1").read_text().count("\n") <= 1  # Gloo's greeting
    stopped = int(re.search(r"stopped by SIGTERM after step (\d+); saved", (tmp_path / "out0").read_text())[1])
    assert 1 <= stopped < 20 and (tmp_path / "two" / "checkpoints" / str(stopped)).is_dir()

    assert end(tmp_path, start(tmp_path, words, devices=2)) == [0, 0]  # it goes on with another number of devices
    out = (tmp_path / "out0").read_text()
    assert f"resumed from step {stopped} of 20" in out
    two, one = numbers(tmp_path / "two"), numbers(tmp_path / "one")
    assert two.keys() == one.keys()
    np.testing.assert_allclose([two[name] for name in one], list(one.values()), rtol=1e-4)
    capsys.readouterr()
    assert cli.command("evaluate", [str(tmp_path / "one")]) == 0
    score = re.search(r"test bits_per_dim +([\d.]+) ", capsys.readouterr().out)[1]
    assert float(re.search(r"test bits_per_dim +([\d.]+) ", out)[1]) == pytest.approx(float(score), abs=2e-4)
    assert (tmp_path / "two" / "completions.png").exists()
