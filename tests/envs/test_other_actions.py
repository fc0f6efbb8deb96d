"""Envs whose actions are not those of the world model around them: warned of, once."""

from __future__ import annotations

import warnings

import pytest
from torchrl.data import Bounded, Categorical
from torchrl.envs import Compose, TransformedEnv
from torchrl.envs.transforms import ActionScaling

from tests.envs.drift_env import DriftEnv
from torchrl_pwm import PWMWorldModel, WorldModelWrapper


@pytest.fixture
def model():
    return PWMWorldModel(5, 2, latent_dim=16, units=(24,), encoder_units=(20,))


@pytest.mark.parametrize(
    ("actions", "said"),
    [
        (Bounded(-2.0, 2.0, (2,)), r"found bounds from -2 to 2\. Add .*ActionScaling"),
        (Bounded(-1.0, 1.0, (3,)), r"actions of size 2, found action of shape \(3,\)"),
        (Categorical(4), "continuous actions, found the action spec Categorical"),
    ],
)
def test_an_env_of_other_actions_is_warned_of_once(model, actions, said):
    env = DriftEnv()
    env.action_spec = actions
    env = TransformedEnv(env, WorldModelWrapper(model))
    with pytest.warns(UserWarning, match=said):
        env.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.reset()


def test_an_env_that_is_scaled_to_the_models_actions_is_not_warned_of(model):
    env = DriftEnv(bound=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TransformedEnv(env, Compose(WorldModelWrapper(model), ActionScaling())).rollout(2)
