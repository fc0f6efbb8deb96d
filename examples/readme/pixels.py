"""PWM from pictures: an encoder of one's own in the world model, on a pendulum that is seen and not measured.

The pictures, 2 x 24 x 24, are drawn by a transform that stands for a camera. It shows how the parts fit together; how
far it gets has not been measured.
"""

import torch
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import Bounded
from torchrl.envs import CatFrames, Compose, ExcludeTransform, ObservationTransform, TransformedEnv

from torchrl_pwm import (
    OnlinePWMTrainer,
    PWMLoss,
    PWMWorldModel,
    PWMWorldModelLoss,
    WorldModelPolicy,
    evaluate_policy,
    make_pwm_actor,
    make_value_ensemble,
)
from torchrl_pwm.data import make_online_replay
from torchrl_pwm.envs.simulators import AnalyticEnv

ITERATIONS, SIZE = 200, 24


class Camera(ObservationTransform):
    """Draws the cart and the tip of its pole as two spots: ``pixels`` uint8 [*, 1, 24, 24]."""

    def __init__(self):
        super().__init__(in_keys=["observation"], out_keys=["pixels"])

    def _apply_transform(self, observation):
        x, sin, cos = (observation[..., entry, None, None] for entry in (0, 2, 3))
        across = torch.linspace(-3, 3, SIZE).expand(SIZE, SIZE)
        spots = [(x, 0 * x), (x + sin, cos)]
        light = sum(torch.exp(-8 * ((across - u).square() + (across.T - v).square())) for u, v in spots)
        return (255 * light.clamp(max=1)).to(torch.uint8).unsqueeze(-3)

    def _reset(self, tensordict, tensordict_reset):
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec):
        shape = (*observation_spec.shape, 1, SIZE, SIZE)
        observation_spec["pixels"] = Bounded(0, 255, shape, dtype=torch.uint8)
        return observation_spec


class Scale(nn.Module):
    def forward(self, pixels):
        return pixels / 255 - 0.5


def make_env(num_envs=8):
    # Two pictures one after the other show how fast things move.
    seen = Compose(Camera(), ExcludeTransform("observation"), CatFrames(2, dim=-3, in_keys=["pixels"]))
    return TransformedEnv(AnalyticEnv("cartpole_swingup", num_envs, episode_length=200), seen)


encoder = nn.Sequential(  # yours: [n, 2, 24, 24] to [n, 64]
    Scale(), nn.Conv2d(2, 16, 4, 2), nn.Mish(), nn.Conv2d(16, 16, 3, 2), nn.Mish(), nn.Flatten(), nn.Linear(400, 64)
)
model = PWMWorldModel((2, SIZE, SIZE), 1, latent_dim=64, units=(128, 128), encoder=encoder, normalize_rewards=True)
model.set_keys(observation="pixels")
actor, value = make_pwm_actor(64, 1, units=(64, 64)), make_value_ensemble(64, units=(64, 64))
model_loss, loss = PWMWorldModelLoss(model, reward_coef=1.0), PWMLoss(actor, value, model)
for module in (model_loss, loss):
    module.set_keys(observation="pixels")

env, policy = make_env(), WorldModelPolicy(model, actor)
trainer = OnlinePWMTrainer(
    loss,
    model_loss,
    Collector(env, policy, frames_per_batch=128, init_random_frames=1024, auto_register_policy_transforms=False),
    make_online_replay(20_000, slice_len=8, batch_size=32),
    iterations=ITERATIONS,
    warmup_steps=1024,
)
trainer.train()
print(f"return of an episode: {evaluate_policy(policy, env, episodes=8).return_mean:.0f}")
