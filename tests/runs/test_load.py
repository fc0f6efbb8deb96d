"""The policy of every kind of run is taken away, and earns elsewhere what its run says."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
import torch

pytest.importorskip("hydra")

from hydra.utils import instantiate
from tensordict import TensorDict
from torchrl.envs import InitTracker, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_pwm import evaluate_policy, load_policy, load_world_model, make_task_env
from torchrl_pwm.runs.cli import main
from torchrl_pwm.runs.load import read_config

needs_mt80 = pytest.mark.skipif(importlib.util.find_spec("dm_control") is None, reason="dm_control is not installed")


def earned(policy, folder, episodes=None):
    """Returns of a policy in the final evaluation of the run in a folder."""
    config = read_config(folder)
    episodes = episodes or config.evaluation.episodes
    env = instantiate(config.env, num_envs=episodes)
    return evaluate_policy(policy, env, episodes=episodes, seed=config.evaluation.seed).returns.tolist()


@pytest.mark.parametrize(
    ("name", "options", "outcome"),
    [
        ("shac", {}, "policy"),
        ("pwm_online", {}, "policy"),
        ("tdmpc2_online", {"plan": False}, "policy without planning"),
    ],
)
def test_a_policy_of_one_env_earns_what_its_run_says(name, options, outcome, finished):
    folder = finished(name)
    said = json.loads((folder / "summary.json").read_text())["outcomes"][outcome]["returns"]
    assert earned(load_policy(folder, "cpu", **options), folder) == pytest.approx(said, rel=1e-5)


@pytest.mark.parametrize("name", ["shac", "pwm_online", "tdmpc2_online"])
def test_a_policy_acts_in_a_rollout_and_by_a_plain_call(name, finished):
    policy, config = load_policy(finished(name), "cpu"), read_config(finished(name))
    env = TransformedEnv(instantiate(config.env, num_envs=3), InitTracker())
    rollout = env.rollout(4, policy)
    assert rollout["action"].shape == (3, 4, 1) and rollout["action"].abs().max() <= 1
    assert policy(observation=rollout["observation"][:, 0]).shape == (3, 1)
    assert policy(observation=rollout["observation"][0, 0]).shape == (1,)
    assert not any(parameter.requires_grad for parameter in policy.parameters())


def test_a_policy_is_deterministic_unless_it_is_asked_to_explore(finished):
    policy, observation = load_policy(finished("pwm_online"), "cpu"), torch.zeros(2, 5)
    torch.testing.assert_close(policy(observation=observation), policy(observation=observation), rtol=0, atol=0)
    with set_exploration_type(ExplorationType.RANDOM):
        assert not torch.equal(policy(observation=observation), policy(observation=observation))


def test_numbers_of_double_precision_are_read_as_those_of_the_networks(finished):
    policy, observation = load_policy(finished("shac"), "cpu"), torch.linspace(-1, 1, 5)
    action = policy(observation=observation.double())
    torch.testing.assert_close(action, policy(observation=observation), check_dtype=False)


def test_an_observation_of_another_size_is_named(finished):
    with pytest.raises(ValueError, match=r"reads 'observation' of shape \[\*, 5\], found \(2, 4\)"):
        load_policy(finished("shac"), "cpu")(observation=torch.zeros(2, 4))


def test_a_planner_without_the_beginnings_of_episodes_plans_afresh(finished):
    policy = load_policy(finished("tdmpc2_online"), "cpu", plan=True)
    observation = torch.zeros(2, 5)
    actions = []
    for _ in range(2):
        torch.manual_seed(0)
        actions.append(policy(observation=observation))
    torch.testing.assert_close(*actions, rtol=0, atol=0)


@needs_mt80
def test_the_policy_of_a_task_earns_what_its_run_says(finished):
    folder = finished("mt80")
    config = read_config(folder)
    said = json.loads((folder / "policies/pendulum-swingup/seed-0/result.json").read_text())["returns"]
    policy = load_policy(folder, "cpu")
    episodes, seed = config.evaluation.episodes, config.evaluation.seed
    padded = evaluate_policy(policy, "pendulum-swingup", task_set="mt80", episodes=episodes, seed=seed)
    own = evaluate_policy(policy, "pendulum-swingup", episodes=episodes, seed=seed)
    assert padded.returns.tolist() == pytest.approx(said, rel=1e-5)
    assert own.returns.tolist() == pytest.approx(said, rel=1e-4)


@needs_mt80
def test_a_policy_of_a_task_reads_the_sizes_of_the_task_and_no_other_task(finished):
    policy = load_policy(finished("mt80"), "cpu", task="pendulum-swingup")
    assert policy.in_keys == ["observation"] and (policy.task_shape, policy.task_action_dim) == ((3,), 1)
    assert policy(observation=torch.zeros(4, 3)).shape == (4, 1)
    td = make_task_env("pendulum-swingup", task_set="mt80").reset()
    assert policy(td.clone())["action"].shape == (6,)
    with pytest.raises(ValueError, match=r"The policy is of task .* \(pendulum-swingup\) alone, found task \[3\]"):
        policy(td.clone().set("task", torch.tensor(3)))
    with pytest.raises(ValueError, match=r"\[\*, 3\] \(padded: 39\), found \(4, 5\)"):
        policy(observation=torch.zeros(4, 5))


@needs_mt80
def test_a_policy_file_of_a_run_is_its_policy(finished):
    folder, observation = finished("mt80"), torch.ones(2, 3)
    file = folder / "policies/pendulum-swingup/seed-0/policy.pt"
    assert torch.equal(
        load_policy(file, "cpu")(observation=observation), load_policy(folder, "cpu")(observation=observation)
    )


@needs_mt80
def test_a_multi_task_planner_acts_in_one_task_or_in_all(finished):
    folder = finished("tdmpc2_mt80")
    config = read_config(folder)
    name = config.task if isinstance(config.task, str) else config.task[0]
    env = make_task_env(name, task_set="mt80")
    for plan in (True, False):
        policy = load_policy(folder, "cpu", task=name, plan=plan)
        assert policy(env.reset())["action"].shape == (6,)
        own = make_task_env(name)
        assert policy(own.reset())["action"].shape == own.action_spec.shape


@needs_mt80
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "walker-run"}, r"no policy of task=walker-run, only of \['pendulum-swingup'\]"),
        ({"seed": 5}, r"no policy of seed=5, only of \[0\]"),
    ],
)
def test_a_policy_that_there_is_not_is_named(options, message, finished):
    with pytest.raises(ValueError, match=message):
        load_policy(finished("mt80"), **options)


@needs_mt80
def test_of_several_tasks_one_is_to_be_chosen(finished, tmp_path):
    shutil.copytree(finished("mt80"), tmp_path / "run")
    policies = tmp_path / "run" / "policies"
    shutil.copytree(policies / "pendulum-swingup", policies / "walker-run")
    with pytest.raises(
        ValueError, match=r"several policies: choose one with task=, of \['pendulum-swingup', 'walker-run'\]"
    ):
        load_policy(tmp_path / "run")
    assert load_policy(tmp_path / "run", "cpu", task="walker-run").task_shape == (24,)


def test_another_task_than_that_of_the_run_is_refused(finished):
    with pytest.raises(ValueError, match="is of cartpole_swingup alone, found task=hopper"):
        load_policy(finished("shac"), task="hopper")


@pytest.mark.parametrize("name", ["shac", "pwm_online", "tdmpc2_online", "tdmpc2_mt80"])
def test_a_run_that_has_not_ended_says_how_it_goes_on(name):
    from tests.runs.conftest import RUNS

    with pytest.raises(FileNotFoundError, match=r"No policy in .*goes on with: torchrl-pwm [a-z0-9-]+ resume="):
        load_policy(RUNS / name / "interrupted")


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No run in .*: expected config.yaml there"):
        load_policy(tmp_path)


def test_steps_of_a_planner_are_recorded(finished, tmp_path):
    out = tmp_path / "steps"
    main(["record", f"run={finished('tdmpc2_online')}", f"out={out}", "rows=2", "steps=3"])
    assert TensorDict.load_memmap(out).batch_size == (2, 3)


@needs_mt80
def test_steps_of_many_tasks_are_not_recorded(finished, tmp_path):
    with pytest.raises(SystemExit, match="record takes a run in one env, found one of many tasks"):
        main(["record", f"run={finished('mt80')}", f"out={tmp_path / 'steps'}"])


@needs_mt80
@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_run_that_was_given_its_world_model_keeps_it(form, finished, tmp_path):
    """A new run from the model of another, which is gone when the policy is loaded."""
    given, source = tmp_path / "given", finished("mt80") / "world_model/world_model.pt"
    if form == "file":
        given.mkdir()
        shutil.copy(source, given / "model.pt")
    else:
        load_world_model(source).save_pretrained(given)
    checkpoint = given / "model.pt" if form == "file" else given
    data = [f"checkpoint={checkpoint}", "data=open", f"data.root={finished('mt80') / 'data'}", "task=pendulum-swingup"]
    small = ["preset=published", "model=small", "extraction.iterations=1", "extraction.batch_size=2", "loss.horizon=2"]
    small += ["evaluation.episodes=1", "evaluation.film=0", "evaluation.baselines=null", "extraction.eval_episodes=1"]
    main(["mt80", *data, *small, "progress=false", "device=cpu", "workers=1", f"folder={tmp_path / 'run'}"])
    shutil.rmtree(given)
    policy = load_policy(tmp_path / "run", "cpu")
    assert policy(observation=torch.zeros(2, 3)).shape == (2, 1)
    torch.testing.assert_close(policy.world_model.state_dict(), load_world_model(source).state_dict(), rtol=0, atol=0)
    main(["mt80", f"resume={tmp_path / 'run'}"])
