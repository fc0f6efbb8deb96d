"""Recorded episodes in memory: what is taken, scaled and refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors.utils import split_trajectories
from torchrl.envs import GymEnv

from tests.data.recorded import LENGTHS, TERMINATED, episode, episodes
from torchrl_pwm import MT80, write_episodes
from torchrl_pwm.data import EpisodeStore
from torchrl_pwm.envs.simulators import AnalyticEnv


def as_tensordict(recorded):
    """The same episode as transitions in TorchRL's layout."""
    observation = torch.tensor(recorded["observation"])
    steps = len(observation) - 1
    done = torch.arange(steps)[:, None] == steps - 1
    following = {
        "observation": observation[1:],
        "reward": torch.tensor(recorded["reward"])[:, None],
        "terminated": done & recorded["terminated"],
        "done": done,
    }
    entries = {"observation": observation[:-1], "action": torch.tensor(recorded["action"]), "next": following}
    return TensorDict(entries, [steps])


def test_tensordicts_give_the_same_data_as_arrays(tmp_path):
    write_episodes(tmp_path / "arrays", episodes(), name="arm")
    steps = [as_tensordict(each) for each in episodes()]
    write_episodes(tmp_path / "each", steps, name="arm")
    write_episodes(tmp_path / "joined", torch.cat(steps), name="arm")
    padded = torch.cat([steps[1], steps[5], steps[0]])  # 30 steps, two rows of 15
    write_episodes(tmp_path / "rows", torch.stack([padded[:15], padded[15:]]), name="arm")
    for name in ("steps", "returns", "lengths", "terminated"):
        expected = (tmp_path / "arrays" / f"{name}.bin").read_bytes()
        for folder in ("each", "joined"):
            assert (tmp_path / folder / f"{name}.bin").read_bytes() == expected
    store = EpisodeStore(tmp_path / "rows")
    assert store.lengths.tolist() == [15, 5, 7, 3] and store.terminated.tolist() == [False, False, False, True]


def test_a_rollout_of_an_env_is_cut_where_it_is_done(tmp_path):
    env = GymEnv("InvertedPendulum-v5", categorical_action_encoding=False)
    env.set_seed(0)
    rollout = env.rollout(60, break_when_any_done=False)
    store = write_episodes(tmp_path / "pendulum", rollout, action_low=-3.0, action_high=3.0)
    ends = (rollout["next", "done"][:, 0].nonzero()[:, 0] + 1).tolist()
    assert np.cumsum(store.lengths).tolist() == [*ends, 60] and len(ends) > 2
    assert store.terminated.tolist() == [True] * len(ends) + [False]
    np.testing.assert_allclose(store.episode(0).action, rollout["action"][: ends[0]].numpy() / 3.0, rtol=1e-6)
    (rows,) = store.manifest.tasks
    assert (rows.action_low, rows.action_high) == ((-3.0,), (3.0,)), "a policy's action can be scaled back"


@pytest.mark.parametrize("end", [10, 200])
def test_padding_of_trajectories_is_no_episode(end, tmp_path):
    env = AnalyticEnv("synthetic", 4, observation_size=3, action_size=2, episode_length=60, seed=1)
    rollout = env.rollout(end, break_when_any_done=False, set_truncated=end > 60)
    rollout["next", "done"][2, 5] = rollout["next", "truncated"][2, 5] = True
    padded = split_trajectories(rollout, done_key="done")
    assert padded.numel() > rollout.numel()
    store = write_episodes(tmp_path / "padded", padded)
    whole = write_episodes(tmp_path / "whole", rollout)
    assert store.num_transitions == whole.num_transitions == rollout.numel()
    assert sorted(store.lengths.tolist()) == sorted(whole.lengths.tolist())


def test_steps_that_do_not_follow_each_other_are_no_episode(tmp_path):
    joined = torch.cat([as_tensordict(each) for each in episodes()[:2]])
    joined["next", "done"][:] = False
    joined["next", "terminated"][:] = False
    with pytest.raises(
        ValueError, match="observation of step 3 of row 0 is not the next observation of the step before"
    ):
        write_episodes(tmp_path / "d", joined)


def test_a_nan_of_recorded_transitions_is_named_as_one(tmp_path):
    steps = as_tensordict({**episode(0, 8), "terminated": False})
    steps["next", "observation"][3, 1] = steps["observation"][4, 1] = torch.nan
    with pytest.raises(ValueError, match=r"observation of task d is nan in episode 0 at step 4"):
        write_episodes(tmp_path / "d", steps)
    with pytest.raises(ValueError, match=r"episode 0 has terminated that is no number at step 2"):
        write_episodes(tmp_path / "d", [{**episode(0, 3), "terminated": np.array([0.0, 0.0, np.nan])}])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float32, np.float16, bool])
