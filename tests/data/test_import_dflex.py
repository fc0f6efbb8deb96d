"""Recorded DFlex data, pickled as PWM published them, become a data set with every action where it was taken."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchrl_pwm import DamagedFileError, TDMPC2ExperienceReplay, import_dflex, write_episodes
from torchrl_pwm.data import EpisodeStore, store_transitions

EPISODES, STEPS, OBSERVATION, ACTION = 3, 6, 5, 2


def numbers(episode, step):
    """What an episode's step has: its action and reward say which observation they were taken in."""
    code = 10.0 * episode + step
    return np.full(OBSERVATION, code), np.full(ACTION, (code + 0.5) / 100), code + 0.25


def recorded(**changes):
    """[N, L + 1] in arrival rows, as a permuted view of [L + 1, N]; row 0 has NaN for action and reward."""
    obs = torch.full((STEPS + 1, EPISODES, OBSERVATION), torch.nan)
    action = torch.full((STEPS + 1, EPISODES, ACTION), torch.nan)
    reward = torch.full((STEPS + 1, EPISODES), torch.nan)
    for episode in range(EPISODES):
        for step in range(STEPS + 1):
            obs[step, episode] = torch.tensor(numbers(episode, step)[0])
            if step:
                # reached by the action of the step before
                _, taken, earned = numbers(episode, step - 1)
                action[step, episode], reward[step, episode] = torch.tensor(taken), earned
    entries = {"obs": obs, "action": action, "reward": reward, **changes}
    return TensorDict(entries, [STEPS + 1, EPISODES]).permute(1, 0)


def save(path, data, **options):
    torch.save(data, path, **options)
    return path


@pytest.mark.parametrize("layout", ["zip", "legacy", "dict"])
def test_every_action_and_reward_stands_at_the_observation_it_was_taken_in(layout, tmp_path):
    data = recorded()
    data = {key: data[key] for key in ("obs", "action", "reward")} if layout == "dict" else data
    path = save(tmp_path / "hopper.pt", data, _use_new_zipfile_serialization=layout != "legacy")
    store = import_dflex(path, tmp_path / "hopper", progress=False)
    assert (store.num_rows, store.row_length or store.lengths.tolist()) in ((3, 6), (3, [6, 6, 6]))
    for episode in range(EPISODES):
        found = store.episode(episode)
        for step in range(STEPS):
            observation, action, reward = numbers(episode, step)
            np.testing.assert_array_equal(found.observation[step], observation)
            np.testing.assert_allclose(found.action[step], action, rtol=1e-6)
            assert found.reward[step] == reward
        np.testing.assert_array_equal(found.observation[STEPS], numbers(episode, STEPS)[0])
    assert not store.terminates and store.tasks == ("hopper",)
    assert TDMPC2ExperienceReplay(store.root, 4, slice_len=3).sample()["observation"].shape == (4, 3, OBSERVATION)


def test_several_files_are_joined_and_the_manifest_names_them(tmp_path):
    paths = [save(tmp_path / f"{name}.pt", recorded()) for name in ("a", "b")]
    store = import_dflex(paths, tmp_path / "data", name="ant", progress=False)
    assert store.num_rows == 2 * EPISODES and store.tasks == ("ant",)
    found = EpisodeStore(store.root, verify=True).manifest.source
    assert found["kind"] == "dflex"
    digest = hashlib.sha256(paths[1].read_bytes()).hexdigest()
    assert found["files"][1] == {"name": "b.pt", "sha256": digest}


def test_transitions_in_memory_have_torchrls_layout(tmp_path):
    steps = store_transitions(import_dflex(save(tmp_path / "a.pt", recorded()), tmp_path / "data").root)
    assert steps.shape == (EPISODES, STEPS)
    observation, action, reward = numbers(2, 4)
    step = steps[2, 4]
    assert step["observation"].tolist() == observation.tolist() and step["next", "reward"].tolist() == [reward]
    assert step["action"].tolist() == pytest.approx(action.tolist())
    assert step["next", "observation"].tolist() == numbers(2, 5)[0].tolist()
    assert steps["next", "done"].squeeze(-1).tolist() == [[False] * 5 + [True]] * 3
    assert not steps["next", "terminated"].any()


def test_transitions_of_episodes_of_different_lengths_are_one_row(tmp_path):
    def episode(length):
        code = np.arange(length + 1.0)
        return {
            "observation": np.tile(code[:, None], (1, 2)),
            "action": np.zeros((length, 1)),
            "reward": code[:-1],
            "terminated": length == 2,
        }

    steps = store_transitions(write_episodes(tmp_path / "data", [episode(2), episode(3)]).root)
    assert steps.shape == (1, 5)
    assert steps["next", "done"].flatten().tolist() == [False, True, False, False, True]
    assert steps["next", "terminated"].flatten().tolist() == [False, True, False, False, False]
    assert steps["next", "observation"][0, :, 0].tolist() == [1, 2, 1, 2, 3]


def late(key, value):
    data = recorded()
    data[key][1, 3] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (recorded().exclude("reward"), "has no tensor reward: expected obs, action and reward"),
        (
            TensorDict({"obs": torch.zeros(3, 7), "action": torch.zeros(3, 7, 2), "reward": torch.zeros(3, 7)}, [3]),
            "shapes",
        ),
        (
            TensorDict({"obs": torch.zeros(3, 7, 5), "action": torch.zeros(3, 7, 2), "reward": torch.zeros(3, 6)}, [3]),
            "shapes",
        ),
        (recorded()[:, :1], "expected one episode or more, of a step or more"),
        (recorded().fill_("action", 0.0), "its rows are no arrival rows"),
        (late("obs", torch.inf), "observation of task data is inf in episode 1 at step 3"),
        (late("reward", torch.nan), "reward of task data is nan in episode 1 at step 2"),
        (late("action", 1.5), "action of task data is 1.5 in episode 1 at step 2"),
        ([torch.zeros(2)], "holds a list, expected a TensorDict"),
    ],
)
def test_what_is_no_such_data_is_refused_and_nothing_is_left(data, message, tmp_path):
    path = save(tmp_path / "a.pt", data)
    with pytest.raises(ValueError, match=message):
        import_dflex(path, tmp_path / "data", progress=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pt"]


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_pickled_code_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "a.pt", {"obs": Hostile()})
    with pytest.raises(DamagedFileError, match=r"a\.pt was refused: it refers to posix\.mkdir"):
        import_dflex(path, tmp_path / "data")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("keep", [0, 100])
def test_a_file_that_is_cut_short_is_named(keep, tmp_path):
    path = save(tmp_path / "a.pt", recorded())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedFileError, match=r"a\.pt is no file of recorded DFlex data: it is (empty|cut short)"):
        import_dflex(path, tmp_path / "data")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No file of recorded DFlex data at .*a\.pt"):
        import_dflex(tmp_path / "a.pt", tmp_path / "data")
    with pytest.raises(ValueError, match="needs a file, found none"):
        import_dflex([], tmp_path / "data")
