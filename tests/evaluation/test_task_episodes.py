"""Episodes in simulators that are kept beside those of new envs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("dm_control")
pytest.importorskip("metaworld")

from tensordict.nn import TensorDictModule

from torchrl_pwm import PWMWorldModel, evaluate_policy, make_pwm_actor
from torchrl_pwm.envs import MT80
from torchrl_pwm.envs.random_policy import RandomPolicy
from torchrl_pwm.evaluation.task_episodes import TaskEpisodes
from torchrl_pwm.evaluation.trust import probe_trust
from torchrl_pwm.runs.baselines import RandomEpisodes


@pytest.fixture
def model():
    torch.manual_seed(0)
    return PWMWorldModel(39, 6, latent_dim=16, encoder_units=(16,), units=(16,), num_tasks=80, task_dim=4)


def row_by_row(observation):
    """A policy that rounds each row alike, however many there are."""
    rows = observation.reshape(-1, observation.shape[-1]).tolist()
    actions = [[np.sin(7 * sum(row) + index) for index in range(6)] for row in rows]
    return torch.tensor(actions, dtype=torch.float32).reshape(*observation.shape[:-1], 6)


def test_kept_simulators_play_the_episodes_of_new_ones_bit_for_bit():
    policy = TensorDictModule(row_by_row, ["observation"], ["action"])
    expected = evaluate_policy(policy, "mw-window-open", task_set="mt80", episodes=3, seed=5)
    with TaskEpisodes("mw-window-open", task_set="mt80") as played:
        for episodes in (2, 3):
            found = played.evaluate(policy, episodes, 5)
            assert (found.task, found.seed) == ("mw-window-open", 5)
            assert found.returns.tolist() == expected.returns[:episodes].tolist()
            assert found.scores.tolist() == expected.scores[:episodes].tolist()


def test_a_batch_of_episodes_differs_by_rounding_alone(model):
    actor = make_pwm_actor(16, 6, units=(8,))
    options = {"episodes": 2, "seed": 3}
    before = torch.get_rng_state()
    with TaskEpisodes("mw-reach", task_set="mt80", world_model=model) as played:
        found, probe = played.evaluate(actor, **options), played.probe(actor, **options)
    assert torch.equal(torch.get_rng_state(), before)
    expected = evaluate_policy(actor, "mw-reach", task_set="mt80", world_model=model, **options)
    single = probe_trust(actor, model, "mw-reach", **options)
    np.testing.assert_allclose(found.returns, expected.returns, rtol=1e-4)
    np.testing.assert_allclose(probe.returns, expected.returns, rtol=1e-4)
    np.testing.assert_allclose(single.returns, expected.returns, rtol=1e-4)
    assert probe.metrics().keys() == single.metrics().keys()
    # what is read from the latents of an untrained model is too wild to compare
    compared = [name for name in probe.metrics() if "dynamics" not in name]
    assert {k: probe.metrics()[k] for k in compared} == pytest.approx(
        {k: single.metrics()[k] for k in compared}, rel=1e-3
    )


def test_more_episodes_than_simulators_are_played_in_rounds():
    spec = MT80["mw-reach"]
    expected = evaluate_policy(RandomPolicy(4, seed=2), "mw-reach", episodes=14, seed=2)
    with TaskEpisodes("mw-reach") as played:
        found = played.evaluate(RandomEpisodes(spec, 14, seed=2), 14, 2)
        assert len(played.simulators) == 7
    assert found.returns.tolist() == expected.returns.tolist()
