"""The harness on tiny real runs of every method: runs, report, resumption and errors."""

from __future__ import annotations

import csv
import html
import importlib.util
import json
import shutil
import sys

import pytest

pytest.importorskip("hydra")
pytest.importorskip("matplotlib")
pytest.importorskip("rliable")

from benchmarks.learning import run
from benchmarks.learning.groups import groups
from benchmarks.learning.records import read_records
from benchmarks.learning.rows import COLUMNS
from benchmarks.learning.suite import main, parse
from tests.trainers.tiny import write_store
from torchrl_pwm import TDMPC2Loss
from torchrl_pwm.trainers import has_checkpoint

with_tasks = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("metaworld", "dm_control")),
    reason="the extra mt80 is not installed",
)

MODEL = ["model.latent_dim=16", "model.units=[16,16]", "model.encoder_units=[16]", "model.task_dim=4"]
PWM = ["actor.units=[16]", "value.units=[16]", "loss.horizon=2", "world_model.log_interval=2"]
PWM += ["extraction.iterations=2", "extraction.batch_size=8", "extraction.log_interval=1"]
PWM += ["extraction.eval_interval=1", "extraction.starts.count=20"]
CLONED = ["extraction.warm_start={behavior_updates: 4, value_updates: 1}"]
PLANNER = "planner={num_samples: 8, num_policy_rollouts: 2, num_elites: 4, iterations: 1, horizon: 2}"
PLAYED = ["rounds.episodes={dm_control: 1, metaworld: 1}"]
ONE = ["extraction.eval_episodes=1", "rounds.eval_episodes=1", "rounds.policy_iterations=2"]
OFFLINE = [
    *(f"{run}:{setting}" for run in ("pwm", "pwm_joint", "pwm_cloned", "tdmpc2") for setting in MODEL),
    *(f"{run}:{setting}" for run in ("pwm", "pwm_joint", "pwm_cloned") for setting in (*PWM, *ONE)),
    *(f"pwm_cloned:{setting}" for setting in CLONED),
    *(f"{run}:{setting}" for run in ("pwm", "pwm_joint", "tdmpc2") for setting in PLAYED),
    *("pwm:evaluation.baselines.cloning.updates=4", "pwm:evaluation.baselines.cloning.eval_episodes=1"),
    *(f"tdmpc2:{PLANNER}", "tdmpc2:training.eval_interval=2", "tdmpc2:training.eval_episodes=1"),
    *("tdmpc2:training.log_interval=2", "tdmpc2:training.save_interval=2"),
    *("iql:units=[8]", "iql:batch_size=8", "iql:eval_episodes=1", "iql:log_interval=2"),
]
ONLINE = {
    "pwm": [
        *("model.latent_dim=8", "model.units=[8]", "model.encoder_units=[8]", "actor.units=[8]", "value.units=[8]"),
        *("collector.random_steps=48", "warmup_updates=1", "loss.horizon=2"),
        *("replay={slice_len: 2, batch_size: 4, capacity: 500}", "online={model_updates: 1, start_states: 4}"),
    ],
    "shac": ["loss.horizon=4", "actor.units=[8]", "value.units=[8]"],
    "tdmpc2": [
        *("model.latent_dim=8", "model.units=[8]", "model.encoder_units=[8]", PLANNER, "online.updates=1"),
        *("collector.random_steps=40", "collector.steps=5", "warmup_updates=1"),
        "replay={batch_size: 4, capacity: 500}",
    ],
    "sac": ["collector.random_steps=24", "updates=2", "learner.units=[8]", "replay={batch_size: 8, capacity: 500}"],
    "ppo": ["units=[8]", "epochs=1", "collector.steps=4", "replay={batch_size: 8, capacity: 16}"],
}
SHORT = ["env.num_envs=4", "iterations=2", "eval_interval=1", "eval_episodes=2", "log_interval=1"]
SHORT += ["+env.episode_length=10"]


def command(action, group, folder, *further):
    return [action, "--group", group, "--folder", str(folder / "runs"), "--results", str(folder / "results"), *further]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("data") / "store")


