"""What happens to runs: signals, a second process in the folder, disks that are full or closed."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("hydra")
pytest.importorskip("matplotlib")

from tests.examples.running import EVALUATION, EXTRACTION, NETWORKS, session_members, wait_until
from tests.examples.test_pwm_online import SHORT
from tests.examples.test_pwm_online import TINY as PWM
from tests.examples.test_shac_simulator import TINY as SHAC
from tests.runs.test_evaluator import COMMANDS, KINDS, numbers, run
from torchrl_pwm import runs
from torchrl_pwm._utils.files import locked
from torchrl_pwm.data import record_steps
from torchrl_pwm.envs.random_policy import RandomPolicy
from torchrl_pwm.envs.simulators import AnalyticEnv
from torchrl_pwm.runs.cli import main
from torchrl_pwm.trainers import WorldModelTrainer, load_checkpoint
from torchrl_pwm.trainers.trainer import Trainer

NEVER = {
    "pwm": "save_interval=1000",
    "shac": "save_interval=1000",
    "tdmpc2": "save_interval=1000",
    "tdmpc2-mt80": "training.save_interval=1000",
    "offline": "world_model.save_interval=1000",
}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def signal_at(monkeypatch):
    """Sends this process a signal in an iteration of the first training that comes to it."""

    def send(iteration, number=signal.SIGTERM, trainer=Trainer):
        log = trainer.log

        def log_and_send(self, metrics):
            log(self, metrics)
            if self.iteration == iteration:
                monkeypatch.setattr(trainer, "log", log)
                signal.raise_signal(number)

        monkeypatch.setattr(trainer, "log", log_and_send)

    return send


def begin(arguments, **options):
    """The command in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "torchrl_pwm.runs.cli", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(runs.__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        **options,
    )


def ignored_no_more():
    # Where the tests run in the background, an interruption is ignored, which a child inherits.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt(process, times):
    """Ctrl-C at the terminal, again while the first is at work: of two signals that wait at once, one arrives."""
    for number in range(times):
        time.sleep(0.5 * number)
        os.killpg(process.pid, signal.SIGINT)


