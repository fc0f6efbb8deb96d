"""Timed cases: functions without arguments, each beside the bare work that it cannot avoid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor

from benchmarks.speed.dreamer import dreamer_update
from benchmarks.speed.naive import NaiveUpdate
from benchmarks.speed.products import Product, Yardstick, bare_run
from benchmarks.speed.sizes import Size
from benchmarks.speed.stores import HotReplay, bare_reads, write_sparse_store
from benchmarks.speed.variants import Variant
from torchrl_pwm import (
    PWMLoss,
    PWMWorldModel,
    PWMWorldModelLoss,
    TDMPC2Loss,
    TDMPC2Model,
    TDMPC2Planner,
    make_pwm_actor,
    make_value_ensemble,
)
from torchrl_pwm.envs import MT80
from torchrl_pwm.trainers import PWMOptimizationStepper, StackedPWMUpdate, WorldModelOptimizationStepper
from torchrl_pwm.trainers.tdmpc2 import TDMPC2OptimizationStepper


@dataclass(frozen=True)
class Case:
    """A computation, and its bare work; ``products`` is empty where that is no matrix product."""

    run: Callable[[], object]
    bare: Callable[[], object]
    products: tuple[Product, ...] = ()


class Bench:
    """Builds cases at a size, on a device.

    Args:
        size: networks and batches.
        device: where they live.
        folder: for files.
        variant: how updates and functions are run.
    """

    def __init__(self, size: Size, device: torch.device, folder: Path, variant: Variant | None = None) -> None:
        self.size, self.device, self.folder = size, device, folder
        self.variant = variant or Variant("eager", device)
        self.yardstick = Yardstick(size)
        torch.manual_seed(0)

    def model_step(self) -> Case:
        model = self._world_model().requires_grad_(False)

        def step(latent: Tensor, action: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
            reward = model.decode_reward(model.reward_logits(latent, action, task))
            return model.next_latent(latent, action, task), reward

        rows = self.size.start_states
        latent = self._normal(rows, self.yardstick.latent)
        action, task = self._actions(rows), self._tasks(rows)
        function = self.variant.wrap(step)
        return self._case(lambda: function(latent, action, task), self.yardstick.model_step())

    def model_update(self) -> Case:
        loss, options = PWMWorldModelLoss(self._world_model()), self.variant.options
        stepper = self.variant.stepper(WorldModelOptimizationStepper(loss, iterations=1_000_000, **options))
        sequences = self._sequences(self.size.sequences, self.size.horizon)
        return self._case(lambda: stepper.update(sequences), self.yardstick.model_update())

    def imagine(self) -> Case:
        function, start = self.variant.wrap(self._pwm_loss().imagine), self._start_states(self.size.start_states)
        return self._case(lambda: function(start), self.yardstick.imagine())

    def pwm_update(self) -> Case:
        stepper, start = self._pwm_stepper(), self._start_states(self.size.start_states)
        return self._case(lambda: stepper.update(start), self.yardstick.pwm_update())

    def pwm_updates(self, tasks: int) -> Case:
        """The updates of so many tasks as one program."""
        model = self._world_model().requires_grad_(False)
        together = self.variant.stepper(StackedPWMUpdate([self._pwm_stepper(model) for _ in range(tasks)]))
        start = torch.stack([self._start_states(self.size.start_states) for _ in range(tasks)])
        return self._case(lambda: together.update(start), self.yardstick.pwm_update() * tasks)

    def naive_update(self) -> Case:
        return self._beside_pwm(NaiveUpdate(self.size, self.device))

    def dreamer_update(self) -> Case:
        return self._beside_pwm(dreamer_update(self.size, self.device))

    def _beside_pwm(self, run: Callable[[], object]) -> Case:
        return Case(run, bare_run(self.yardstick.pwm_update(), self.device))

    def tdmpc2_update(self) -> Case:
        stepper = self.variant.stepper(TDMPC2OptimizationStepper(TDMPC2Loss(self._tdmpc2()), **self.variant.options))
        sequences = self._sequences(self.size.tdmpc2_sequences, self.size.tdmpc2_steps)
        return self._case(lambda: stepper.update(sequences), self.yardstick.tdmpc2_update())

    def plan(self, envs: int) -> Case:
        planner = TDMPC2Planner(self._tdmpc2().eval(), **self.size.planner)
        planner.plan_actions = self.variant.wrap(planner.plan_actions)
        state = self._start_states(envs).set("is_init", torch.zeros(envs, 1, dtype=torch.bool, device=self.device))
        settings = planner.settings
        products = self.yardstick.plan(
            envs, settings.horizon, settings.iterations, settings.num_samples, settings.num_policy_rollouts
        )
        return self._case(lambda: planner(state), products)

    def sample(self) -> Case:
        root = write_sparse_store(self.folder / "store", self.size.rows_per_task)
        slices, length = self.size.sequences, self.size.horizon
        hot = HotReplay(root, batches=1, slices=slices, transitions=length)
        return Case(hot.round, bare_reads(hot.replay.store, slices, length))

    def _case(self, run: Callable[[], object], products: list[Product]) -> Case:
        return Case(run, bare_run(products, self.device, self.variant.dtype), tuple(products))

    def _world_model(self) -> PWMWorldModel:
        size = self.size
        model = PWMWorldModel(
            size.observation_dim,
            size.action_dim,
            **size.networks,
            num_bins=size.bins,
            num_tasks=size.tasks,
            task_dim=size.task_dim,
            action_dims=MT80.action_dims,
        )
        return model.to(self.device)

    def _pwm_stepper(self, model: PWMWorldModel | None = None) -> PWMOptimizationStepper:
        stepper = PWMOptimizationStepper(self._pwm_loss(model), iterations=1_000_000, **self.variant.options)
        return self.variant.stepper(stepper)

    def _pwm_loss(self, model: PWMWorldModel | None = None) -> PWMLoss:
        size, latent = self.size, self.yardstick.latent
        actor = make_pwm_actor(latent, size.action_dim, units=size.actor)
        critics = make_value_ensemble(latent, units=size.critic, num_nets=size.critics)
        model = self._world_model().requires_grad_(False) if model is None else model
        return PWMLoss(actor.to(self.device), critics.to(self.device), model, horizon=size.horizon).to(self.device)

    def _tdmpc2(self) -> TDMPC2Model:
        lengths = [task.episode_length for task in MT80]
        return TDMPC2Model(self._world_model(), episode_lengths=lengths).to(self.device)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device)

    def _actions(self, *shape: int) -> Tensor:
        return torch.rand(*shape, self.size.action_dim, device=self.device) * 2 - 1

    def _tasks(self, *shape: int) -> Tensor:
        return torch.full(shape, 3, device=self.device)

    def _start_states(self, rows: int) -> TensorDict:
        observation = self._normal(rows, self.size.observation_dim)
        return TensorDict({"observation": observation, "task": self._tasks(rows)}, [rows], device=self.device)

    def _sequences(self, rows: int, steps: int) -> TensorDict:
        shape, width = (rows, steps), self.size.observation_dim
        following = {"observation": self._normal(*shape, width), "reward": torch.rand(*shape, 1, device=self.device)}
        entries = {"observation": self._normal(*shape, width), "action": self._actions(*shape)}
        return TensorDict(
            {**entries, "task": self._tasks(*shape), "next": TensorDict(following, shape)}, shape, device=self.device
        )


@dataclass(frozen=True)
class Entry:
    """A row of the table: how to build it, what one run is, and what it is measured against.

    ``fast`` cases take more rounds; ``compiles`` is false where there is nothing to compile.
    """

    build: Callable[[Bench], Case]
    what: str
    against: str = "bare matrix products"
    fast: bool = False
    compiles: bool = True


TOGETHER = 8

CASES: dict[str, Entry] = {
    "model-step": Entry(Bench.model_step, "world-model step: next latent and reward, no gradient", fast=True),
    "imagine": Entry(Bench.imagine, "imagination: H steps of policy and world model, with their graph"),
    "model-update": Entry(Bench.model_update, "world-model update on sequences"),
    "pwm-update": Entry(Bench.pwm_update, "full PWM update: imagination, actor step, 8 x 4 critic minibatches"),
    "pwm-updates": Entry(
        lambda bench: bench.pwm_updates(TOGETHER), f"full PWM update of {TOGETHER} tasks on one model, as one program"
    ),
    "naive-update": Entry(
        Bench.naive_update,
        "the same written as a naive loop, critic by critic",
        "the products of pwm-update",
        compiles=False,
    ),
    "dreamer-update": Entry(
        Bench.dreamer_update,
        "TorchRL's DreamerV3 update: as many states, as long a horizon, as wide layers",
        "the products of pwm-update",
        compiles=False,
    ),
    "tdmpc2-update": Entry(Bench.tdmpc2_update, "TD-MPC2 update: model, policy and target"),
    "plan-1": Entry(lambda bench: bench.plan(1), "TD-MPC2 plan, 1 env: a decision", fast=True),
    "plan-8": Entry(lambda bench: bench.plan(8), "TD-MPC2 plan, 8 envs: 8 decisions"),
    "sample": Entry(
        Bench.sample, "a sample from the storage, in the system's cache", "bare reads", fast=True, compiles=False
    ),
}
