"""SHAC: one update from a window of a differentiable simulator, and the training loop."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl import torchrl_logger
from torchrl.envs import EnvBase

from torchrl_pwm._utils.finite import first_bad_step
from torchrl_pwm.envs.simulators.state import load_env, save_env
from torchrl_pwm.objectives import SHACLoss
from torchrl_pwm.trainers.steppers import FirstOrderOptimizationStepper
from torchrl_pwm.trainers.trainer import Trainer


class SHACOptimizationStepper(FirstOrderOptimizationStepper):
    """One update of SHAC from a window of the simulator: an actor step and the critic pass.

    The defaults are those of the PWM paper's SHAC runs (arXiv 2407.02466): 16 passes over 4 minibatches.

    Args:
        loss_module (SHACLoss): the objective; its actor and critics are optimised.

    Keyword Args:
        **kwargs: see :class:`FirstOrderOptimizationStepper`.

    Raises:
        FloatingPointError: as there, naming the update, and the step and row of the window in which the first number
            was not finite; if all are, those that the gradient reached last on its way back.

    Examples:
        >>> from torchrl_pwm import SHACLoss, make_pwm_actor, make_value_ensemble
        >>> from torchrl_pwm.envs.simulators import AnalyticEnv
        >>> env = AnalyticEnv("double_pendulum", 8, requires_grad=True)
        >>> size = env.observation_spec["observation"].shape[-1]
        >>> actor = make_pwm_actor(size, env.action_spec.shape[-1], in_key="observation")
        >>> loss = SHACLoss(actor, make_value_ensemble(size, in_key="observation"), horizon=4)
        >>> stepper = SHACOptimizationStepper(loss, iterations=100)
        >>> rollout, td = loss.rollout(env, env.reset())
        >>> sorted(stepper.update(rollout).keys())[:3]
        ['actor_grad_norm', 'actor_lr', 'critic_grad_norm']
    """

    loss_module: SHACLoss

    def __init__(
        self,
        loss_module: SHACLoss,
        *,
        iterations: int = 2000,
        actor_lr: float = 2e-3,
        critic_lr: float = 5e-4,
        final_lr: float = 1e-5,
        betas: tuple[float, float] = (0.7, 0.95),
        actor_clip: float = 1.0,
        critic_clip: float = 100.0,
        critic_iterations: int = 16,
        critic_batches: int = 4,
        **options: Any,
    ) -> None:
        super().__init__(
            loss_module,
            iterations=iterations,
            actor_lr=actor_lr,
            critic_lr=critic_lr,
            final_lr=final_lr,
            betas=betas,
            actor_clip=actor_clip,
            critic_clip=critic_clip,
            critic_iterations=critic_iterations,
            critic_batches=critic_batches,
            **options,
        )
        self._gradients: list[Tensor | None] = []

    def update(self, batch: TensorDictBase) -> TensorDictBase:
        """One update from a window ``[N, H]`` of :meth:`SHACLoss.rollout`, with its graph."""
        self._gradients = _keep_gradients(batch.get(self.loss_module.tensor_keys.action))
        return super().update(batch)

    def evidence(self, batch: TensorDictBase) -> tuple[TensorDictBase, list[Tensor | None]]:
        return batch.detach(), self._gradients

    def locate(self, evidence: tuple[TensorDictBase, list[Tensor | None]]) -> str:
        batch, gradients = evidence
        bad = first_bad_step(batch)
        if bad is not None:
            return (
                f"{bad.key} of the window is not finite from step {bad.step} on, in {_named(bad.envs)}: the simulation "
                "diverged; take smaller steps in the simulator, bound its state, or end such envs' episodes there"
            )
        for step, gradient in reversed(list(enumerate(gradients))):
            envs = torch.zeros(len(batch), dtype=torch.bool) if gradient is None else ~gradient.isfinite().all(-1)
            if envs.any():
                return (
                    "every number of the window is finite, but the gradient is not where, on its way back through the "
                    f"simulator, it reaches the action of step {step}, in {_named(envs)}: shorten the horizon, or "
                    "leave such updates out with skip_non_finite=True"
                )
        return "every number of the window is finite, so the networks have diverged: lower the learning rate"


class SimulatorWindows:
    """Rolls out one window after the other; where the simulator stands is a part of the checkpoint.

    Args:
        loss_module (SHACLoss): whose :meth:`~torchrl_pwm.SHACLoss.rollout` is called.
        env (EnvBase): the simulator; its state is saved by its ``state_dict()``.

    Keyword Args:
        restart (bool): reset the envs that a window left with a number that is not finite, and warn. Without it they
            stop the run.
    """

    def __init__(self, loss_module: SHACLoss, env: EnvBase, *, restart: bool = False) -> None:
        self.loss_module, self.env, self.restart = loss_module, env, restart
        self.td: TensorDictBase | None = None
        self.restarted = 0

    def rollout(self) -> TensorDictBase:
        """The next window ``[N, H]``, with its graph."""
        td = self.env.reset() if self.td is None else self.td
        if self.restart:
            td = self._restart_lost_envs(td)
        window, self.td = self.loss_module.rollout(self.env, td)
        return window

    def _restart_lost_envs(self, td: TensorDictBase) -> TensorDictBase:
        leaves = [value.isfinite().reshape(len(td), -1).all(-1) for value in td.values(True, True)]
        lost = ~torch.stack(leaves).all(0)
        if not lost.any():
            return td
        self.restarted += int(lost.sum())
        torchrl_logger.warning(f"{_named(lost)} of the simulator not finite: reset ({self.restarted} so far)")
        td = self.loss_module.memory.forget(td.detach(), lost)
        return self.env.reset(td.set("_reset", lost.unsqueeze(-1))).exclude("_reset")

    def state_dict(self) -> dict[str, Any]:
        return {**save_env(self.env, self.td), "restarted": self.restarted}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.td = load_env(self.env, state_dict)
        self.restarted = state_dict["restarted"]


class SHACTrainer(Trainer):
    """Learns a policy through a differentiable simulator, one window after the other.

    TorchRL's collectors hand back rewards without a graph, so that the simulator is stepped by the trainer itself. A
    checkpoint holds the state of the simulator, where it has a ``state_dict()``, beside networks, optimisers, moments
    and generators.

    Args:
        loss_module (SHACLoss): the objective.
        env (EnvBase): a differentiable simulator of batch [N], built with ``requires_grad=True``.

    Keyword Args:
        iterations (int): number of windows; published: 2000 for hopper and ant, 200 for cart-pole.
        optimization_stepper (SHACOptimizationStepper, optional): default: one with the published settings. With its
            ``skip_non_finite``, envs that the simulator lost are reset, with a warning.
        **kwargs: see :class:`~torchrl_pwm.trainers.Trainer`.

    Examples:
        >>> from torchrl_pwm import SHACLoss, make_pwm_actor, make_value_ensemble
        >>> from torchrl_pwm.envs.simulators import AnalyticEnv
        >>> env = AnalyticEnv("cartpole_swingup", 8, requires_grad=True)
        >>> size = env.observation_spec["observation"].shape[-1]
        >>> actor = make_pwm_actor(size, 1, in_key="observation")
        >>> value = make_value_ensemble(size, in_key="observation")
        >>> SHACTrainer(SHACLoss(actor, value, horizon=4), env, iterations=2, progress_bar=False).train()
    """

    optimization_stepper: SHACOptimizationStepper
    progress_keys = ("loss_actor", "loss_value", "reward_mean")

    def __init__(
        self,
        loss_module: SHACLoss,
        env: EnvBase,
        *,
        iterations: int = 2000,
        optimization_stepper: SHACOptimizationStepper | None = None,
        **kwargs: Any,
    ) -> None:
        stepper = optimization_stepper or SHACOptimizationStepper(loss_module, iterations=iterations)
        super().__init__(loss_module, stepper, iterations=iterations, **kwargs)
        self.windows = SimulatorWindows(loss_module, env, restart=stepper.skip_non_finite)
        self.components["simulator_windows"] = self.windows

    def train(self) -> None:
        """Runs the windows that are left.

        Each is H steps of the N envs under the current policy, through the simulator with its graph; the actor climbs
        the short-horizon return, the critics regress on its TD(lambda) targets, and the graph is cut.
        """
        for _ in self.remaining():
            window = self.windows.rollout()
            metrics = self.optimization_stepper.step(self, window)
            self.log(metrics)
            self.log_evaluation()
            self.save()


def _keep_gradients(actions: Tensor) -> list[Tensor | None]:
    """A list that the backward pass fills with the gradient of each step's actions, [N, A], from stacked ones."""
    steps = actions.grad_fn.next_functions if actions.grad_fn is not None else ()
    gradients: list[Tensor | None] = [None] * len(steps)

    def keep(step: int, arriving: tuple[Tensor, ...]) -> None:
        gradients[step] = arriving[0]

    for step, (node, _) in enumerate(steps):
        if node is not None:
            node.register_prehook(functools.partial(keep, step))
    return gradients


def _named(envs: Tensor) -> str:
    indices = envs.nonzero().flatten().tolist()
    return f"env {indices[0]}" if len(indices) == 1 else f"{len(indices)} of {len(envs)} envs, the first {indices[0]}"
