"""A published agent in a simulator: evaluated, its model used for another policy, trained further."""

from __future__ import annotations

import importlib.machinery
import json
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("hydra")
pytest.importorskip("matplotlib")

from omegaconf import OmegaConf

from tests.envs.simulators import stand_ins
from tests.examples.test_pwm_online import call
from tests.modules.agent_files import save_pwm_agent, save_shac_agent
from torchrl_pwm import PWMAgent, PWMWorldModel, load_world_model, write_episodes
from torchrl_pwm.envs.simulators import AnalyticEnv, dflex
from torchrl_pwm.evaluation import evaluate_policy
from torchrl_pwm.runs.cli import command_config, main

SMALL = ["env.num_envs=4", "iterations=2", "eval_episodes=2", "evaluation.episodes=3", "replay.capacity=2000"]
SMALL += ["replay.batch_size=4", "eval_interval=1", "save_interval=1", "log_interval=1", "loss.horizon=3"]
SMALL += ["progress=false", "device=cpu"]
CARTPOLE = [*SMALL, "+env.episode_length=20"]


@pytest.fixture
def agent(tmp_path):
    save_pwm_agent(tmp_path / "agent.pt", 5, 1, obs_rms=True)
    return tmp_path / "agent.pt"


def run(command, folder, *arguments):
    main([command, f"folder={folder}", *arguments])
    return json.loads((folder / "summary.json").read_text())["outcomes"]


def weights(path):
    return torch.load(path, weights_only=True)


def changed(folder, agent):
    """Parts of the agent whose weights a run has changed."""
    given, model = PWMAgent.from_pwm(agent), weights(folder / "world_model.pt")
    parts = {"actor": (given.actor.state_dict(), weights(folder / "policy.pt"))}
    parts["world model"] = (given.world_model.state_dict(), model)
    return {name for name, (a, b) in parts.items() if any(not a[key].equal(b[key]) for key in a)}


def test_an_agent_is_evaluated_as_it_is(agent, tmp_path):
    outcomes = run("simulator", tmp_path / "run", f"checkpoint={agent}", "stage=evaluation", *CARTPOLE)
    assert set(outcomes) == {"policy", "random actions", "no action", "hand-written controller"}
    env = AnalyticEnv("cartpole_swingup", 3, episode_length=20)
    expected = evaluate_policy(PWMAgent.from_pwm(agent).policy, env, episodes=3, seed=1000)
    np.testing.assert_allclose(outcomes["policy"]["returns"], expected.returns, rtol=1e-5)
    assert changed(tmp_path / "run", agent) == set()


def test_a_policy_is_extracted_in_the_frozen_model_of_an_agent(agent, tmp_path):
    small = ["actor.units=[8]", "value.units=[8]"]
    outcomes = run("simulator", tmp_path / "run", f"checkpoint={agent}", "stage=extraction", *small, *CARTPOLE)
    assert "untrained policy" in outcomes
    model = load_world_model(tmp_path / "run")
    given = PWMAgent.from_pwm(agent).world_model
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), given.state_dict().values(), strict=True))
    assert weights(tmp_path / "run" / "policy.pt")["module.0.module.mu_net.0.weight"].shape == (8, 16)


def test_an_agent_is_trained_further_with_its_adam_states(agent, tmp_path):
    outcomes = run("simulator", tmp_path / "run", f"checkpoint={agent}", "select=last", *CARTPOLE)
    assert "policy of the checkpoint" in outcomes and "untrained policy" not in outcomes
    assert changed(tmp_path / "run", agent) == {"actor", "world model"}
    checkpoint = next((tmp_path / "run" / "checkpoint").glob("checkpoint-2-*.pt"))
    stepper = weights(checkpoint)["optimization_stepper"]
    # three steps in the file; one policy update, 8 x 4 of the critics and 8 of the model in each of two iterations
    steps = {
        "actor": stepper["policy"]["actor_optimizer"],
        "critic": stepper["policy"]["critic_optimizer"],
        "model": stepper["model"]["optimizer"],
    }
    counts = {name: int(optimizer["state"][0]["step"]) for name, optimizer in steps.items()}
    assert counts == {"actor": 3 + 2, "critic": 3 + 2 * 32, "model": 3 + 2 * 8}


def test_an_interrupted_run_goes_on_from_its_own_networks(agent, tmp_path, monkeypatch):
    from torchrl_pwm.trainers import OnlinePWMTrainer

    save = OnlinePWMTrainer.save

    def interrupt(trainer):
        save(trainer)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(OnlinePWMTrainer, "save", interrupt)
        run("simulator", tmp_path / "run", f"checkpoint={agent}", *CARTPOLE)
    main(["simulator", f"resume={tmp_path / 'run'}"])
    outcomes = json.loads((tmp_path / "run" / "summary.json").read_text())["outcomes"]
    env = AnalyticEnv("cartpole_swingup", 3, episode_length=20)
    expected = evaluate_policy(PWMAgent.from_pwm(agent).policy, env, episodes=3, seed=1000)
    np.testing.assert_allclose(outcomes["policy of the checkpoint"]["returns"], expected.returns, rtol=1e-5)


def test_training_goes_on_from_a_world_model_alone_and_from_an_agents_folder(agent, tmp_path):
    pytest.importorskip("huggingface_hub")
    small = ["actor.units=[8]", "value.units=[8]"]
    PWMAgent.from_pwm(agent).world_model.save_pretrained(tmp_path / "model")
    outcomes = run("simulator", tmp_path / "a", f"checkpoint={tmp_path / 'model'}", *small, *CARTPOLE)
    assert "untrained policy" in outcomes
    PWMAgent.from_pwm(agent).save_pretrained(tmp_path / "agent")
    outcomes = run("simulator", tmp_path / "b", f"checkpoint={tmp_path / 'agent'}", *CARTPOLE)
    assert "policy of the checkpoint" in outcomes


