"""TD-MPC2 on many tasks from the command line, at a tiny size: training, and evaluation of published checkpoints."""

from __future__ import annotations

import importlib.util
import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("hydra")
pytest.importorskip("matplotlib")


from tests.modules.test_checkpoints import as_published
from tests.trainers.tiny import assert_same, write_store
from torchrl_pwm import MT80, PWMWorldModel, TDMPC2Loss, TDMPC2Model, load_policy
from torchrl_pwm.evaluation import read_summary
from torchrl_pwm.runs.cli import command_config
from torchrl_pwm.trainers import has_checkpoint

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("metaworld", "dm_control")),
    reason="the extra mt80 is not installed",
)

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = EXAMPLES / "tdmpc2_mt80.py"
PLANNER = "planner={num_samples: 8, num_policy_rollouts: 2, num_elites: 4, iterations: 1, horizon: 2}"
TINY = ["model.latent_dim=16", "model.units=[16,16]", "model.encoder_units=[16]", "model.task_dim=4", PLANNER]
TINY += ["training.iterations=6", "training.batch_size=6", "training.log_interval=1", "training.save_interval=2"]
TINY += ["training.eval_interval=6", "training.eval_episodes=1", "evaluation.episodes=2", "evaluation.num_envs=1"]
TINY += ["task=mw-reach", "progress=false", "device=cpu"]


def call(monkeypatch, *arguments):
    """The script in this process; it ends with SystemExit where it ends with an exit code."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_store(tmp_path_factory.mktemp("data") / "store")
    return ["data=open", f"data.root={root}"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A multi-task checkpoint as the published code saves it, of MT80's sizes."""
    torch.manual_seed(0)
    sizes = {"latent_dim": 16, "encoder_units": (16,), "units": (16, 16), "num_bins": 11, "task_dim": 4}
    world_model = PWMWorldModel(39, 6, num_tasks=80, action_dims=MT80.action_dims, **sizes)
    files = {}
    for layout in ("old", "new"):
        files[layout] = tmp_path_factory.mktemp(layout) / "checkpoint.pt"
        torch.save(TDMPC2Model(world_model, num_q=2).to_checkpoint(layout), files[layout])
    return files


def results(folder):
    return {file.stem: json.loads(file.read_text())["returns"] for file in folder.glob("tasks/*.json")}