def left_over(folder):
    return [str(path) for path in Path(folder).rglob("*") if path.name.endswith(".tmp") or ".partial" in path.name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_a_signal_ends_saves_and_goes_on_to_the_same_numbers(kind, signal_at, capsys):
    signal_at(3)
    with pytest.raises(SystemExit) as ended:
        run(kind, "stopped", NEVER[kind])
    own = [option.replace("env=", "env.task=") for option in COMMANDS[kind] if "env=" in option]
    command = " ".join(["torchrl-pwm", COMMANDS[kind][0], *own, "resume=stopped"])
    assert ended.value.code == 143 and capsys.readouterr().err.endswith(f"\nTerminated. It goes on with: {command}\n")
    manifests = list(Path("stopped").rglob("checkpoint.json"))
    assert [json.loads(file.read_text())["step"] for file in manifests] == [3] and not left_over("stopped")
    main(command.split()[1:])
    assert numbers("stopped") == run(kind, "whole", NEVER[kind])


def test_pretraining_is_logged_and_goes_on_where_a_signal_ended_it(signal_at, monkeypatch):
    monkeypatch.setattr("torchrl_pwm.runs.pwm_online._PRETRAINING_LOG", 1)
    env = AnalyticEnv("cartpole_swingup", 4)
    record_steps(RandomPolicy(1, 0), env, 30, noise=0.0, seed=0, progress=False).memmap("steps")
    options = [*PWM, SHORT, "pretraining.data=steps", "pretraining.updates=6", "iterations=1"]
    signal_at(4, trainer=WorldModelTrainer)
    with pytest.raises(SystemExit) as ended:
        main(["simulator", *options, "folder=stopped"])
    assert ended.value.code == 143
    assert json.loads(Path("stopped/pretraining/checkpoint/checkpoint.json").read_text())["step"] == 4
    assert not list(Path("stopped/scalars").glob("*.csv"))
    main(["simulator", "resume=stopped"])
    main(["simulator", *options, "folder=whole"])
    for folder in ("stopped", "whole"):
        rows = Path(folder, "pretraining/scalars/loss_consistency.csv").read_text().splitlines()
        assert [int(row.split(",")[0]) for row in rows] == [1, 2, 3, 4, 5, 6]
    found = [json.loads(Path(folder, "summary.json").read_text())["outcomes"] for folder in ("stopped", "whole")]
    assert found[0] == found[1]


def test_one_process_at_a_run_and_an_end_on_the_cluster_loses_nothing(place):
    """Killed by SIGTERM at a place that nothing here chooses."""
    process = begin(["shac", *SHAC, "iterations=100000", "save_interval=100000", "log_interval=1", "folder=run"])
    try:
        rows = place / "run" / "scalars" / "loss_actor.csv"
        wait_until(lambda: process.poll() is not None or (rows.exists() and rows.read_text().count("\n") > 1))
        for command in (["resume=run"], [*SHAC, "folder=run"]):
            with pytest.raises(SystemExit, match=r"(another process is at the run in run: wait|already holds a run)"):
                main(["shac", *command])
        process.terminate()
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 143 and "Traceback" not in said, said
    step = json.loads((place / "run" / "checkpoint" / "checkpoint.json").read_text())["step"]
    assert [int(row.split(",")[0]) for row in rows.read_text().splitlines()] == list(range(1, step + 1))


def test_a_second_process_is_kept_out_of_a_folder_that_both_make(place, monkeypatch):
    """It came when the folder was not there yet, and leaves what the first has made meanwhile."""
    with pytest.raises(SystemExit, match="another process is at the run"):
        from torchrl_pwm.runs import evaluator

        claim = evaluator.claim_folder

        def claimed_before(config, folder):
            claim(config, folder)
            from torchrl_pwm.runs import folder as module

            module._HELD.pop(folder.resolve()).close()
            with locked(folder):
                claim(config, folder)

        monkeypatch.setattr(evaluator, "claim_folder", claimed_before)
        main(["shac", *SHAC, "folder=run"])


def test_a_full_disk_is_one_sentence(place):
    """The largest file, the checkpoint, does not fit."""

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = begin(["shac", *SHAC, "folder=run"], preexec_fn=small_files)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in said and "ignored" not in said, said
    error = next(line for line in said.splitlines() if line.startswith("OSError"))
    assert "checkpoint-2.pt" in error and "File too large. There was no checkpoint yet; when this is mended" in error
    assert error.endswith("the run goes on with: torchrl-pwm shac resume=run") and not left_over("run")


def test_a_full_disk_leaves_logs_whole_and_the_checkpoint_in_force(place, monkeypatch):
    from torchrl.record.loggers.csv import CSVExperiment

    add = CSVExperiment.add_scalar

    def full(self, name, value, global_step=None):
        add(self, name, value, global_step)
        if global_step == 3:
            self.files[next(iter(self.files))].write("3,0.")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(CSVExperiment, "add_scalar", full)
    with pytest.raises(
        SystemExit, match=r"\.csv: No space left on device\. The last checkpoint is intact; when"
    ) as end:
        main(["shac", *SHAC, "log_interval=1", "save_interval=2", "folder=run"])
    assert isinstance(end.value.code, str), "which ends a process with 1"
    monkeypatch.undo()
    os.chdir(place)
    assert all(file.read_text().endswith("\n") for file in Path("run/scalars").glob("*.csv"))
    main(["shac", "resume=run"])
    rows = Path("run/scalars/loss_actor.csv").read_text().splitlines()
    assert [int(row.split(",")[0]) for row in rows] == [1, 2, 3, 4, 5, 6]


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
@pytest.mark.parametrize("folder", ("/proc/run", "file/run"))
def test_a_folder_that_cannot_be_written_is_one_sentence(folder, place):
    (place / "file").touch()
    with pytest.raises(SystemExit, match=rf"{folder}.*: .*\. Nothing was kept; make room .*, or set folder="):
        main(["shac", *SHAC, f"folder={folder}"])


def test_the_newest_whole_checkpoint_goes_on(place):
    main(["shac", *SHAC, "save_interval=1", "folder=run"])
    summary = json.loads(Path("run/summary.json").read_text())["outcomes"]
    Path("run/summary.json").unlink()
    (newest,) = Path("run/checkpoint").glob("checkpoint-6-*.pt")
    os.truncate(newest, 1000)
    with pytest.warns(UserWarning, match=f"{newest} is damaged.*the checkpoint of step 5"):
        main(["shac", "resume=run"])
    assert json.loads(Path("run/summary.json").read_text())["outcomes"] == summary
    assert load_checkpoint("run/checkpoint")["iteration"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("times", (1, 2))
def test_a_collector_of_several_processes_ends_with_its_run(times, place):
    options = [*PWM, SHORT, "collector.workers=2", "iterations=100000", "folder=run", "save_interval=100000"]
    process = begin(["simulator", *options], preexec_fn=ignored_no_more)
    try:
        rows = place / "run" / "scalars" / "loss_actor.csv"
        wait_until(lambda: process.poll() is not None or (rows.exists() and rows.read_text().count("\n") > 1))
        interrupt(process, times)
        _, said = process.communicate(timeout=300)
        wait_until(lambda: not session_members(process.pid), 30)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in said and "leaked" not in said, said
    assert times == 2 or (place / "run" / "checkpoint" / "checkpoint.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("dm_control") is None, reason="the tasks of MT80 are not installed")
@pytest.mark.parametrize("per_batch", (1, 2))
@pytest.mark.parametrize("times", (1, 2))
def test_extraction_in_several_processes_ends_with_its_run(times, per_batch, place):
    # The golden run's data and world model, and policies without end.
    shutil.copytree(Path(__file__).parents[1] / "golden" / "runs" / "mt80" / "interrupted" / "data", "data")
    options = ["data=open", "data.root=data", "task=pendulum-swingup", "seeds=4", f"tasks_per_batch={per_batch}"]
    options += [
        option for option in NETWORKS + EXTRACTION + EVALUATION if not option.startswith(("extraction.it", "++"))
    ]
    options += ["model.latent_dim=16", "model.units=[16,16]", "model.encoder_units=[16]", "model.task_dim=4"]
    options += ["world_model.iterations=4", "world_model.batch_size=8", "extraction.iterations=100000"]
    options += [
        "extraction.save_interval=100000",
        "evaluation.baselines=null",
        f"workers={4 // per_batch}",
        "folder=run",
    ]
    process = begin(["mt80", *options], preexec_fn=ignored_no_more)
    try:
        rows = "policies/*/seed-*/scalars/loss_actor.csv"
        wait_until(lambda: process.poll() is not None or len(list((place / "run").glob(rows))) == 4)
        interrupt(process, times)
        _, said = process.communicate(timeout=300)
        wait_until(lambda: not session_members(process.pid), 30)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in said and "leaked" not in said, said
    assert times == 2 or len(list((place / "run").glob("policies/*/seed-*/checkpoint/checkpoint.json"))) == 4
