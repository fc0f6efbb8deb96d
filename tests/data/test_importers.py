"""Minari data sets and HDF5 files in D4RL's layout, made here by their own packages."""

from __future__ import annotations

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer
from torchrl import torchrl_logger

from tests.data.minari_sets import record_minari
from torchrl_pwm import TDMPC2ExperienceReplay, import_d4rl, import_minari
from torchrl_pwm.data import EpisodeStore

LENGTHS = (3, 9, 5)
BOX = gymnasium.spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), dtype=np.float64)


@pytest.fixture
def minari_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def make_minari(name, observation, space, *, actions=BOX, **options):
    """A local Minari data set of episodes of :data:`LENGTHS`, the first of which terminates."""
    buffers = []
    for number, length in enumerate(LENGTHS):
        ends = np.arange(length) == length - 1
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=observation(number, length + 1),
                actions=[actions.sample() for _ in range(length)],
                rewards=list(np.arange(length, dtype=float)),
                terminations=list(ends & (number == 0)),
                truncations=list(ends & (number != 0)),
            )
        )
    options = {"algorithm_name": "none", "author": "none", "code_permalink": "none", "author_email": "none", **options}
    return minari.create_dataset_from_buffers(
        name, buffers, observation_space=space, action_space=actions, description="made by a test", **options
    )


def vector(number, steps):
    return [np.array([number, step, 0.5]) for step in range(steps)]


def vectors():
    return gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)


def test_a_minari_data_set_keeps_lengths_terminations_and_actions(tmp_path, minari_folder):
    dataset = make_minari("arm/mixed-v0", vector, vectors())
    store = import_minari("arm/mixed-v0", tmp_path / "arm", progress=False)
    assert store.lengths.tolist() == list(LENGTHS) and store.terminated.tolist() == [True, False, False]
    low, high = BOX.low, BOX.high
    for number, recorded in enumerate(dataset.iterate_episodes()):
        stored = store.episode(number)
        assert np.array_equal(stored.observation, recorded.observations)
        np.testing.assert_allclose(low + (stored.action + 1) / 2 * (high - low), recorded.actions, atol=1e-5)
        assert np.array_equal(stored.reward, recorded.rewards)
    (rows,) = store.manifest.tasks
    assert (rows.action_low, rows.action_high) == ((-2.0, 0.0), (2.0, 10.0))
    assert store.manifest.source["dataset"] == "arm/mixed-v0" and store.task_set["arm"].episode_length == 9
    assert TDMPC2ExperienceReplay(store.root, 4, slice_len=5).sample().shape == (4, 5)


def test_a_minari_data_set_says_in_which_env_it_was_recorded(tmp_path, minari_folder):
    dataset = record_minari(
        "InvertedPendulum-v5", "pendulum/random-v0", lambda _, draws: draws.uniform(-3, 3, 1), episodes=4, steps=6
    )
    store = import_minari(dataset, tmp_path / "pendulum", progress=False)
    assert store.manifest.source["env"] == "InvertedPendulum-v5"
    assert store.terminates and not store.terminated.all() and store.num_transitions == dataset.total_steps
    np.testing.assert_allclose(store.episode(0).action * 3, next(dataset.iterate_episodes()).actions, atol=1e-5)


def test_dict_observations_are_joined_in_a_known_order(tmp_path, minari_folder):
    space = gymnasium.spaces.Dict({"goal": gymnasium.spaces.Box(-9, 9, (1,)), "observation": vectors()})

    def observation(number, steps):
        return {"goal": np.full((steps, 1), 7.0, np.float32), "observation": np.stack(vector(number, steps))}

    dataset = make_minari("goal/mixed-v0", observation, space)
    store = import_minari(dataset, tmp_path / "both", progress=False)
    assert dict(store.task_set["both"].observation_fields) == {"observation": 3, "goal": 1}
    names = [name for name, _ in store.task_set["both"].observation_fields]
    expected = {"observation": [1.0, 2.0, 0.5], "goal": [7.0]}
    assert store.episode(1).observation[2].tolist() == [value for name in names for value in expected[name]]
    store = import_minari(dataset, tmp_path / "chosen", observation_keys=["goal"], progress=False)
    assert store.episode(1).observation.tolist() == [[7.0]] * 10
    store = import_minari(dataset, tmp_path / "first", observation_keys=["observation", "goal"], progress=False)
    assert store.episode(1).observation[2].tolist() == [1.0, 2.0, 0.5, 7.0]
    with pytest.raises(ValueError, match="must name entries of the observation"):
        import_minari(dataset, tmp_path / "other", observation_keys=["hand"], progress=False)


