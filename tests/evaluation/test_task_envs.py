"""Envs that are kept from one evaluation to the next play the episodes of new ones, and are built once."""

from __future__ import annotations

import pickle

import pytest

pytest.importorskip("dm_control")
pytest.importorskip("metaworld")

from tensordict.nn import TensorDictModule

from tests.evaluation.test_task_episodes import row_by_row
from torchrl_pwm import evaluate_policy
from torchrl_pwm.envs import MT80, TaskSet, multitask
from torchrl_pwm.evaluation.task_envs import TaskEnvs


def test_simulators_are_built_once_and_their_episodes_are_those_of_new_ones_bit_for_bit(monkeypatch):
    built, make = [], multitask.make_simulation
    monkeypatch.setattr(
        multitask, "make_simulation", lambda *args, **kwargs: built.append(args) or make(*args, **kwargs)
    )
    policy = TensorDictModule(row_by_row, ["observation"], ["action"])
    options = {"task_set": "mt80", "episodes": 2, "num_envs": 2}
    with TaskEnvs() as envs:
        found = [envs.evaluate(policy, "mw-window-open", seed=5, **options)]
        once = len(built)
        found += [envs.evaluate(policy, "mw-window-open", seed=seed, **options) for seed in (6, 5)]
        assert len(built) == once and len(envs) == 2
    expected = [evaluate_policy(policy, "mw-window-open", seed=seed, **options) for seed in (5, 6)]
    assert len(built) == 3 * once and len(envs) == 0
    for one, other in zip(found, [*expected, expected[0]], strict=True):
        assert (one.task, one.seed, one.returns.tolist()) == (other.task, other.seed, other.returns.tolist())
        assert (one.successes.tolist(), one.scores.tolist()) == (other.successes.tolist(), other.scores.tolist())


def test_no_more_simulators_are_kept_than_asked_for_and_none_goes_to_another_process():
    policy = TensorDictModule(lambda observation: 0 * observation[..., :1], ["observation"], ["action"])
    with TaskEnvs(simulators=1) as envs:
        single = envs.evaluate(policy, "pendulum-swingup", episodes=1, seed=3)
        assert len(envs) == 1 and single.score == pytest.approx(MT80["pendulum-swingup"].score(single.returns.mean()))
        envs.evaluate(policy, "pendulum-swingup", episodes=2, seed=3, num_envs=2)
        assert len(envs) == 1
        assert len(pickle.loads(pickle.dumps(envs))) == 0 and len(envs) == 1


def test_sets_of_the_same_name_and_sizes_in_another_order_have_envs_of_their_own():
    told, rows = [], [MT80["mw-reach"], MT80["mw-push"]]
    policy = TensorDictModule(
        lambda task, observation: told.append(int(task.flatten()[0])) or 0 * observation[..., :4],
        ["task", "observation"],
        ["action"],
    )
    with TaskEnvs() as envs:
        for order in (rows, rows[::-1]):
            envs.evaluate(policy, "mw-reach", episodes=1, seed=0, task_set=TaskSet("pair", order))
    assert told[0] == 0 and told[-1] == 1