def test_a_published_agent_goes_through_all_stages_in_dflex(tmp_path, monkeypatch):
    for name, module in stand_ins.dflex_modules().items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(dflex, "_has_dflex", True)
    save_pwm_agent(tmp_path / "ant.pt", 37, 8)
    options = ["env=dflex/ant", f"checkpoint={tmp_path / 'ant.pt'}", "+env.episode_length=20", "env.shim=false", *SMALL]
    for stage in ("evaluation", "extraction", "online"):
        call(monkeypatch, "pwm_simulator", f"folder={tmp_path / stage}", f"stage={stage}", *options)
        outcomes = json.loads((tmp_path / stage / "summary.json").read_text())["outcomes"]
        assert all(len(outcome["returns"]) == 3 for outcome in outcomes.values())


def test_policies_are_extracted_from_recorded_steps_that_were_imported(agent, tmp_path):
    draws = np.random.default_rng(0)
    episodes = [
        {"observation": draws.normal(size=(21, 5)), "action": draws.uniform(-1, 1, (20, 1)), "reward": np.ones(20)}
        for _ in range(4)
    ]
    write_episodes(tmp_path / "data", episodes)
    data = [f"pretraining.data={tmp_path / 'data'}", "pretraining.keep=true", "pretraining.updates=2"]
    run("simulator", tmp_path / "run", f"checkpoint={agent}", *data, *CARTPOLE)
    checkpoint = next((tmp_path / "run" / "checkpoint").glob("checkpoint-2-*.pt"))
    assert int(weights(checkpoint)["optimization_stepper"]["model"]["optimizer"]["state"][0]["step"]) == 3 + 2 + 2 * 8


# The preset.


def test_a_checkpoint_brings_the_published_settings():
    config = command_config("simulator", ["env=dflex/ant", "checkpoint=ant.pt"])
    resolved = OmegaConf.to_container(config, resolve=True)
    assert resolved["iterations"] == 15_000 and resolved["pretraining"]["updates"] == 0
    model = resolved["model"]
    assert (model["latent_dim"], model["encoder_units"], model["units"]) == (512, [256], [512, 512])
    assert (model["simnorm_dim"], model["residual"], model["num_bins"]) == (8, False, None)
    assert (resolved["actor"]["units"], resolved["value"]["units"]) == ([400, 200, 100], [400, 200])
    assert resolved["value"]["num_nets"] == 3 and resolved["loss"]["horizon"] == 16
    assert (resolved["stepper"]["actor_lr"], resolved["stepper"]["critic_lr"]) == (5e-4, 5e-4)
    assert (resolved["model_stepper"]["lr"], resolved["model_stepper"]["final_lr"]) == (3e-4, 1e-5)
    assert resolved["collector"]["steps"] == 16 and resolved["replay"]["batch_size"] == 256
    assert (resolved["online"]["model_updates"], resolved["online"]["start_states"]) == (8, 128)


@pytest.mark.parametrize(
    ("task", "updates"),
    [("hopper", 50_000), ("ant", 100_000), ("anymal", 100_000), ("humanoid", 200_000), ("snu_humanoid", 200_000)],
)
def test_the_published_runs_learn_from_recorded_data_first(task, updates):
    config = command_config("simulator", [f"env=dflex/{task}", "pwm=published", "pretraining.data=data"])
    assert config.pretraining.updates == updates
    assert command_config("simulator", ["pwm=published"]).pretraining.updates == 0


def test_what_the_command_line_says_comes_before_the_published_settings():
    config = command_config("simulator", ["env=newton/ant", "checkpoint=ant.pt", "pwm=newton/ant", "iterations=3"])
    assert config.iterations == 3 and config.model.latent_dim == 128


# What does not fit.


@pytest.mark.parametrize(
    ("make", "stage", "message"),
    [
        (
            lambda path: save_pwm_agent(path, 7, 3),
            "online",
            "observations of 7 and actions of 3 entries, the env has 5",
        ),
        (lambda path: save_shac_agent(path, 5, 1), "evaluation", "agent of SHAC, which has no world model"),
        (lambda path: path.write_text("<html>"), "online", "it is a web page"),
        (lambda path: torch.save({"model": None}, path), "online", "found {.model.: NoneType}"),
        (lambda path: save_pwm_agent(path, 5, 1), "evaluate", "stage must be one of evaluation, extraction, online"),
        (
            lambda path: torch.save(PWMWorldModel(5, 1, latent_dim=16).state_dict(), path),
            "evaluation",
            "world model without a policy",
        ),
        (
            lambda path: torch.save(PWMWorldModel(5, 1, latent_dim=16, num_tasks=2, task_dim=4).state_dict(), path),
            "online",
            "model of 2 tasks, a run in one env needs one of a single task",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_ends_the_command_with_one_sentence(make, stage, message, tmp_path):
    make(tmp_path / "agent.pt")
    with pytest.raises(SystemExit, match=message):
        run("simulator", tmp_path / "run", f"checkpoint={tmp_path / 'agent.pt'}", f"stage={stage}", *CARTPOLE)
    assert not (tmp_path / "run").exists()


def test_a_missing_checkpoint_is_named_before_a_folder_is_made(tmp_path):
    with pytest.raises(SystemExit, match=r"No checkpoint at .*nowhere\.pt"):
        run("simulator", tmp_path / "run", f"checkpoint={tmp_path / 'nowhere.pt'}", *CARTPOLE)
    assert not (tmp_path / "run").exists()
