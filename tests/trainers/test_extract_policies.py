"""Policies of many tasks by one call: each is that of its own run, in whatever company and however often resumed."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import TensorDictReplayBuffer, TensorStorage

from tests.trainers.test_stacked import assert_close, make_model
from tests.trainers.tiny import assert_same
from torchrl_pwm import PWMLoss, PWMTrainer, extract_policies, make_pwm_actor, make_value_ensemble
from torchrl_pwm.trainers import PWMOptimizationStepper, load_checkpoint

NETWORKS = {"actor": {"units": (16,)}, "value": {"units": (16,), "num_nets": 2}}
SETTINGS = {**NETWORKS, "loss": {"horizon": 3}, "stepper": {"critic_iterations": 2}}
SETTINGS |= {"iterations": 6, "batch_size": 16, "average": 0.5, "progress_bar": False}
TASKS = [0, 2, 4]


def starts(task):
    draws = torch.Generator().manual_seed(task)
    entries = {"observation": torch.randn(64, 9, generator=draws), "task": torch.full((64,), task)}
    return TensorDict({**entries, "action": torch.rand(64, 3, generator=draws) * 2 - 1}, [64])


STARTS = {task: starts(task) for task in range(5)}


def weights(policies):
    return {task: dict(policy.actor.state_dict()) for task, policy in policies.items()}


def draw(task, policy):
    """An evaluation that uses up random numbers."""
    return float(torch.rand(()))


@pytest.mark.parametrize("options", [{}, {"num_heads": 3}], ids=["one head", "three heads"])
def test_each_policy_is_that_of_an_ordinary_training(options):
    model = make_model(**options)
    policies = extract_policies(model, STARTS, TASKS, **{**SETTINGS, "average": 0.0, "iterations": 20}, seed=3)
    for task, policy in policies.items():
        torch.manual_seed(1_000_003 * 3 + task)
        actor, critics = make_pwm_actor(16, 3, **NETWORKS["actor"]), make_value_ensemble(16, **NETWORKS["value"])
        objective = PWMLoss(actor, critics, model, horizon=3)
        generator = torch.Generator().manual_seed(3)
        replay = TensorDictReplayBuffer(storage=TensorStorage(STARTS[task]), batch_size=16, generator=generator)
        stepper = PWMOptimizationStepper(objective, iterations=20, critic_iterations=2)
        PWMTrainer(objective, replay, iterations=20, optimization_stepper=stepper, progress_bar=False).train()
        assert_close(dict(policy.actor.state_dict()), dict(actor.state_dict()))


def test_company_changes_no_numbers_and_nothing_outside_is_seeded(device):
    model, settings = make_model(), {**SETTINGS, "warm_start": {"behavior_updates": 3, "value_updates": 1}}
    settings |= {"evaluate": draw, "eval_interval": 2, "select": "best", "device": device}
    state = torch.get_rng_state()
    together = extract_policies(model, STARTS, TASKS, **settings)
    assert torch.equal(torch.get_rng_state(), state)
    for task in TASKS:
        alone = extract_policies(model, STARTS, [task], **settings)
        assert_close(weights(alone)[task], weights(together)[task])


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("visit", [2, 4, 5])
def test_an_interrupted_call_goes_on_to_the_same_numbers(visit, tmp_path):
    """After the first task's checkpoint or before it, so that tasks stand at different iterations."""
    model, settings = make_model(), {**SETTINGS, "eval_interval": 2, "save_interval": 2, "select": "best"}
    whole = extract_policies(model, STARTS, TASKS, **settings, evaluate=draw, save_folder=tmp_path / "whole")
    visits = []

    def interrupted(task, policy):
        visits.append(task)
        if len(visits) == visit + 1:
            raise Interrupted
        return draw(task, policy)

    with pytest.raises(Interrupted):
        extract_policies(model, STARTS, TASKS, **settings, evaluate=interrupted, save_folder=tmp_path / "run")
    again = extract_policies(model, STARTS, TASKS, **settings, evaluate=draw, save_folder=tmp_path / "run")
    assert_close(weights(again), weights(whole))
    for task in TASKS:
        states = [load_checkpoint(tmp_path / name / str(task)) for name in ("run", "whole")]
        for state in states:
            state.pop("stopwatch")
        assert_close(states[0].pop("best_policy"), states[1].pop("best_policy"))
        assert_same(states[0]["generators"], states[1]["generators"])
        assert_close(*states)


