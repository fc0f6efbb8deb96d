"""Batches that would be silently wrong are named at the first one; other dtypes are cast where that is safe."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, ReplayBuffer, SliceSampler

from tests.objectives.test_loss_checklist import (
    ACTION,
    BATCH,
    HORIZON,
    OBSERVATION,
    TASKS,
    make_model,
    make_pwm,
    make_tdmpc2,
    sequences,
    starts,
)
from torchrl_pwm import PWMWorldModel, PWMWorldModelLoss
from torchrl_pwm.envs.simulators import AnalyticEnv
from torchrl_pwm.trainers.imitation import clone_behavior

SEQUENCE_LOSSES = pytest.mark.parametrize(
    "make", [lambda **o: PWMWorldModelLoss(make_model(**o)), lambda **o: make_tdmpc2(**o)], ids=["pwm", "tdmpc2"]
)


def consistent(num_tasks: int = 0, count: int = 40) -> TensorDict:
    """Sequences whose steps follow each other."""
    states = torch.randn(count, HORIZON + 1, OBSERVATION)
    step = TensorDict({"observation": states[:, 1:], "reward": torch.randn(count, HORIZON, 1)}, [count, HORIZON])
    entries = {"observation": states[:, :-1], "action": torch.rand(count, HORIZON, ACTION), "next": step}
    if num_tasks:
        entries["task"] = torch.randint(num_tasks, (count, 1)).expand(count, HORIZON).clone()
    return TensorDict(entries, [count, HORIZON])


@SEQUENCE_LOSSES
@pytest.mark.parametrize("bound", [2.0, -1.5])
def test_actions_outside_the_unit_box_are_named(make, bound) -> None:
    td = sequences()
    td["action"][2, 1, 0] = bound
    loss = make()
    for _ in range(2):  # the same batch again is refused again
        with pytest.raises(ValueError, match=r"needs actions in \[-1, 1\], found .*ActionScaling"):
            loss(td)
    td["action"][2, 1, 0] = 1.00001  # rounding
    assert loss(td)["loss_consistency"].isfinite()


def test_padded_entries_of_an_action_may_hold_anything() -> None:
    td = sequences(TASKS)
    td["task"] = torch.zeros_like(td["task"])
    td["action"][..., 1] = 7.0
    assert PWMWorldModelLoss(make_model(TASKS, action_dims=[1, 2, 2]))(td)["loss_reward"].isfinite()
    with pytest.raises(ValueError, match=r"found 0\.\d+ to 7"):
        PWMWorldModelLoss(make_model(TASKS))(td)


def test_the_behaviour_term_and_cloning_name_them_too() -> None:
    td = starts().set("action", torch.full((BATCH, ACTION), 2.0))
    with pytest.raises(ValueError, match=r"PWMLoss needs actions in \[-1, 1\], found 2 to 2"):
        make_pwm(behavior_coef=1.0)(td)
    replay = ReplayBuffer(storage=LazyTensorStorage(BATCH))
    replay.extend(td)
    with pytest.raises(ValueError, match=r"clone_behavior needs actions in \[-1, 1\]"):
        clone_behavior(replay, OBSERVATION, ACTION, updates=1)


def test_only_the_first_batch_is_read() -> None:
    loss, td = PWMWorldModelLoss(make_model()), sequences()
    loss(td)
    td["action"][0] = 3.0
    assert loss(td)["loss_consistency"].isfinite()


@SEQUENCE_LOSSES
def test_float64_data_give_the_losses_of_float32_data(make) -> None:
    torch.manual_seed(0)
    loss, td = make().eval(), sequences()
    torch.manual_seed(1)
    expected = loss(td)
    torch.manual_seed(1)
    found = loss(td.double())
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@SEQUENCE_LOSSES
def test_whole_numbers_are_read_as_they_are(make) -> None:
    loss, td = make().eval(), sequences()
    for key in ("observation", ("next", "observation"), ("next", "reward")):
        td[key] = torch.randint(-100, 100, td[key].shape)
    torch.manual_seed(1)
    found = loss(td)
    torch.manual_seed(1)
    for key, value in loss(td.float()).items():
        assert torch.equal(found[key], value), key


@SEQUENCE_LOSSES
@pytest.mark.parametrize("value", [2**24 + 1, 1e39])
def test_numbers_that_float32_cannot_tell_apart_are_named(make, value) -> None:
    td = sequences()
    dtype = torch.int64 if isinstance(value, int) else torch.float64
    td["observation"] = td["observation"].to(dtype)
    td["observation"][0, 0, 0] = value
    with pytest.raises(ValueError, match=rf"reads 'observation' as float32, found {dtype} from"):
        make()(td)


def test_start_states_are_checked_as_sequences_are() -> None:
    td = starts().double()
    torch.manual_seed(0)
    expected = make_pwm()(starts())["loss_actor"].dtype
    assert make_pwm()(td)["loss_actor"].dtype == expected
    td["observation"] = torch.full((BATCH, OBSERVATION), 2**30)
    with pytest.raises(ValueError, match=r"PWMLoss reads 'observation' as float32, found torch.int64"):
        make_pwm()(td)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda task: task + TASKS, rf"indices from 0 to {TASKS - 1} .* found {TASKS} to"),
        (lambda task: task - TASKS, rf"indices from 0 to {TASKS - 1} .* found -{TASKS} to"),
        (lambda task: task.float(), "integers"),
        (lambda task: task.unsqueeze(-1), r"shape .* found .*1\].*squeeze"),
    ],
    ids=["above", "negative", "float", "column"],
)
@pytest.mark.parametrize("kind", ["pwm", "world_model", "tdmpc2"])
def test_a_task_that_is_none_of_the_models_is_named_by_the_loss(kind, change, message) -> None:
    td = starts(TASKS) if kind == "pwm" else consistent(TASKS)
    td["task"] = change(torch.arange(len(td)).reshape(-1, *[1] * (td.ndim - 1)).expand(td.shape) % TASKS)
    loss = {
        "pwm": lambda: make_pwm(TASKS, behavior_coef=1.0),
        "world_model": lambda: PWMWorldModelLoss(make_model(TASKS, action_dims=[1, 2, 2])),
        "tdmpc2": lambda: make_tdmpc2(TASKS),
    }[kind]()
    with pytest.raises(ValueError, match=rf"Loss needs.*{message}|`task` needs {message}"):
        loss(td)


@SEQUENCE_LOSSES
def test_slices_that_join_rows_of_other_envs_are_named(make) -> None:
    rows = consistent().reshape(-1)  # the rows of 40 envs one after the other, as cat_results=0 gives them
    slices = torch.stack([rows[start : start + HORIZON] for start in range(0, 40 * HORIZON - HORIZON, 3)])
    with pytest.raises(ValueError, match=r"consecutive steps of one episode, found \d+ of \d+ steps"):
        make()(slices)
    ended = rows.clone()
    ended["next", "done"] = torch.zeros(len(rows), 1, dtype=torch.bool)
    ended["next", "done"][HORIZON - 1 :: HORIZON] = True
    slices = torch.stack([ended[start : start + HORIZON] for start in range(0, 40 * HORIZON - HORIZON, 3)])
    assert make()(slices)["loss_consistency"].isfinite()


def test_slices_of_several_tasks_are_named() -> None:
    td = consistent(TASKS)
    td["task"][3, 2] = (td["task"][3, 2] + 1) % TASKS
    with pytest.raises(ValueError, match="sequences of one task each, found 1 of 40"):
        PWMWorldModelLoss(make_model(TASKS))(td)


def test_observations_that_a_transform_changes_differently_at_both_places_pass() -> None:
    td = consistent()
    td["next", "observation"] = td["next", "observation"] * 1.01
    assert PWMWorldModelLoss(make_model())(td)["loss_consistency"].isfinite()


def test_rollouts_that_cut_longer_episodes_need_their_ends_marked() -> None:
    env = AnalyticEnv("cartpole_swingup", 1, episode_length=500)
    model = PWMWorldModel(5, 1, latent_dim=16, units=(12,))
    for marked in (False, True):
        sampler = SliceSampler(slice_len=5, end_key=("next", "done"))
        replay = ReplayBuffer(storage=LazyTensorStorage(400), sampler=sampler, batch_size=256 * 5)
        for _ in range(20):
            rollout = env.rollout(20)[0]
            if marked:
                rollout["next", "done"][-1] = True
            replay.extend(rollout)
        batch = replay.sample().reshape(-1, 5)
        if marked:
            PWMWorldModelLoss(model)(batch)
        else:
            with pytest.raises(ValueError, match="do not begin where the one before ended"):
                PWMWorldModelLoss(model)(batch)


def test_matrix_observations_are_named() -> None:
    td = sequences()
    for key in ("observation", ("next", "observation")):
        td[key] = td[key].unsqueeze(2).expand(BATCH, HORIZON, 3, OBSERVATION)
    with pytest.raises(ValueError, match=r"needs 'observation' of shape .*FlattenObservation.*encoder="):
        PWMWorldModelLoss(make_model())(td)