def test_numbers_of_other_types_are_cast(tmp_path, kind):
    recorded = {
        **episode(0, 5),
        "observation": np.arange(12).reshape(6, 2).astype(kind),
        "reward": np.ones((5, 1), kind),
    }
    store = write_episodes(tmp_path / "d", [recorded])
    assert np.array_equal(store.episode(0).observation, recorded["observation"].astype(np.float32))
    assert store.returns.tolist() == [5.0]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            1.7e9 + np.arange(21) / 10,
            r"observation entry 1 of task arm varies by 0\.606 around 1\.7e\+09, which float32",
        ),
        (2**40 + np.arange(21), r"entry 1 of task arm varies by 6\.06 around 1\.09951e\+12, which float32 rounds"),
        (np.full(21, 1e300), r"an entry as float32 of task arm is inf in episode 0 at step 0"),
        (np.array([0.0] * 20 + [np.nan]), r"observation of task arm is nan in episode 0 at step 20"),
        (np.full(21, 1j), "episode 0 has observation of type complex128, expected numbers"),
    ],
)
def test_what_float32_does_not_keep_is_named(tmp_path, column, message):
    recorded = episode(0, 20)
    recorded["observation"] = np.stack([recorded["observation"][:, 1], column], 1)
    with pytest.raises(ValueError, match=message):
        write_episodes(tmp_path / "arm", [recorded])
    assert not list(tmp_path.iterdir())


def test_the_lengths_of_all_entries_are_named_where_they_do_not_fit(tmp_path):
    recorded = episode(0, 20)
    recorded["reward"] = np.zeros(21)
    shapes = r"observation of shape \(21, 3\), expected \[22, O\].* beside it action \(20, 2\) and reward \(21,\)"
    with pytest.raises(ValueError, match=shapes):
        write_episodes(tmp_path / "arm", [recorded])


def test_large_constants_and_rounding_noise_have_nothing_to_lose(tmp_path):
    recorded = episode(0, 20)
    recorded["observation"][:, 2] = 1.7e9 + 1.0 / 3.0
    recorded["observation"][:, 0] = np.sin(np.arange(21)) ** 2 + np.cos(np.arange(21)) ** 2
    assert write_episodes(tmp_path / "arm", [recorded]).num_rows == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"action of task arm is 1\.5 in episode 2 at step 7, entry 1; actions lie in \[-1, 1\]: pass action_low"),
        ({"action_low": -1.2, "action_high": 1.2}, r"is 1\.25 in episode 2 .*: widen the bounds, or pass clip_actions"),
        ({"action_low": -1.0}, "action_low and action_high go together"),
        ({"action_low": [0.0] * 3, "action_high": 1.0}, r"one for each of 2 action entries, found shape \(3,\)"),
        ({"action_low": -np.inf, "action_high": np.inf}, "must be finite, the lower below the upper"),
        ({"action_low": 1.0, "action_high": 1.0}, "must be finite, the lower below the upper"),
    ],
)
def test_actions_out_of_range_are_refused_with_what_to_do(tmp_path, options, message):
    recorded = [episode(0, 3), episode(1, 4), episode(2, 12)]
    recorded[2]["action"][7, 1] = 1.5
    with pytest.raises(ValueError, match=message):
        write_episodes(tmp_path / "arm", recorded, **options)


