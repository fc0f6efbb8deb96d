"""Episodes that a policy plays for a round: what is not finite is named, and none of them is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")
pytest.importorskip("hydra")

import gymnasium
from omegaconf import OmegaConf
from tensordict.nn import TensorDictModule

from tests.envs.faulty_env import Faulty
from torchrl_pwm.runs.own_episodes import play_env

CONFIG = OmegaConf.create(
    {
        "env": {"_target_": "torchrl_pwm.envs.make_gym_env", "task": "Faulty-v0"},
        "rounds": {"episodes": 3, "noise": [0.1]},
    }
)


@pytest.fixture(autouse=True)
def registered():
    gymnasium.register("Faulty-v0", Faulty, max_episode_steps=6)
    yield
    del gymnasium.registry["Faulty-v0"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("fault", "factor", "message"),
    [
        (
            ("observation", 8, np.nan),
            0.1,
            r"observation of episode 1 of arm must be finite, .*nan.* at step 3; ",
        ),
        (("observation", 11, np.inf), 0.1, r"observation of task arm is inf in episode 1 at step 6"),
        (("reward", 8, np.nan), 0.1, r"reward of task arm is nan in episode 1 at step 2"),
        (None, torch.inf, r"action of episode 0 of arm must be finite, .*inf.* at step 0; .*the policy"),
    ],
)
def test_what_is_not_finite_in_own_episodes_is_named_and_nothing_is_kept(fault, factor, message, tmp_path, monkeypatch):
    monkeypatch.setattr(Faulty, "fault", fault)
    policy = TensorDictModule(lambda observation: factor * observation[..., :1], ["observation"], ["action"])
    with pytest.raises(ValueError, match=message):
        play_env(CONFIG, tmp_path / "own", policy, task="arm", seed=0, device="cpu")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Faulty, "fault", None)
    policy = TensorDictModule(lambda observation: 0.1 * observation[..., :1], ["observation"], ["action"])
    assert play_env(CONFIG, tmp_path / "own", policy, task="arm", seed=0, device="cpu").num_rows == 3
