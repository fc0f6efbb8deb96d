"""Policies that a run extracts in one program, ``tasks_per_batch``: files and numbers of those extracted one by one."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing

import pytest
import torch

pytest.importorskip("hydra")

from omegaconf import OmegaConf

from tests.trainers.test_stacked import assert_close
from tests.trainers.tiny import write_store
from torchrl_pwm._utils.checkpoint import save_tensors
from torchrl_pwm._utils.evaluations import BackgroundEvaluation
from torchrl_pwm.evaluation.best_policy import BestPolicy
from torchrl_pwm.runs.baselines import baseline_jobs, baseline_works, measure_baselines
from torchrl_pwm.runs.cli import compose_config
from torchrl_pwm.runs.extraction import ExtractionJob, extract_all, extract_group
from torchrl_pwm.runs.policies import load_actor
from torchrl_pwm.runs.pwm_offline import run_pipeline
from torchrl_pwm.runs.world_model import load_world_model, make_world_model
from torchrl_pwm.trainers.pwm import PWMTrainer

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("metaworld", "dm_control")),
    reason="the extra mt80 is not installed",
)
TASKS = ["mw-reach"]
SETTINGS = ["preset=from_scratch", "actor.units=[16]", "value.units=[16]", "loss.horizon=2", "model.latent_dim=16"]
SETTINGS += ["model.units=[16]", "model.encoder_units=[16]", "extraction.iterations=6", "extraction.batch_size=8"]
SETTINGS += ["extraction.eval_interval=6", "extraction.eval_episodes=1", "evaluation.episodes=1", "seeds=3"]
SETTINGS += ["extraction.save_interval=2", "extraction.log_interval=2", "extraction.average=0.5", "workers=1"]
SETTINGS += ["extraction.starts={count: 20, resets: 0.1, top: 0.5}", "loss.behavior_coef=0.1", "progress=false"]
SETTINGS += ["loss.mask_actions=true", "extraction.warm_start={behavior_updates: 4, value_updates: 1}", "device=cpu"]
JOBS = [(task, seed) for task in TASKS for seed in range(3)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("data") / "store")


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("model") / "world_model.pt"
    save_tensors(file, {"model": make_world_model(compose_config("pwm_mt80", SETTINGS)).state_dict()})
    return file


def extract(folder, data, model_file, tasks_per_batch):
    config = compose_config("pwm_mt80", [*SETTINGS, f"tasks_per_batch={tasks_per_batch}"])
    return extract_all(config, folder, data, model_file, TASKS)


@pytest.fixture(scope="module")
def one_by_one(data, model_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_by_one")
    return folder, extract(folder, data, model_file, 1)


def files(folder):
    """What a run leaves, without the checksums in the names of checkpoints."""
    names = (str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    return sorted(name.split("checkpoint-")[0] for name in names)


def assert_same_run(folder, results, expected):
    whole, expected_results = expected
    assert files(folder) == files(whole)
    for found, other, (task, seed) in zip(results, expected_results, JOBS, strict=True):
        place = f"policies/{task}/seed-{seed}"
        assert found == json.loads((folder / place / "result.json").read_text())
        assert set(found) == set(other) and (found["task"], found["seed"]) == (task, seed) and found["seconds"] > 0
        assert found["returns"] == pytest.approx(other["returns"], rel=1e-3)
        policies = [torch.load(root / place / "policy.pt", weights_only=True) for root in (folder, whole)]
        assert_close(*policies)
        for file in (whole / place / "scalars").glob("loss_*.csv"):
            rows = [(root / place / "scalars" / file.name).read_text().splitlines() for root in (folder, whole)]
            numbers = [torch.tensor([[float(x) for x in row.split(",")] for row in some]) for some in rows]
            torch.testing.assert_close(*numbers, rtol=1e-4, atol=1e-5)


def test_policies_of_one_program_are_those_extracted_one_by_one(data, model_file, one_by_one, tmp_path):
    results = extract(tmp_path, data, model_file, 2)
    assert_same_run(tmp_path, results, one_by_one)
    config = compose_config("pwm_mt80", SETTINGS)
    actor = load_actor(config, load_world_model(config, model_file), tmp_path, TASKS[0], seed=1)
    state = torch.load(tmp_path / f"policies/{TASKS[0]}/seed-1/policy.pt", weights_only=True)["actor"]
    assert_close(dict(actor.state_dict()), dict(state))


@pytest.mark.parametrize(("visit", "then"), [(2, 16), pytest.param(5, 1, marks=pytest.mark.slow)])
def test_an_interrupted_program_goes_on_to_the_same_numbers(
    visit, then, data, model_file, one_by_one, tmp_path, monkeypatch
):
    """Before a program has begun, and at its end, when the first policy alone has its last checkpoint."""
    offer, visits = BestPolicy.offer, []

    def interrupted(best, *result):
        visits.append(result)
        if len(visits) == visit:
            raise KeyboardInterrupt
        offer(best, *result)

    with monkeypatch.context() as patch:
        patch.setattr(BestPolicy, "offer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(tmp_path, data, model_file, 16)
    assert not list(tmp_path.rglob("result.json"))
    assert_same_run(tmp_path, extract(tmp_path, data, model_file, then), one_by_one)


class Killed(Exception):
    pass


def group(folder, data, model_file, *, evaluator):
    config = OmegaConf.to_container(compose_config("pwm_mt80", [*SETTINGS, "extraction.eval_interval=2"]), resolve=True)
    places = [(task, seed, folder / f"policies/{task}/seed-{seed}") for task, seed in JOBS]
    further = {"data": data, "world_model": model_file, "threads": 1, "device": "cpu", "evaluator": evaluator}
    return [ExtractionJob(config, task, seed, place, **further) for task, seed, place in places]


def rows(folder):
    """Every number that was logged and kept, without seconds."""
    found = {}
    for file in sorted(folder.rglob("*.csv")):
        if file.stem != "training_seconds":
            found[str(file.relative_to(folder))] = file.read_text()
    for file in sorted(folder.rglob("result.json")):
        found[str(file.relative_to(folder))] = {**json.loads(file.read_text()), "seconds": 0, "phases": {}}
    return found


def say_nothing(*message):
    pass


@pytest.fixture(scope="module")
def in_one_process(data, model_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("in_one_process")
    extract_group(group(folder, data, model_file, evaluator=False), say_nothing)
    return rows(folder)


def test_evaluations_in_other_processes_change_no_number_of_a_program(data, model_file, in_one_process, tmp_path):
    """Two processes evaluate three policies."""
    extract_group(group(tmp_path, data, model_file, evaluator=True), say_nothing, evaluators=2)
    assert rows(tmp_path) == in_one_process
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_program_killed_while_others_evaluate_goes_on_to_the_same_numbers(
    data, model_file, in_one_process, tmp_path, monkeypatch
):
    log = PWMTrainer.log

    def log_until_killed(trainer, metrics):
        if trainer.iteration == 4:
            raise Killed
        log(trainer, metrics)

    with monkeypatch.context() as patch:
        # nothing is joined before the checkpoint at 2, nor between that and the end of the process at 4
        patch.setattr(BackgroundEvaluation, "results", lambda self, *, wait: iter(()))
        patch.setattr(PWMTrainer, "log", log_until_killed)
        with pytest.raises(Killed):
            extract_group(group(tmp_path, data, model_file, evaluator=True), say_nothing, evaluators=2)
    assert not multiprocessing.active_children()
    assert not list(tmp_path.rglob("real_score.csv"))
    extract_group(group(tmp_path, data, model_file, evaluator=True), say_nothing, evaluators=2)
    assert rows(tmp_path) == in_one_process


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_processes_of_a_run_measure_its_baselines_too(workers, data, model_file, tmp_path):
    cloning = {"updates": 2, "units": [8], "batch_size": 4, "eval_episodes": 1}
    baselines = f"++evaluation.baselines={{random: true, cloning: {cloning}}}".replace("'", "")
    config = compose_config("pwm_mt80", [*SETTINGS, "seeds=1", f"workers={workers}", baselines])
    alone = measure_baselines(config, tmp_path / "alone", data, TASKS)
    jobs = baseline_jobs(config, tmp_path, data, TASKS)
    extract_all(config, tmp_path, data, model_file, TASKS, further=baseline_works(jobs))
    found = {job.task: json.loads(job.file.read_text()) for job in jobs}
    for runs in (*alone.values(), *found.values()):
        for run in runs["cloning"]:
            run["phases"] = None
    assert found == alone


def test_policies_of_one_program_that_are_to_go_on_are_refused_before_the_run_begins(tmp_path):
    going_on = "extraction.stepper_of={metaworld: {continued: 0.5}}"
    config = compose_config("pwm_mt80", [*SETTINGS, "task=mw-reach", "tasks_per_batch=2", going_on])
    with pytest.raises(ValueError, match=r"tasks_per_batch=2 with stepper\.continued=0\.5: set one to 1"):
        run_pipeline(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
