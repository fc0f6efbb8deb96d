"""A PWM update written as published code is: plain modules in eager loops, a critic at a time, metrics read as numbers.

It computes what :class:`~torchrl_pwm.trainers.PWMOptimizationStepper` does, and is here for the number of its launches.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.sizes import Size


class NaiveUpdate:
    """One update a call, from fresh start states."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size, self.device = size, device
        latent, units = size.networks["latent_dim"], size.networks["units"]
        joint = latent + size.task_dim + size.action_dim
        self.task = nn.Embedding(size.tasks, size.task_dim).to(device)
        encoder = (size.observation_dim + size.task_dim, *size.networks["encoder_units"])
        self.encoder = nn.Sequential(*_normed(encoder), nn.Linear(encoder[-1], latent), nn.LayerNorm(latent)).to(device)
        self.dynamics = nn.Sequential(*_normed((joint, *units)), nn.Linear(units[-1], latent), nn.LayerNorm(latent))
        self.dynamics.to(device)
        self.reward = nn.Sequential(*_normed((joint, *units)), nn.Linear(units[-1], size.bins)).to(device)
        for net in (self.task, self.encoder, self.dynamics, self.reward):
            net.requires_grad_(False)
        self.actor = nn.Sequential(*_acted((latent, *size.actor)), nn.Linear(size.actor[-1], size.action_dim))
        self.log_std = nn.Parameter(torch.full((size.action_dim,), -1.0, device=device))
        self.critics = nn.ModuleList(
            nn.Sequential(*_acted((latent, *size.critic)), nn.Linear(size.critic[-1], 1)) for _ in range(size.critics)
        )
        for net in (self.actor, self.critics):
            net.to(device)
        options: dict[str, Any] = {"lr": 5e-4, "betas": (0.7, 0.95), "foreach": True}  # torch's own choice on a GPU
        self.actor_optimizer = torch.optim.Adam([*self.actor.parameters(), self.log_std], **options)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), **options)
        self.bins = torch.linspace(-10.0, 10.0, size.bins, device=device)
        self.observation = torch.randn(size.start_states, size.observation_dim, device=device)
        self.indices = torch.full((size.start_states,), 3, device=device)

    def __call__(self) -> dict[str, float]:
        gamma, lmbda, horizon = 0.99, 0.95, self.size.horizon
        embedding = self.task(self.indices)
        latent = _simplex(self.encoder(torch.cat([self.observation, embedding], -1)))
        returns = torch.zeros(self.size.start_states, device=self.device)
        discount = torch.ones_like(returns)
        latents, rewards, values = [], [], []
        for _ in range(horizon):
            latents.append(latent.detach())
            mean = self.actor(latent.detach())
            action = torch.tanh(torch.distributions.Normal(mean, self.log_std.exp()).rsample())
            joint = torch.cat([latent, embedding, action], -1)
            reward = (self.reward(joint).softmax(-1) * self.bins).sum(-1)
            latent = _simplex(self.dynamics(joint))
            returns = returns + discount * reward
            discount = discount * gamma
            rewards.append(reward.detach())
            values.append(torch.stack([critic(latent).squeeze(-1) for critic in self.critics]).min(0).values)
        loss = -(returns + discount * values[-1]) / returns.std().detach()
        self.actor_optimizer.zero_grad()
        loss.mean().backward()
        norm = nn.utils.clip_grad_norm_(self.actor.parameters(), 1.0)
        self.actor_optimizer.step()
        target, targets = values[-1].detach(), []
        for reward, value in zip(reversed(rewards), reversed(values)):
            target = reward + gamma * ((1 - lmbda) * value.detach() + lmbda * target)
            targets.append(target)
        metrics: dict[str, Any] = {"loss_actor": loss.mean().item(), "norm": norm.item()}
        metrics["loss_value"] = self.fit(torch.cat(latents), torch.cat(targets[::-1]))
        return metrics

    def fit(self, latents: Tensor, targets: Tensor) -> float:
        """8 passes over 4 minibatches."""
        total, rows = 0.0, len(targets) // 4
        for _ in range(8):
            for inputs, wanted in zip(latents.split(rows), targets.split(rows)):
                errors = [critic(inputs).squeeze(-1) - wanted for critic in self.critics]
                loss = torch.stack([error.square().mean() for error in errors]).mean()
                self.critic_optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.critics.parameters(), 100.0)
                self.critic_optimizer.step()
                total += loss.item()
        return total / 32


def _normed(sizes: tuple[int, ...]) -> list[nn.Module]:
    return [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.LayerNorm(o), nn.Mish())]


def _acted(sizes: tuple[int, ...]) -> list[nn.Module]:
    return [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.Mish(), nn.LayerNorm(o))]


def _simplex(x: Tensor) -> Tensor:
    return x.view(*x.shape[:-1], -1, 8).softmax(-1).view(x.shape)