def test_a_checkpoint_is_as_large_as_that_of_a_task_alone(tmp_path):
    model = make_model()
    for name, tasks in (("together", TASKS), ("alone", TASKS[:1])):
        extract_policies(model, STARTS, tasks, **SETTINGS, save_folder=tmp_path / name)
    sizes = [
        sum(file.stat().st_size for file in (tmp_path / name / "0").glob("*.pt")) for name in ("together", "alone")
    ]
    assert abs(sizes[0] - sizes[1]) < 1000


def test_a_task_that_diverges_is_named_when_the_others_have_ended(tmp_path):
    model, bad = make_model(), starts(2)
    bad["observation"][:] = torch.inf
    folders = {"save_folder": tmp_path, "save_interval": 2}
    with pytest.raises(FloatingPointError, match=r"Update 1 of the actor.*of task \[2\]"):
        extract_policies(model, {**STARTS, 2: bad}, TASKS, **SETTINGS, **folders)
    assert [load_checkpoint(tmp_path / str(task))["iteration"] for task in (0, 4)] == [6, 6]
    assert not (tmp_path / "2").exists()
    policies = extract_policies(model, STARTS, [0, 4], **SETTINGS)
    for task, found in weights(policies).items():
        state = load_checkpoint(tmp_path / str(task))["policy_average"]["weights"]
        assert_close(sorted(map(float, map(torch.sum, state))), sorted(float(w.sum()) for w in found.values()))


@pytest.mark.parametrize(
    ("given", "tasks", "message"),
    [
        (STARTS, [0, 9], r"start states of every task, found none of \[9\]"),
        ({}, None, "found none of any"),
        ({"walk": starts(0).exclude("task")}, None, "the start states of 'walk' have no entry 'task'"),
        ({"walk": torch.cat([starts(0), starts(1)])}, None, r"should be of one task, found \[0, 1\]"),
    ],
)
def test_start_states_that_fit_no_task_are_refused(given, tasks, message):
    with pytest.raises(ValueError, match=message):
        extract_policies(make_model(), given, tasks, **SETTINGS)


def test_a_score_that_is_no_number_is_refused():
    settings = {**SETTINGS, "evaluate": lambda task, policy: float("nan"), "eval_interval": 2, "select": "best"}
    with pytest.raises(ValueError, match="evaluate gave NaN for the policy of 2"):
        extract_policies(make_model(), STARTS, [2], **settings)


def test_the_best_policy_needs_an_evaluation():
    with pytest.raises(ValueError, match="chooses by evaluate="):
        extract_policies(make_model(), STARTS, TASKS, **SETTINGS, select="best")


def test_a_model_with_entries_of_other_names_reads_start_states_with_these():
    model, expected = make_model(), extract_policies(make_model(), STARTS, [2], **SETTINGS)
    model.set_keys(observation="state", task="which", latent="z")
    renamed = STARTS[2].exclude("task").rename_key_("observation", "state")
    found = extract_policies(model, {2: renamed}, **SETTINGS)
    assert_same(weights(found)[2], weights(expected)[2])
    assert found[2](renamed[:3])["action"].shape == (3, 3)


def test_a_replay_buffer_without_tasks_is_refused():
    replay = TensorDictReplayBuffer(storage=TensorStorage(starts(2).exclude("task")), batch_size=16)
    with pytest.raises(ValueError, match="the replay buffer of 2 gives start states without an entry 'task'"):
        extract_policies(make_model(), {2: replay}, **SETTINGS)
