"""Observation statistics of a data set."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchrl_pwm import PWMWorldModel
from torchrl_pwm.data import EpisodeStore, EpisodeStoreWriter
from torchrl_pwm.data.store.moments import ObservationMoments
from torchrl_pwm.data.store.statistics import observation_statistics


@pytest.fixture
def store(tmp_path) -> EpisodeStore:
    draws = np.random.default_rng(0)
    with EpisodeStoreWriter(tmp_path / "d", "mt30", {"walker-run": 600, "cup-catch": 3}, row_length=4) as writer:
        for name, rows, offset, scale in (("walker-run", 600, 1000.0, 0.05), ("cup-catch", 3, 0.0, 2.0)):
            observation = offset + scale * draws.standard_normal((rows, 5, 24))
            writer.write(name, observation, np.zeros((rows, 4, 6)), np.zeros((rows, 4)))
    return EpisodeStore(tmp_path / "d")


def test_statistics_are_those_of_each_task_even_far_from_zero(store: EpisodeStore) -> None:
    mean, std = observation_statistics(store)
    for task in store.manifest.tasks:
        data = np.asarray(store.observation[task.start : task.stop], np.float64).reshape(-1, 24)
        np.testing.assert_allclose(mean[task.index].numpy(), data.mean(0), rtol=1e-5)
        np.testing.assert_allclose(std[task.index].numpy(), data.std(0), rtol=1e-4)


def test_statistics_of_the_manifest_are_read_from_no_other_file(store: EpisodeStore) -> None:
    expected = observation_statistics(store)
    store.observation = None
    assert all(map(torch.equal, observation_statistics(store), expected))


def test_tasks_without_data_are_left_as_they_are(store: EpisodeStore) -> None:
    mean, std = observation_statistics(store)
    absent = [i for i in range(30) if i not in {task.index for task in store.manifest.tasks}]
    assert not mean[absent].any() and (std[absent] == 1).all()


@pytest.mark.parametrize("size", [1, 7, 300, 1000])
def test_moments_do_not_depend_on_the_blocks_they_come_in(size: int) -> None:
    data = 50 + np.random.default_rng(0).standard_normal((1000, 5, 3)).astype(np.float32)
    whole, parts = ObservationMoments(), ObservationMoments()
    whole.update(data)
    for first in range(0, 1000, size):
        parts.update(data[first : first + size])
    assert np.array_equal(whole.mean, parts.mean) and np.array_equal(whole.std, parts.std)
    np.testing.assert_allclose(whole.std, data.astype(np.float64).reshape(-1, 3).std(0), rtol=1e-9)


def test_float16_data_have_the_statistics_of_what_is_sampled(tmp_path) -> None:
    observation = 1 + 1e-3 * np.random.default_rng(0).standard_normal((20, 5, 24))
    with EpisodeStoreWriter(tmp_path / "d", "mt30", {"walker-run": 20}, row_length=4, dtype="float16") as writer:
        writer.write("walker-run", observation, np.zeros((20, 4, 6)), np.zeros((20, 4)))
    store = EpisodeStore(tmp_path / "d")
    stored = store.observation.astype(np.float64).reshape(-1, 24)
    np.testing.assert_allclose(store.manifest.tasks[0].observation_std, stored.std(0), rtol=1e-9)


def test_a_world_model_takes_them(store: EpisodeStore) -> None:
    model = PWMWorldModel(24, 6, latent_dim=16, units=(8,), num_tasks=30, task_dim=4)
    mean, std = observation_statistics(store)
    model.set_observation_statistics(mean, std)
    task = store.manifest.tasks[0]
    raw = torch.from_numpy(np.array(store.observation[task.start : task.start + 7, 0]))
    plain = PWMWorldModel(24, 6, latent_dim=16, units=(8,), num_tasks=30, task_dim=4)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("observation_")})
    expected = plain.encode_observation((raw - mean[task.index]) / std[task.index], task.index)
    torch.testing.assert_close(model.encode_observation(raw, torch.full((7,), task.index)), expected)
    copy = PWMWorldModel.from_tdmpc2(model.state_dict())
    torch.testing.assert_close(copy.encode_observation(raw, task.index), expected)


def test_statistics_of_another_shape_are_refused() -> None:
    model = PWMWorldModel(24, 6, latent_dim=16, units=(8,), num_tasks=30, task_dim=4)
    with pytest.raises(ValueError, match=r"\(30, 24\).*\(30, 23\)"):
        model.set_observation_statistics(torch.zeros(30, 23), torch.ones(30, 23))
