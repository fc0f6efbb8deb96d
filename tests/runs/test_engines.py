"""Policies of a run on every engine: numbers, files and what dies on the way, against processes of this machine."""

from __future__ import annotations

import csv
import importlib.util
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("hydra")

from omegaconf import OmegaConf

from tests.trainers.tiny import write_store
from torchrl_pwm._utils.checkpoint import save_tensors
from torchrl_pwm._utils.files import replace_file
from torchrl_pwm.runs.cli import compose_config
from torchrl_pwm.runs.engines import make_engine
from torchrl_pwm.runs.engines.work import Work, mirrored, pack, unpack
from torchrl_pwm.runs.extraction import extract_all
from torchrl_pwm.runs.world_model import make_world_model

TASKS = ["mw-reach", "mw-drawer-close", "mw-faucet-open", "mw-window-open", "mw-button-press", "mw-door-open"]
SETTINGS = ["preset=from_scratch", "actor.units=[16]", "value.units=[16]", "loss.horizon=2", "model.latent_dim=16"]
SETTINGS += ["model.units=[16]", "model.encoder_units=[16]", "extraction.iterations=40", "extraction.batch_size=8"]
SETTINGS += ["extraction.eval_interval=40", "extraction.eval_episodes=1", "evaluation.episodes=1", "progress=false"]
SETTINGS += ["extraction.save_interval=4", "extraction.log_interval=4", "extraction.average=0.5", "device=cpu"]
SETTINGS += ["loss.mask_actions=true", "extraction.warm_start={behavior_updates: 4, value_updates: 1}"]


def needs(*names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


def test_what_a_work_leaves_behind_is_freed():
    class Training:
        def __init__(self):
            self.parts = [self]  # as trainers and their parts refer to each other

    left = []
    Work(lambda job, report: left.append(weakref.ref(Training())), None, name="a")(print)
    assert left[0]() is None


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("data") / "store", tasks=dict.fromkeys(TASKS, 1))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("model") / "world_model.pt"
    save_tensors(file, {"model": make_world_model(compose_config("pwm_mt80", SETTINGS)).state_dict()})
    return file


@pytest.fixture(scope="module")
def serial(data, model_file, tmp_path_factory):
    """The six policies one after the other in this process."""
    folder = tmp_path_factory.mktemp("serial")
    extract(folder, data, model_file, ["workers=1"])
    return contents(folder)


def extract(folder, data, model_file, options):
    return extract_all(compose_config("pwm_mt80", [*SETTINGS, *options]), folder, data, model_file, TASKS)


def contents(folder):
    """Every number that was logged, and of results and weights; without seconds."""
    found = {}
    for file in sorted(folder.glob("policies/**/*.csv")):
        if file.stem != "training_seconds":
            found[str(file.relative_to(folder))] = file.read_text()
    for file in sorted(folder.rglob("result.json")):
        found[str(file.relative_to(folder))] = {**json.loads(file.read_text()), "seconds": 0, "phases": {}}
    for file in sorted(folder.rglob("policy.pt")):
        parts = torch.load(file, weights_only=True)
        weights = {f"{part}.{name}": weight.tolist() for part in parts for name, weight in dict(parts[part]).items()}
        found[str(file.relative_to(folder))] = weights
    return found


def rows(folder):
    with open(folder / "policies.csv") as file:
        return list(csv.DictReader(file))


def process_of(*words):
    """A process whose command line has some words: Ray's workers have the name of their work there."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if all(str(word).encode() in file.read_bytes() for word in words):
                return int(file.parent.name)
        except OSError:
            continue
    return None


@pytest.fixture(scope="module")
def cluster():
    """Ray on two cores of this machine, with a small object store."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "warning"}
        ray.init(num_cpus=2, object_store_memory=80_000_000, **options)
        patch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        yield ray
        ray.shutdown()


@pytest.mark.slow
@needs("ray", "metaworld")
def test_six_policies_of_ray_with_a_worker_killed_are_those_of_one_process(cluster, serial, data, model_file, tmp_path):
    victim, killed = f"{TASKS[1]}/0", []
    place = tmp_path / "policies" / TASKS[1] / "seed-0"

    def kill():
        while not killed and not (place / "result.json").exists():
            if (place / "checkpoint" / "checkpoint.json").exists() and (number := process_of(f"ray::{victim}")):
                os.kill(number, signal.SIGKILL)
                killed.append((number, (place / "result.json").exists()))
            time.sleep(0.005)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    results = extract(tmp_path, data, model_file, ["engine=ray"])
    thread.join()
    assert [finished for _, finished in killed] == [False]
    assert contents(tmp_path) == serial
    assert [result["task"] for result in results] == TASKS == [row["task"] for row in rows(tmp_path)]
    assert [float(row["return"]) for row in rows(tmp_path)] == pytest.approx([sum(r["returns"]) for r in results])
    assert not (tmp_path / ".engine").exists()


@pytest.mark.slow
@needs("ray", "metaworld")
def test_a_run_whose_driver_was_killed_goes_on_and_does_nothing_twice(cluster, serial, data, model_file, tmp_path):
    arguments = (tmp_path, data, model_file, ["engine=ray"])
    driver = multiprocessing.get_context("spawn").Process(target=extract, args=arguments)
    driver.start()
    while driver.is_alive() and len(list(tmp_path.rglob("result.json"))) < 2:
        time.sleep(0.02)
    driver.kill()
    driver.join()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("result.json")}
    assert 2 <= len(before) < 6
    extract(*arguments)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert contents(tmp_path) == serial and len(rows(tmp_path)) == 6


