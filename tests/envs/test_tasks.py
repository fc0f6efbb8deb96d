"""The task tables hold what the recorded data and the published sets say."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from torchrl_pwm.envs import MT30, MT80, TaskSet, get_task_set
from torchrl_pwm.envs.tasks import get_task_spec

_GOLDEN = Path(__file__).parents[1] / "golden"


def test_mt80_has_thirty_dm_control_tasks_then_fifty_meta_world_tasks():
    assert len(MT30) == 30 and len(MT80) == 80
    assert MT80.names[:30] == MT30.names
    assert {spec.suite for spec in MT30} == {"dm_control", "dm_control_custom"}
    assert sum(spec.suite == "dm_control_custom" for spec in MT30) == 11
    assert {spec.suite for spec in MT80[30:]} == {"metaworld"}
    assert [spec.index for spec in MT80] == list(range(80))


def test_order_of_tasks_is_that_of_the_recorded_data():
    names = [str(n) for family in ("dmc", "mw") for n in np.load(_GOLDEN / f"golden_{family}.npz")["tasks"]]
    assert list(MT80.names) == names


@pytest.mark.parametrize("family", ["dmc", "mw"])
def test_sizes_equal_those_of_the_recorded_data(family):
    archive = np.load(_GOLDEN / f"golden_{family}.npz")
    for name in map(str, archive["tasks"]):
        assert MT80[name].observation_dim == archive[f"{name}/obs"].shape[1]
        assert MT80[name].action_dim == archive[f"{name}/actions"].shape[1]


@pytest.mark.parametrize(
    ("name", "index", "domain", "task", "observation_dim", "action_dim"),
    [
        ("walker-stand", 0, "walker", "stand", 24, 6),
        ("cartpole-swingup-sparse", 11, "cartpole", "swingup_sparse", 5, 1),
        ("cup-catch", 12, "ball_in_cup", "catch", 8, 2),
        ("finger-turn-hard", 15, "finger", "turn_hard", 12, 2),
        ("fish-swim", 16, "fish", "swim", 24, 5),
        ("walker-run-backwards", 20, "walker", "run_backwards", 24, 6),
        ("reacher-three-hard", 27, "reacher", "three_hard", 8, 3),
        ("pendulum-spin", 29, "pendulum", "spin", 3, 1),
        ("mw-assembly", 30, "sawyer", "assembly", 39, 4),
        ("mw-hand-insert", 79, "sawyer", "hand-insert", 39, 4),
    ],
)
def test_row_of(name, index, domain, task, observation_dim, action_dim):
    spec = MT80[name]
    assert (spec.index, spec.domain, spec.task) == (index, domain, task)
    assert (spec.observation_dim, spec.action_dim) == (observation_dim, action_dim)
    assert MT80[index] is spec


def test_padded_sizes_and_action_dims():
    assert (MT30.name, MT30.observation_dim, MT30.action_dim) == ("mt30", 24, 6)
    assert (MT80.name, MT80.observation_dim, MT80.action_dim) == ("mt80", 39, 6)
    assert MT30.action_dims == (6, 6, 6, 6, 2, 2, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 5, 4, 4, *[6] * 6, 4, 3, 3, 2, 1)
    assert MT80.action_dims == MT30.action_dims + (4,) * 50


def test_lengths_returns_and_discounts_of_both_families():
    walker, reach = MT80["walker-run"], MT80["mw-reach"]
    assert (walker.episode_length, walker.max_return, walker.warmup_raw_steps) == (500, 1000.0, 0)
    assert (reach.episode_length, reach.max_return, reach.warmup_raw_steps) == (100, 2000.0, 1)
    for spec in MT80:
        fifth = spec.episode_length / 5
        assert spec.discount == pytest.approx(min(max((fifth - 1) / fifth, 0.95), 0.995))
        assert 0.0 < spec.reference_score <= 1.0
    assert reach.env_id == "reach-v3-goal-observable" and walker.env_id is None


def test_score_is_the_return_over_1000_for_dm_control_and_success_for_meta_world():
    assert MT80["walker-run"].score(250.0) == 0.25
    assert MT80["mw-reach"].score(1800.0, True) == 1.0
    assert MT80["mw-reach"].score(1800.0, success=0.3) == 0.3
    scores = MT80["mw-reach"].score(torch.zeros(2), torch.tensor([True, False]))
    assert torch.equal(scores, torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="mw-reach is scored by success"):
        MT80["mw-reach"].score(1800.0)


@pytest.mark.parametrize(
    ("wrong", "near"), [("walker-rum", "walker-run"), ("reach", "mw-reach"), ("mw-reech", "mw-reach")]
)
def test_unknown_task_names_the_nearest_ones(wrong, near):
    with pytest.raises(ValueError, match=f"unknown task '{wrong}'.*'{near}'"):
        MT80[wrong]


def test_task_of_another_set_is_refused():
    assert "mw-reach" not in MT30 and "mw-reach" in MT80
    with pytest.raises(ValueError, match="in task set 'mt30'"):
        MT30["mw-reach"]


def test_get_task_set_takes_names_and_sets():
    assert get_task_set("mt30") is MT30 and get_task_set("MT80") is MT80 and get_task_set(MT30) is MT30
    with pytest.raises(ValueError, match=r"unknown task set 'mt50'.*mt30"):
        get_task_set("mt50")


def test_own_task_set_renumbers_its_rows():
    pair = TaskSet("pair", ["mw-reach", get_task_spec("pendulum-spin")])
    assert [spec.index for spec in pair] == [0, 1]
    assert (pair.observation_dim, pair.action_dim, pair.action_dims) == (39, 4, (4, 1))
    assert MT80["mw-reach"].index == 65


@pytest.mark.parametrize(("tasks", "message"), [([], "at least one task"), (["mw-reach"] * 2, "repeats")])
def test_faulty_task_set_is_refused(tasks, message):
    with pytest.raises(ValueError, match=message):
        TaskSet("faulty", tasks)


def test_rows_are_immutable_and_sets_survive_pickling():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MT80["mw-reach"].index = 3
    assert pickle.loads(pickle.dumps(MT80)) == MT80
    assert MT80 != MT30


def test_tables_load_without_a_simulator_and_without_torch():
    code = (
        "import sys; from torchrl_pwm.envs import MT80, get_task_set; "
        "sys.exit(any(m in sys.modules for m in ('mujoco', 'dm_control', 'metaworld', 'gymnasium', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