def offline(data, *seeds):
    sizes = ["--updates", "4", "--batch-size", "6", "--slice-len", "3", "--episodes", "1", "--iql-updates", "4"]
    sizes += ["--rounds", "1", "--round-updates", "2"]
    return ["--data", str(data), "--tasks", "mw-reach", "--seeds", *seeds, *sizes, "--workers", "2", "--", *OFFLINE]


def run_here(arguments):
    """The runs of a command line, in this process."""
    for job in parse(arguments)[1].jobs():
        job.run()


def read(folder, group):
    with open(folder / "results" / f"suite_{group}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    content = json.loads((folder / "results" / f"suite_{group}.json").read_text())
    return rows, content


def records(folder):
    """All that is read of the finished runs, but how long they took."""
    found = read_records(groups()["mini"], folder / "runs")
    rows = [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in found.rows]
    return rows, [(curve.method, curve.amount.tolist(), curve.score.tolist()) for curve in found.curves]


def check_selection(rows, key, select):
    """Every method but random actions has both policies, and the one that is selected counts for all."""
    learned = [row for row in rows if row["method"] != "random"]
    assert {row["select"] for row in learned} == {select}
    counts, other = "return_mean" if key == "return" else "score", {"last": "best", "best": "last"}[select]
    assert all(row[f"{key}_{select}"] == row[counts] and row[f"{key}_{other}"] != "" for row in learned)


# Those of which each is the only one to run its code, and all.
OFFLINE_METHODS = ("pwm", "tdmpc2", "tdmpc2_prior", "iql", "cloning_half", "cloning_all", "random")
EACH = pytest.param(OFFLINE_METHODS, id="each")
ALL = pytest.param((*OFFLINE_METHODS, "pwm_joint", "pwm_cloned"), id="all", marks=pytest.mark.slow)


@with_tasks
@pytest.mark.parametrize("methods", [EACH, ALL])
def test_every_offline_method_runs_and_is_reported(methods, data, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    # baselines are measured beside a method, not run
    line = ["--methods", *(name for name in methods if name not in ("cloning_half", "cloning_all", "random"))]
    line += offline(data, "0")
    run_here(command("run", "mini", tmp_path, *line))
    main(command("report", "mini", tmp_path, "--methods", *methods, "--tasks", "mw-reach"))
    rows, content = read(tmp_path, "mini")
    assert list(rows[0]) == list(COLUMNS)
    # the data are no steps of SAC
    assert set(methods) <= set(groups()["mini"].methods) - {"sac"}
    assert sorted(row["method"] for row in rows) == sorted(methods)
    by_method = {row["method"]: row for row in rows}
    # equal data, updates and rounds
    updates = {"pwm": "6", "pwm_joint": "6", "pwm_cloned": "4", "tdmpc2": "6", "tdmpc2_prior": "6"}
    for method in updates.keys() & set(methods):
        assert by_method[method]["model_updates"] == updates[method]
    assert by_method["pwm"]["policy_updates"] == "4"
    assert {row["transitions"] for row in rows if row["method"] != "random"} == {"36"}
    assert all(float(by_method[method]["ms_per_decision"]) > 0 for method in ("pwm", "tdmpc2", "tdmpc2_prior"))
    assert all(row["success"] == row["score"] and row["episodes"] == "1" for row in rows)
    check_selection(rows, "score", "last")
    assert content["versions"]["torch"] and content["machine"]["processor"] and content["made"]
    trained = {"pwm", "pwm_joint", "pwm_cloned", "tdmpc2_prior", "iql"}
    assert set(content["equal_minutes"][0]["methods"]) == trained & set(methods)
    assert "1 rounds of 1 episodes" in content["budgets"]["tdmpc2"] and "1 rounds" in content["budgets"]["pwm"]
    page = (tmp_path / "results" / "suite_mini.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and page.count("<figcaption>") == 4
    assert all(method["label"] in html.unescape(page) for method in content["methods"].values())
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*") if file.is_file()}
    main(command("run", "mini", tmp_path, *line))
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*") if file.is_file()} == before


@pytest.mark.slow
@with_tasks
@pytest.mark.parametrize("engine", [["local"], ["submitit", "cluster=local"]], ids=lambda engine: engine[0])
def test_an_engine_leaves_the_records_of_one_process(engine, data, tmp_path, monkeypatch):
    """Also of a run that it goes on with."""
    pytest.importorskip("submitit")
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    chosen = ["--methods", "tdmpc2", "tdmpc2_prior", "iql", *offline(data, "0")]
    run_here(command("run", "mini", tmp_path / "here", *chosen))
    folder = tmp_path / "engine" / "runs" / "iql"
    shutil.copytree(tmp_path / "here" / "runs" / "iql", folder)
    for file in folder.rglob("summary.json"):
        file.unlink()
    main(command("run", "mini", tmp_path / "engine", "--engine", *engine, *chosen))
    assert records(tmp_path / "engine") == records(tmp_path / "here")
    assert len(records(tmp_path / "here")[0]) == 3
    assert len(list((tmp_path / "engine").rglob("log.txt"))) == 2


@with_tasks
def test_an_interrupted_training_goes_on_from_its_checkpoint(data, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    once = [*offline(data, "0"), "tdmpc2:rounds.count=0"]
    _, plan = parse(command("run", "mini", tmp_path, "--methods", "tdmpc2", *once))
    (job,) = plan.jobs()
    updates = []
    original = TDMPC2Loss.policy_loss

    def stop_at_the_fourth(*arguments):
        updates.append(1)
        if len(updates) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TDMPC2Loss, "policy_loss", stop_at_the_fourth)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            job.run()
        assert not job.done and has_checkpoint(job.folder / "model" / "checkpoint")
        job.run()
    # two of them were saved
    assert job.done and len(updates) == 4 + 2
    rows = (job.folder / "model" / "scalars" / "training_seconds.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["2", "4"]


def test_every_online_method_runs_and_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    further = ["--", *SHORT, *(f"{method}:{setting}" for method, settings in ONLINE.items() for setting in settings)]
    tasks = ["--tasks", "cartpole_swingup"]
    run_here(command("run", "closed_form", tmp_path, *tasks, "--seeds", "0", "--episodes", "2", *further))
    main(command("report", "closed_form", tmp_path, *tasks))
    rows, content = read(tmp_path, "closed_form")
    assert [row["method"] for row in rows] == ["pwm", "tdmpc2", "tdmpc2_prior", "shac", "sac", "ppo", "random"]
    assert all(int(row["env_steps"]) > 0 for row in rows[:-1])
    low = max(float(rows[-1]["score"]), content["references"]["cartpole_swingup"]["no action"])
    assert low == pytest.approx(0.0, abs=1e-4)
    check_selection(rows, "return", "best")
    assert "hand-written controller" in content["references"]["cartpole_swingup"]
    assert {"pwm", "shac", "tdmpc2", "tdmpc2_prior", "sac", "ppo"} == set(content["decisions"])
    assert content["equal_steps"][0]["task"] == "cartpole_swingup"
    assert (tmp_path / "results" / "suite_closed_form_curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--group", "mini"], "expected the folder of an EpisodeStore with --data, found none.*preset=mini"),
        (["run", "--group", "mini", "--methods", "shac"], "the group mini has pwm, .*, not shac"),
        (["run", "--group", "closed_form", "--tasks", "ant"], "has cartpole_swingup, double_pendulum, not ant"),
        (["run", "--group", "closed_form", "--methods", "random"], "evaluated beside another method"),
        (["report", "--group", "mini", "--folder", "nowhere"], "no finished run of .* in nowhere"),
        (["report", "--group", "closed_form", "--add"], "--add is for offline groups, found closed_form"),
    ],
)
def test_bad_input_says_what_to_do(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tasks=mini", "methods=shac"], "the group mini has none of shac"),
        (["tasks=mini", "methods=pwm,bc,shac", "data=nowhere"], "found nowhere"),
        (["task=mini"], "expected .*tasks=mini.*, found task=mini"),
        (["tasks=maxi"], "expected tasks= one of mini, .*, found maxi"),
    ],
)
def test_bad_input_of_the_short_form_says_what_to_do(arguments, message):
    with pytest.raises(SystemExit, match=message):
        run.main(arguments)


def test_a_simulator_that_is_not_installed_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "newton" else find(name))
    with pytest.raises(SystemExit, match=r'needs newton, which is not installed here.*pip install "torchrl-pwm'):
        main(["run", "--group", "newton"])