@pytest.mark.slow
@needs("submitit", "metaworld")
def test_six_policies_of_jobs_with_one_killed_are_those_of_one_process(serial, data, model_file, tmp_path):
    killed = []

    def kill():
        while not killed and len(list(tmp_path.rglob("result.json"))) < 6:
            if list(tmp_path.rglob("checkpoint.json")) and (number := process_of("submitit.core._submit", tmp_path)):
                os.kill(number, signal.SIGKILL)
                killed.append(number)
            time.sleep(0.005)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    results = extract(tmp_path, data, model_file, ["engine=submitit", "engine.cluster=local"])
    thread.join()
    assert killed and contents(tmp_path) == serial
    assert len(results) == len(rows(tmp_path)) == 6


def copy(job, report):
    """Reads a file beside the model, and writes in a folder and beside it."""
    model, folder, file = job
    report("copied", len(model.read_bytes()))
    (folder / "result.json").write_text(model.with_name("disagreement.pt").read_text())
    file.write_text(str(folder))


def test_a_worker_that_does_not_see_the_run_folder_works_elsewhere_and_sends_its_files(tmp_path):
    pytest.importorskip("ray")
    from torchrl_pwm.runs.engines.ray_tasks import _do, _Mark, _marked

    reads = (tmp_path / "model" / "world_model.pt", tmp_path / "model" / "disagreement.pt")
    reads[0].parent.mkdir()
    for file in reads:
        file.write_text(file.stem)
    folder, further = tmp_path / "run" / "seed-0", tmp_path / "run" / "of.json"
    work = Work(copy, [reads[0], folder, further], "copy", reads, folders=(folder,), files=(further,))
    stored = [pack(path) for path in reads]
    said = []
    messages = SimpleNamespace(actor=SimpleNamespace(put_nowait=SimpleNamespace(remote=said.append)))
    made = _do(work, 7, _Mark(tmp_path / "run" / ".engine", "other"), messages, *stored)
    assert not folder.exists() and made[0] == {"result.json": b"disagreement"}
    assert [message for _, _, message in said] == [None, ("copied", 11)]
    elsewhere = made[1][""].decode()
    assert elsewhere.endswith(str(mirrored(folder, Path("/")))) and not elsewhere.startswith(str(tmp_path))
    assert not Path(elsewhere).exists()
    folder.parent.mkdir()
    with _marked(tmp_path / "run") as mark:
        assert _do(work, 7, mark, messages, *stored) is None
    assert (folder / "result.json").read_text() == "disagreement" and further.read_text() == str(folder)


def test_a_machine_without_the_data_says_what_it_does_not_see(tmp_path):
    work = Work(copy, [], "mw-reach/0", needs=(tmp_path, tmp_path / "data"))
    with pytest.raises(FileNotFoundError, match=r"mw-reach/0 needs .*data, which is not there on .*: put it on a disk"):
        work.check_needs()


@pytest.mark.parametrize(("name", "module"), [("ray", "ray"), ("submitit", "submitit")])
def test_an_engine_without_its_package_names_the_extra(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    config = compose_config("pwm_mt80", [*SETTINGS, f"engine={name}"])
    with pytest.raises(ImportError, match=rf'engine={name} needs {module}.*pip install "torchrl-pwm\[{name}\]"'):
        make_engine(config)


def test_an_address_where_no_cluster_answers_is_named(monkeypatch):
    monkeypatch.setattr(pytest.importorskip("ray"), "is_initialized", lambda: False)
    config = compose_config("pwm_mt80", [*SETTINGS, "engine=ray", "engine.address=127.0.0.1:9"])
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers at 127\.0\.0\.1:9, .*`ray start --head`"):
        make_engine(config)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["engine.num_gpus=0.5", "engine.cluster=local"], "Slurm gives whole GPUs, found engine.num_gpus=0.5"),
        ([], "sbatch, which this machine does not have"),
    ],
)
def test_what_slurm_cannot_do_is_said_before_the_run_begins(options, said, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=said):
        make_engine(compose_config("pwm_mt80", [*SETTINGS, "engine=submitit", *options]))


def test_runs_of_before_there_were_engines_go_on_in_processes_of_this_machine():
    config = compose_config("pwm_mt80", [*SETTINGS, "workers=3"])
    config = OmegaConf.create({key: value for key, value in config.items() if key != "engine"})
    engine = make_engine(config)
    assert (engine.batches, engine.device, engine.evaluators(1), engine.evaluators(3)) == (3, "cpu", 2, 0)


def test_a_folder_that_was_sent_is_there_as_a_whole_or_as_it_was(tmp_path, monkeypatch):
    sent, place = tmp_path / "sent", tmp_path / "place"
    for folder, text in ((sent, "new"), (place, "old")):
        (folder / "deep").mkdir(parents=True)
        for name in ("a", "deep/b"):
            (folder / name).write_text(text)
    written = []

    def dies_at_the_second(path, content):
        written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt
        replace_file(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("torchrl_pwm.runs.engines.work.replace_file", dies_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            unpack(pack(sent), place)
    assert pack(place) == {"a": b"old", "deep/b": b"old"}
    unpack(pack(sent), place)
    assert pack(place) == pack(sent) and not list(tmp_path.glob("*.tmp"))