def test_actions_are_scaled_from_their_bounds_or_clipped(tmp_path):
    recorded = episode(0, 3)
    recorded["action"] = np.array([[0.0, 10.0], [5.0, 30.0], [10.0, 20.0]])
    store = write_episodes(tmp_path / "scaled", [recorded], action_low=[0.0, 10.0], action_high=[10.0, 30.0])
    assert store.episode(0).action.tolist() == [[-1.0, -1.0], [0.0, 1.0], [1.0, 0.0]]
    low, high = (np.array(bound) for bound in (store.manifest.tasks[0].action_low, store.manifest.tasks[0].action_high))
    np.testing.assert_allclose(low + (store.episode(0).action + 1) / 2 * (high - low), recorded["action"])
    store = write_episodes(tmp_path / "clipped", [recorded], clip_actions=True)
    assert store.episode(0).action.max() == 1.0 and store.manifest.source["clipped_action_entries"] == 5


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"observations": np.zeros((4, 3))}, r"\['observations'\] are not known"),
        ({"reward": None}, "reward of type object, expected numbers"),
        ({"reward": np.zeros((3, 2))}, r"reward of shape \(3, 2\), expected \[3\]"),
        (
            {"observation": np.zeros((3, 3))},
            r"observation of shape \(3, 3\), expected \[4, O\]: .* E \+ 1 observations",
        ),
        ({"observation": np.zeros((4, 2, 2))}, "each a vector"),
        ({"action": np.zeros(3)}, r"action of shape \(3,\), expected \[3, A\]"),
        ({"terminated": [True, False, False]}, "terminated at step 0 and goes on to step 2"),
        ({"terminated": [True, False]}, r"terminated of shape \(2,\), expected a bool or one for each of 3 steps"),
        ({"observation": np.zeros((1, 3)), "action": np.zeros((0, 2)), "reward": []}, "one or more steps"),
        ({"task": 2.5}, "expected one, by its name or number"),
    ],
)
def test_an_episode_of_wrong_entries_is_refused(tmp_path, edit, message):
    with pytest.raises(ValueError, match=rf"episode 1 (has|is) .*{message}"):
        write_episodes(tmp_path / "arm", [episode(0, 3), {**episode(1, 3), **edit}])
    assert not list(tmp_path.iterdir())


def test_what_holds_no_episodes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no episodes were given"):
        write_episodes(tmp_path / "d", [])
    with pytest.raises(ValueError, match="put it into a list"):
        write_episodes(tmp_path / "d", episode(0, 3))
    with pytest.raises(ValueError, match="episode 0 is a int, expected a mapping"):
        write_episodes(tmp_path / "d", [3])
    with pytest.raises(ValueError, match=r"it lacks \['reward'\]"):
        write_episodes(tmp_path / "d", [{"observation": np.zeros((2, 1)), "action": np.zeros((1, 1))}])


def test_tasks_are_told_apart_by_name_or_number(tmp_path):
    recorded = [episode(0, 3, task="mw-reach"), episode(1, 3, task=MT80["mw-push"].index)]
    for each in recorded:
        each["observation"], each["action"] = np.zeros((4, 39)), np.zeros((3, 4))
    store = write_episodes(tmp_path / "d", recorded, task_specs="mt80")
    assert set(store.tasks) == {"mw-reach", "mw-push"} and store.task_set == MT80
    with pytest.raises(ValueError, match="did you mean 'mw-reach'"):
        write_episodes(tmp_path / "e", [{**recorded[0], "task": "mw-reech"}], task_specs="mt80")
    with pytest.raises(ValueError, match="episode 0 has the task None, expected a name, one of"):
        write_episodes(tmp_path / "e", [{**recorded[0], "task": None}], task_specs="mt80")
    with pytest.raises(ValueError, match="observations of 3 and actions of 2 entries, but mw-reach has 39 and 4"):
        write_episodes(tmp_path / "e", [episode(0, 3, task="mw-reach")], task_specs="mt80")


def test_success_is_kept_by_the_last_step(tmp_path):
    recorded = [episode(0, 3, success=[True, False, True]), episode(1, 4, success=False)]
    store = write_episodes(tmp_path / "d", recorded)
    assert store.success.tolist() == [True, False] and store.statistics()["d"]["success_mean"] == 0.5
    with pytest.raises(ValueError, match="either all episodes say whether they succeeded, or none"):
        write_episodes(tmp_path / "e", [recorded[0], episode(1, 4)])


def test_statistics_are_those_of_whole_episodes(tmp_path):
    store = write_episodes(tmp_path / "arm", episodes())
    returns = np.array([length * (length - 1) / 2 for length in LENGTHS])
    (statistics,) = store.statistics().values()
    assert statistics["behavior_return_mean"] == pytest.approx(returns.mean())
    assert statistics["behavior_return_std"] == pytest.approx(returns.std())
    assert (statistics["rows"], statistics["transitions"]) == (len(LENGTHS), sum(LENGTHS))
    every = np.concatenate([each["observation"] for each in episodes()])
    np.testing.assert_allclose(store.manifest.tasks[0].observation_mean, every.mean(0))
    np.testing.assert_allclose(store.manifest.tasks[0].observation_std, every.std(0), atol=1e-12)
    assert store.terminates and sum(TERMINATED) == 3


def test_episodes_of_a_generator_are_written_one_by_one(tmp_path):
    store = write_episodes(tmp_path / "arm", (episode(number, 2) for number in range(50)))
    assert store.num_rows == 50
    with pytest.raises(FileExistsError, match="exists already"):
        write_episodes(tmp_path / "arm", episodes())
