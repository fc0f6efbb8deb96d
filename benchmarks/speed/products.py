"""The matrix products that a computation cannot avoid, run bare: the yardstick of the speed benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from benchmarks.speed.sizes import Size


@dataclass(frozen=True)
class Product:
    """``times`` products of an [m, k] and a [k, n] matrix."""

    m: int
    k: int
    n: int
    times: int = 1

    @property
    def flops(self) -> int:
        return 2 * self.m * self.k * self.n * self.times


def mlp_products(
    rows: int, sizes: Sequence[int], times: int = 1, *, weights: bool = False, inputs: bool = False, first: int = 0
) -> list[Product]:
    """Products of an MLP: its forward pass and, if asked, its weight gradients and its input gradients.

    ``first`` says how many of the first layer's inputs the gradient goes on into.
    """
    products = []
    for layer, (i, o) in enumerate(pairwise(sizes)):
        products.append(Product(rows, i, o, times))
        if weights:
            products.append(Product(o, rows, i, times))
        into = i if layer else first
        if inputs and into:
            products.append(Product(rows, o, into, times))
    return products


def bare_run(
    products: Iterable[Product], device: torch.device, dtype: torch.dtype = torch.float32
) -> Callable[[], None]:
    """A function that runs the products on random matrices, and nothing else."""
    place: dict[str, Any] = {"device": device, "dtype": dtype}
    work = [(torch.randn(p.m, p.k, **place), torch.randn(p.k, p.n, **place), p.times) for p in products if p.m]

    def run() -> None:
        for left, right, times in work:
            for _ in range(times):
                torch.mm(left, right)

    return run


class Yardstick:
    """The products of each case, at a size.

    Those of frozen networks' weight gradients are not among them. Where many steps share a task, the embedding's part
    of the first dynamics and reward layer counts once.
    """

    def __init__(self, size: Size) -> None:
        networks = size.networks
        self.size, latent, units = size, networks["latent_dim"], list(networks["units"])
        self.latent, self.units, self.joint = latent, units, latent + size.action_dim
        self.encoder = [size.observation_dim + size.task_dim, *networks["encoder_units"], latent]
        # without the embedding's part
        self.dynamics = [self.joint, *units, latent]
        self.reward = [self.joint, *units, size.bins]
        # with it
        self.q = [self.joint + size.task_dim, *units, size.bins]
        self.policy = [latent + size.task_dim, *units, 2 * size.action_dim]
        self.actor = [latent, *size.actor, size.action_dim]
        self.critic = [latent, *size.critic, 1]

    def context(self, rows: int, **gradients: bool) -> list[Product]:
        """The embedding's part of dynamics and reward head."""
        size = self.size.task_dim
        return mlp_products(rows, [size, self.units[0]], 2, first=size if gradients else 0, **gradients)

    def model_step(self) -> list[Product]:
        rows, joint = self.size.start_states, self.joint + self.size.task_dim
        return [
            *mlp_products(rows, [joint, *self.dynamics[1:]]),
            *mlp_products(rows, [joint, *self.reward[1:]]),
        ]

    def model_update(self) -> list[Product]:
        batch, steps = self.size.sequences, self.size.horizon
        return self._unrolled(batch, steps)

    def imagine(self, *, gradients: bool = False) -> list[Product]:
        batch, steps = self.size.start_states, self.size.horizon
        return [
            *mlp_products(batch, self.encoder),
            *self.context(batch),
            *mlp_products(batch, self.actor, steps, weights=gradients, inputs=gradients),
            *mlp_products(batch, self.dynamics, steps, inputs=gradients, first=self.joint),
            *mlp_products(batch * steps, self.reward, inputs=gradients, first=self.joint),
        ]

    def pwm_update(self) -> list[Product]:
        batch, rows, critics = self.size.start_states, self.size.start_states * self.size.horizon, self.size.critics
        return [
            *self.imagine(gradients=True),
            *mlp_products(batch, self.critic, critics, inputs=True, first=self.latent),
            *mlp_products(rows, self.critic, critics),
            *mlp_products(rows // 4, self.critic, 8 * 4 * critics, weights=True, inputs=True),
        ]

    def tdmpc2_update(self, num_q: int = 5) -> list[Product]:
        batch, steps = self.size.tdmpc2_sequences, self.size.tdmpc2_steps
        rows, visited = batch * steps, batch * (steps + 1)
        return [
            *mlp_products(rows, self.policy),
            *mlp_products(rows, self.q, 2),
            *self._unrolled(batch, steps),
            *mlp_products(rows, self.q, num_q, weights=True, inputs=True, first=self.q[0]),
            *mlp_products(visited, self.policy, weights=True, inputs=True),
            *mlp_products(visited, self.q, 2, inputs=True, first=self.size.action_dim),
        ]

    def plan(self, rows: int, horizon: int, iterations: int, samples: int, policies: int) -> list[Product]:
        return [
            *mlp_products(rows, self.encoder),
            *self.context(rows),
            *mlp_products(rows * policies, self.policy, horizon),
            *mlp_products(rows * policies, self.dynamics, horizon - 1),
            *mlp_products(rows * samples, self.dynamics, horizon * iterations),
            *mlp_products(rows * samples, self.reward, horizon * iterations),
            *mlp_products(rows * samples, self.policy, iterations),
            *mlp_products(rows * samples, self.q, 2 * iterations),
        ]

    def _unrolled(self, batch: int, steps: int) -> list[Product]:
        """Targets, and forward and backward passes of the world model along sequences."""
        return [
            *mlp_products(batch * steps, self.encoder),
            *mlp_products(batch, self.encoder, weights=True, inputs=True, first=self.size.task_dim),
            *self.context(batch, weights=True, inputs=True),
            *mlp_products(batch, self.dynamics, steps, weights=True, inputs=True, first=self.latent),
            *mlp_products(batch * steps, self.reward, weights=True, inputs=True, first=self.latent),
        ]
