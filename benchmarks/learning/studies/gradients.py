"""Agreement of a world model's reward gradient with the simulator's, by the number of steps ahead.

    python -m benchmarks.learning.studies.gradients runs/pwm_ant --policies runs/shac_ant_100 runs/shac_ant_200

The model is that of a finished run of PWM. Along the way of each policy, whose mean actions uniform noise spoils more
from env to env, the reward of H steps is differentiated with respect to each action, in the simulator and in the model.
The table holds the mean cosine of the two gradients by the number of steps that the action acts on, and the share of
the variance of the last reward that the model explains (R2).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from benchmarks.learning.results import markdown_table
from torchrl_pwm import load_policy
from torchrl_pwm.data import NoisyPolicy
from torchrl_pwm.runs.saved import read_config

ENVS, BLOCKS, BETWEEN, NOISE = 64, 3, 40, 0.6


def simulated(config: Any, policy: nn.Module, horizon: int) -> dict[str, Tensor]:
    """Observations [B, O], actions, rewards and gradients [H, B, ...] of windows without an end.

    The gradient is that of an env's summed reward with respect to its actions.
    """
    env = instantiate(config.env, num_envs=ENVS, requires_grad=True, seed=1, stagger=True)
    acting, td, parts = NoisyPolicy(policy, ENVS, NOISE), env.reset(), []
    for _ in range(BLOCKS):
        with torch.no_grad():
            for _ in range(BETWEEN):
                _, td = env.step_and_maybe_reset(acting(td))
        td = env.truncate_graph(td)
        observation, actions, rewards = td["observation"].clone(), [], []
        ended = torch.zeros(ENVS, dtype=torch.bool)
        for _ in range(horizon):
            actions.append(acting(td)["action"].requires_grad_())
            step, td = env.step_and_maybe_reset(td.set("action", actions[-1]))
            rewards.append(step["next", "reward"].squeeze(-1))
            ended |= step["next", "done"].squeeze(-1)
        gradient = torch.stack(torch.autograd.grad(torch.stack(rewards).sum(), actions))
        entries = {"action": torch.stack(actions), "reward": torch.stack(rewards), "gradient": gradient}
        parts.append({"observation": observation[~ended], **{k: v.detach()[:, ~ended] for k, v in entries.items()}})
        td = env.truncate_graph(td)
    return {key: torch.cat([part[key] for part in parts], int(key != "observation")) for key in parts[0]}


def compare(model: Any, truth: dict[str, Tensor]) -> tuple[Tensor, float]:
    """Mean cosine [H] of the model's gradient to the simulator's by time, and R2 of the last reward."""
    actions = truth["action"].clone().requires_grad_()
    latent, rewards = model.encode_observation(truth["observation"]), []
    for action in actions:
        rewards.append(model.decode_reward(model.reward_logits(latent, action), "raw").squeeze(-1))
        latent = model.next_latent(latent, action)
    (gradient,) = torch.autograd.grad(torch.stack(rewards).sum(), actions)
    last = truth["reward"][-1]
    explained = 1 - (rewards[-1].detach() - last).square().mean() / last.var()
    return torch.cosine_similarity(gradient, truth["gradient"], dim=-1).mean(1), float(explained)


def table(model: Any, policies: Sequence[Path], horizon: int) -> str:
    """A row for each policy."""
    ahead = [steps for steps in (1, 2, 4, 6, 8, 12, 16, 24, 32) if steps <= horizon]
    rows = []
    for folder in policies:
        policy, config = load_policy(folder, "cpu"), read_config(folder)
        truth = simulated(config, policy, horizon)
        cosine, explained = compare(model, truth)
        cells = [f"{float(cosine[-steps]):.2f}" for steps in ahead]
        rows.append([folder.name, str(truth["action"].shape[1]), *cells, f"{explained:.2f}"])
    head = ["states of", "windows", *(f"{steps} ahead" for steps in ahead), "R2 of the last reward"]
    return markdown_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a finished run of PWM in a differentiable simulator")
    parser.add_argument("--policies", type=Path, nargs="+", required=True, help="folders of finished runs")
    parser.add_argument("--horizon", type=int, default=16)
    options = parser.parse_args()
    torch.manual_seed(0)
    print(table(load_policy(options.model, "cpu").world_model, options.policies, options.horizon))


if __name__ == "__main__":
    main()