def test_what_pwm_cannot_learn_from_is_refused(tmp_path, minari_folder):
    images = gymnasium.spaces.Box(0, 255, (2, 2), np.uint8)
    pictures = make_minari("image/mixed-v0", lambda number, steps: [images.sample() for _ in range(steps)], images)
    with pytest.raises(ValueError, match="expected a vector"):
        import_minari(pictures, tmp_path / "d", progress=False)
    buttons = make_minari("button/mixed-v0", vector, vectors(), actions=gymnasium.spaces.Discrete(3))
    with pytest.raises(ValueError, match=r"continuous actions, a Box of one dimension; .* Discrete\(3\)"):
        import_minari(buttons, tmp_path / "d", progress=False)
    endless = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    dataset = make_minari("endless/mixed-v0", vector, vectors(), actions=endless)
    with pytest.raises(ValueError, match="has no finite bounds: pass action_low and action_high"):
        import_minari(dataset, tmp_path / "d", progress=False)
    with pytest.raises(ValueError, match="action_low and action_high go together"):
        import_minari(dataset, tmp_path / "d", action_low=-9.0, progress=False)
    assert import_minari(dataset, tmp_path / "d", action_low=-9.0, action_high=9.0, progress=False).num_rows == 3
    with pytest.raises(FileNotFoundError, match=r"no Minari data set 'arm/other-v0' .* download=True fetches it"):
        import_minari("arm/other-v0", tmp_path / "e")


def d4rl_steps(steps=20):
    """Arrays of two episodes that were cut off, after 8 and 20 steps, and one that terminated after 13."""
    arrays = {"observations": np.arange(steps * 2.0).reshape(steps, 2), "actions": np.linspace(-1, 1, steps)[:, None]}
    arrays["rewards"] = np.arange(steps, dtype=np.float32)
    arrays["terminals"], arrays["timeouts"] = np.arange(steps) == 12, np.isin(np.arange(steps), [7, 19])
    return arrays


def write_hdf5(path, arrays):
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array
    return path


def test_the_last_observation_of_a_d4rl_episode_is_said_to_be_missing(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(torchrl_logger, "info", said.append)
    arrays = d4rl_steps()
    store = import_d4rl(write_hdf5(tmp_path / "steps.hdf5", arrays), tmp_path / "d", progress=False)
    assert store.lengths.tolist() == [7, 5, 6] and store.terminated.tolist() == [False, True, False]
    assert store.episode(1).reward.tolist() == [8, 9, 10, 11, 12]
    assert store.episode(1).observation[-1].tolist() == store.episode(1).observation[-2].tolist()
    assert np.array_equal(store.episode(2).observation, arrays["observations"][13:20])
    assert said == [
        "steps.hdf5 has no next_observations: the last action of 2 episodes that were cut off is left out, and 1 that "
        "were terminated end in the observation before"
    ]
    assert store.manifest.source["without_next_observation"] == {"left_out": 2, "repeated": 1}


def test_next_observations_of_a_d4rl_file_complete_its_episodes(tmp_path):
    arrays = d4rl_steps()
    arrays["next_observations"] = arrays["observations"] + 2
    store = import_d4rl(write_hdf5(tmp_path / "steps.hdf5", arrays), tmp_path / "d", progress=False)
    assert store.lengths.tolist() == [8, 5, 7] and EpisodeStore(store.root).num_transitions == 20
    assert store.episode(1).observation[-1].tolist() == arrays["next_observations"][12].tolist()
    arrays["next_observations"][3] += 1
    with pytest.raises(ValueError, match="steps 0 to 7 are one episode by terminals and timeouts, but"):
        import_d4rl(write_hdf5(tmp_path / "other.hdf5", arrays), tmp_path / "e", progress=False)


def test_a_file_that_is_not_in_d4rls_layout_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="No HDF5 file at"):
        import_d4rl(tmp_path / "none.hdf5", tmp_path / "d")
    (tmp_path / "page.hdf5").write_text("<html>")
    with pytest.raises(ValueError, match="is no HDF5 file, or damaged"):
        import_d4rl(tmp_path / "page.hdf5", tmp_path / "d")
    arrays = d4rl_steps()
    with pytest.raises(ValueError, match=r"lacks \['terminals'\]; expected"):
        import_d4rl(
            write_hdf5(tmp_path / "a.hdf5", {k: v for k, v in arrays.items() if k != "terminals"}), tmp_path / "d"
        )
    with pytest.raises(ValueError, match="must have one length"):
        import_d4rl(write_hdf5(tmp_path / "b.hdf5", {**arrays, "rewards": np.ones(5)}), tmp_path / "d")
