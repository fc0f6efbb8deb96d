"""Start states of extraction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchrl_pwm import PWMWorldModel
from torchrl_pwm.data import EpisodeStore, EpisodeStoreWriter, start_states
from torchrl_pwm.data.starts import encoded_starts

EPISODES, LENGTH = 6, 100


@pytest.fixture
def store(tmp_path):
    """Six episodes of 500 steps in rows of 100; the observation says (episode, time), episode e earns e a step."""
    with EpisodeStoreWriter(
        tmp_path / "data", "mt80", {"cheetah-run": EPISODES * 5, "mw-reach": 4}, row_length=LENGTH, whole_episodes=True
    ) as writer:
        times = np.arange(5)[:, None] * LENGTH + np.arange(LENGTH + 1)
        for episode in range(EPISODES):
            observation = np.zeros((5, LENGTH + 1, 39))
            observation[..., 0], observation[..., 1] = episode, times
            reward = np.full((5, LENGTH), float(episode))
            writer.write("cheetah-run", observation, np.full((5, LENGTH, 6), episode / 10), reward)
        writer.write("mw-reach", np.zeros((4, LENGTH + 1, 39)), np.zeros((4, LENGTH, 6)), np.ones((4, LENGTH)))
    return EpisodeStore(tmp_path / "data")


def test_times_cover_the_episode_evenly_and_a_share_are_resets(store):
    starts = start_states(store, "cheetah-run", 1000, resets=0.2)
    time = starts["observation"][:, 1]
    assert (time == 0).sum() in range(200, 203)
    counts = torch.histc(time[time > 0], bins=5, min=0, max=500)
    assert counts.min() >= 155 and counts.max() <= 165


def test_every_episode_is_used_about_as_often(store):
    episode = start_states(store, "cheetah-run", 600)["observation"][:, 0]
    assert torch.equal(torch.bincount(episode.long()), torch.full((EPISODES,), 100))


def test_top_keeps_the_best_whole_episodes(store):
    starts = start_states(store, "cheetah-run", 60, top=0.5)
    assert set(starts["observation"][:, 0].tolist()) == {3.0, 4.0, 5.0}
    assert set(start_states(store, "cheetah-run", 5, top=0.01)["observation"][:, 0].tolist()) == {5.0}


def test_action_and_task_belong_to_the_state(store):
    starts = start_states(store, "cheetah-run", 40)
    torch.testing.assert_close(starts["action"], (starts["observation"][:, :1] / 10).expand(-1, 6))
    assert set(starts["task"].tolist()) == {store.task_set["cheetah-run"].index}


def test_the_seed_decides(store):
    first, same, other = (start_states(store, "cheetah-run", 50, seed=seed) for seed in (1, 1, 2))
    assert (first == same).all() and not (first == other).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be at least 1, found 0"),
        ({"count": 5, "resets": 1.5}, "resets is a share of the whole, expected 0 to 1, found 1.5"),
        ({"count": 5, "top": 0.0}, "top is a share of the whole, expected more than 0 to 1, found 0.0"),
        ({"count": 5, "task": "mw-push"}, "holds no data of 'mw-push'"),
    ],
)
def test_numbers_out_of_range_are_refused(store, options, message):
    with pytest.raises(ValueError, match=message):
        start_states(store, **{"task": "cheetah-run", **options})


def test_encoded_starts_carry_the_latents_of_the_model_in_place_of_the_observations():
    model = PWMWorldModel(5, 2, latent_dim=16, units=(8,), encoder_units=(8,), num_tasks=3, task_dim=4)
    starts = TensorDict(
        {"observation": torch.randn(7, 5), "action": torch.rand(7, 2), "task": torch.arange(7) % 3}, [7]
    )
    encoded = encoded_starts(starts, model, rows=3)
    assert set(encoded.keys()) == {"latent", "action", "task"} and not encoded["latent"].requires_grad
    torch.testing.assert_close(encoded["latent"], model.encode_observation(starts["observation"], starts["task"]))
    assert torch.equal(encoded["action"], starts["action"])


def test_start_states_that_are_not_finite_are_not_encoded():
    model = PWMWorldModel(5, 2, latent_dim=16, units=(8,), encoder_units=(8,))
    observation = torch.zeros(7, 5)
    observation[2, 1] = torch.nan
    with pytest.raises(ValueError, match="others in 1 of 7 observations"):
        encoded_starts(TensorDict({"observation": observation}, [7]), model)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_latents_have_the_dtype_of_the_model(dtype):
    model = PWMWorldModel(5, 2, latent_dim=16, units=(8,), encoder_units=(8,))
    observation = torch.arange(10).reshape(2, 5).to(dtype)
    found = encoded_starts(TensorDict({"observation": observation}, [2]), model)["latent"]
    torch.testing.assert_close(found, model.encode_observation(observation.float()))