def test_training_leaves_a_published_checkpoint_metrics_and_scores(data, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    call(monkeypatch, *TINY, *data, f"folder={folder}")
    out = capsys.readouterr().out
    assert out.strip().splitlines()[-1] == str(folder / "summary.json") and "TD-MPC2*" in out
    assert "TD-MPC2. Planned actions." in out
    (row,) = read_summary(folder)["tasks"]
    assert (row["task"], row["episodes"]) == ("mw-reach", 2) and row["behavior_return_mean"] is not None
    names = {file.name for file in (folder / "model").glob("scalars/*.csv")}
    assert {"loss_policy.csv", "real_score.csv", "score_mw-reach.csv"} <= names
    assert (folder / "scores.png").exists()
    # The file it leaves is evaluated as a published one is, with the same numbers.
    again = [
        f"checkpoint={folder / 'model' / 'model.pt'}",
        "task=mw-reach",
        PLANNER,
        "evaluation.episodes=2",
        "evaluation.num_envs=1",
    ]
    again += ["model=custom", "progress=false", "device=cpu", f"folder={tmp_path / 'again'}"]
    call(monkeypatch, *again, "compare=published")
    assert results(tmp_path / "again") == results(folder)
    assert "This run minus published TD-MPC2" in capsys.readouterr().out
    assert set(read_summary(tmp_path / "again")["comparison"]["methods"]) == {"pwm", "tdmpc2", "pwm_horizon3"}


def test_an_interrupted_run_ends_with_the_same_numbers(data, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    call(monkeypatch, *TINY, *data, f"folder={whole}")
    with monkeypatch.context() as patch:
        original, updates = TDMPC2Loss.policy_loss, []

        def stop_at_the_fifth(*arguments):
            updates.append(1)
            if len(updates) == 5:
                raise KeyboardInterrupt
            return original(*arguments)

        patch.setattr(TDMPC2Loss, "policy_loss", stop_at_the_fifth)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            call(patch, *TINY, *data, f"folder={parts}")
    assert has_checkpoint(parts / "model" / "checkpoint") and not (parts / "model" / "model.pt").exists()
    call(monkeypatch, f"resume={parts}")
    models = [torch.load(folder / "model" / "model.pt", weights_only=True)["model"] for folder in (whole, parts)]
    assert_same(*models)
    assert results(parts) == results(whole)
    for file in whole.glob("model/scalars/*.csv"):
        if file.stem != "training_seconds":
            assert file.read_text() == (parts / "model" / "scalars" / file.name).read_text()


def test_normalised_observations_are_in_the_checkpoint(data, tmp_path, monkeypatch):
    call(monkeypatch, *TINY, *data, "training.normalize_observations=true", f"folder={tmp_path / 'run'}")
    file = tmp_path / "run" / "model" / "model.pt"
    model = PWMWorldModel.from_tdmpc2(file)
    reach = MT80["mw-reach"].index
    assert model.observation_std is not None and (model.observation_std[reach] - 1).abs().max() < 0.5
    call(monkeypatch, f"checkpoint={file}", "task=mw-reach", "plan=false", *TINY[4:], f"folder={tmp_path / 'prior'}")
    assert results(tmp_path / "prior")


def test_an_evaluation_that_is_resumed_has_the_last_and_the_best_model(data, tmp_path, monkeypatch):
    """Both are copied into its folder, so that it needs the folder of the training no more."""
    call(monkeypatch, *TINY, *data, "training.select=last", f"folder={tmp_path / 'run'}")
    file = tmp_path / "run" / "model" / "model.pt"
    given = tmp_path / "given"
    given.mkdir()
    shutil.copyfile(file, given / "model.pt")
    shutil.copyfile(file, given / "best.pt")
    line = ["task=mw-reach", "plan=false", *TINY[4:], f"folder={tmp_path / 'again'}"]
    call(monkeypatch, f"checkpoint={given / 'model.pt'}", *line)
    found = read_summary(tmp_path / "again")
    shutil.rmtree(given)
    (tmp_path / "again" / "summary.json").unlink()
    call(monkeypatch, f"resume={tmp_path / 'again'}")
    assert found["select"] == read_summary(tmp_path / "again")["select"] == "last"
    assert {"last", "best"} <= read_summary(tmp_path / "again")["tasks"][0].keys()


@pytest.mark.parametrize("layout", ["old", "new"])
def test_a_published_checkpoint_of_many_tasks_is_evaluated(layout, checkpoint, tmp_path, monkeypatch, capsys):
    line = [f"checkpoint={checkpoint[layout]}", "task_set=mt80", "task=[mw-reach,mw-push]", "plan=false"]
    line += ["evaluation.episodes=2", "evaluation.num_envs=1", "device=cpu"]
    call(monkeypatch, *line, f"folder={tmp_path / 'run'}")
    found = capsys.readouterr()
    assert "without planning" in found.out and "evaluation: 100%" in found.err
    table = read_summary(tmp_path / "run")["tasks"]
    assert [row["task"] for row in table] == ["mw-reach", "mw-push"]
    assert all(row["score"] in (0.0, 0.5, 1.0) and row["behavior_return_mean"] is None for row in table)
    # What was evaluated is not evaluated again.
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "tasks" / "mw-push.json").unlink()
    before = results(tmp_path / "run")
    call(monkeypatch, f"resume={tmp_path / 'run'}")
    assert read_summary(tmp_path / "run")["tasks"] == table and before.items() <= results(tmp_path / "run").items()


@pytest.mark.parametrize("layout", ["old", "new"])
def test_a_published_checkpoint_of_one_task_is_evaluated(layout, golden, tmp_path, monkeypatch, capsys):
    # 9 observations and 2 actions, as finger-spin has.
    file = tmp_path / "published.pt"
    torch.save({"model": as_published(golden(f"tdmpc2_checkpoint_{layout}")["single"])}, file)
    line = [f"checkpoint={file}", "task=finger-spin", PLANNER, "plan=true", "evaluation.episodes=1", "device=cpu"]
    call(monkeypatch, *line, "progress=false", f"folder={tmp_path / 'run'}")
    assert "finger-spin" in capsys.readouterr().out
    (returns,) = results(tmp_path / "run").values()
    assert len(returns) == 1 and 0 <= returns[0] <= 1000
    # The run keeps what it was given, and its policy is loaded from there.
    file.unlink()
    policy = load_policy(tmp_path / "run", "cpu")
    assert policy.task_name == "finger-spin" and policy(observation=torch.zeros(3, 9)).shape == (3, 2)


def test_a_checkpoint_brings_all_tasks_and_the_published_planner():
    config = command_config("tdmpc2-mt80", ["checkpoint=mt80-48M.pt", "plan=true"])
    assert (config.task, config.planner.num_samples, config.planner.num_elites) == ("mt80", 512, 64)
    assert command_config("tdmpc2-mt80", ["checkpoint=a.pt", "task=mw-reach"]).task == "mw-reach"
    small = command_config("tdmpc2-mt80", [])
    assert small.planner.num_samples == 64 and (small.loss.rho, small.training.slice_len) == (0.5, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint=nowhere.pt"], "nowhere.pt"),
        (["checkpoint={new}", "task_set=mt30", "task=walker-run"], "does not fit mt30: observation size 39"),
        (["checkpoint={single}"], "is of a single task: say which"),
        (["checkpoint={single}", "task=walker-run"], "does not fit walker-run: observation size 9"),
        (["task=mw-reech"], "mw-reach"),
        (["data=quickstart"], "choose data=published, data=open or data=collect"),
        (["data=open", "data.root=nowhere"], "No data in nowhere"),
    ],
)
def test_a_wrong_option_says_what_to_do(arguments, message, checkpoint, golden, tmp_path, monkeypatch):
    single = tmp_path / "single.pt"
    torch.save({"model": as_published(golden("tdmpc2_checkpoint_new")["single"])}, single)
    arguments = [argument.format(single=single, **checkpoint) for argument in arguments]
    with pytest.raises(SystemExit, match=message):
        call(monkeypatch, *arguments, f"folder={tmp_path / 'run'}", "device=cpu")
    assert not (tmp_path / "run").exists()
