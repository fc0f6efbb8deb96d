"""Agreement of the policy's gradients through a termination head, over the noise that the head learned under.

    python -m benchmarks.learning.studies.termination_noise 0 0.6

A world model learns from random steps of InvertedPendulum-v4; a policy is then extracted in it. Printed is, for a new
policy and after 20 and 40 updates, the mean cosine between the gradients of 16 batches of start states, and the mean
probability that an imagined episode goes on to its last step.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
from torchrl.collectors import Collector

from torchrl_pwm import PWMLoss, PWMWorldModel, PWMWorldModelLoss, make_pwm_actor, make_value_ensemble
from torchrl_pwm.envs import make_gym_env
from torchrl_pwm.trainers import PWMOptimizationStepper, WorldModelOptimizationStepper

ENVS, STEPS, SLICE, UPDATES = 8, 20_000, 16, 2_500
BATCHES, STARTS, BETWEEN = 16, 128, 20


def random_steps() -> TensorDictBase:
    """Random steps of all envs, [N, T]."""
    env = make_gym_env("InvertedPendulum-v4", ENVS, seed=0)
    collector = Collector(env, None, frames_per_batch=64, total_frames=STEPS)
    return torch.cat(list(collector), 1)


def slices(data: TensorDictBase, count: int = 64) -> TensorDictBase:
    """Random slices of the rows, [count, T]."""
    envs, begins = torch.randint(len(data), (count,)), torch.randint(data.shape[1] - SLICE, (count,))
    return torch.stack([data[e, b : b + SLICE] for e, b in zip(envs.tolist(), begins.tolist())])


def train_model(data: TensorDictBase, noise: float) -> PWMWorldModel:
    """A world model with a termination head that learned under this noise."""
    torch.manual_seed(0)
    sizes = {"latent_dim": 64, "encoder_units": (128,), "units": (128, 128), "simnorm_dim": 0}
    model = PWMWorldModel(4, 1, **sizes, residual=True, normalize_rewards=True, termination=True)  # type: ignore[arg-type]
    observation = data["observation"].reshape(-1, 4)
    model.set_observation_statistics(observation.mean(0), observation.std(0))
    loss = PWMWorldModelLoss(model, reward_coef=1.0, termination_noise=noise)
    stepper = WorldModelOptimizationStepper(loss, iterations=UPDATES, lr=1e-3, final_lr=1e-4, encoder_lr_scale=1.0)
    for _ in range(UPDATES):
        stepper.update(slices(data))
    return model


def agreement(model: PWMWorldModel, data: TensorDictBase) -> list[tuple[float, float]]:
    """Mean cosine of the gradients, and probability of surviving the horizon, of the policy along its updates."""
    torch.manual_seed(1)
    actor = make_pwm_actor(64, 1, units=(128, 128), output_gain=0.01)
    loss = PWMLoss(actor, make_value_ensemble(64, units=(128, 128)), model, horizon=16)
    rates = {"actor_lr": 5e-4, "critic_lr": 1e-3, "final_lr": 1e-4}
    stepper = PWMOptimizationStepper(loss, iterations=50, critic_iterations=2, **rates)  # type: ignore[arg-type]

    def starts() -> TensorDictBase:
        return data[torch.randint(len(data), (STARTS,)), torch.randint(data.shape[1], (STARTS,))].select("observation")

    found = []
    for _ in range(3):
        gradients = []
        for _ in range(BATCHES):
            rollout = loss.imagine(starts())
            parts = torch.autograd.grad(loss.actor_loss(rollout), stepper.actor_params, allow_unused=True)
            gradients.append(torch.cat([part.flatten() for part in parts if part is not None]))
        unit = F.normalize(torch.stack(gradients), dim=1)
        cosine = ((unit @ unit.T).sum() - BATCHES) / (BATCHES * (BATCHES - 1))
        found.append((float(cosine), float(rollout["next", "continuation"].prod(1).mean())))
        for _ in range(BETWEEN):
            stepper.update(starts())
    return found


def main() -> None:
    data = random_steps()
    for noise in map(float, sys.argv[1:] or ("0", "0.1", "0.3", "0.6")):
        found = agreement(train_model(data, noise), data)
        print(f"noise {noise:g}:", ", ".join(f"cosine {cosine:.2f}, survives {alive:.2f}" for cosine, alive in found))


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    main()
