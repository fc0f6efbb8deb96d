"""A trained policy by itself: what it reads and writes, for one task or all, on any device."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import InteractionType, TensorDictModuleBase, dispatch, set_interaction_type
from tensordict.nn.probabilistic import interaction_type
from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_pwm._utils.entries import require
from torchrl_pwm.modules.multitask import align_task


class TrainedPolicy(TensorDictModuleBase):
    """A policy to act with: ``observation`` [*, O] to ``action`` [*, A] in [-1, 1].

    It acts deterministically unless TorchRL's ``set_exploration_type`` asks for something else, in the dtype and on the
    device of its networks; observations travel there, actions back. Nothing has a gradient.

    Of many tasks, one can be fixed. The policy then reads observations of that task's own size and writes actions of
    its own size, as ``make_task_env(name)`` has them. Where an entry ``task`` stands beside the observation, as in
    ``make_task_env(name, task_set=...)``, both are padded.

    Args:
        policy (TensorDictModuleBase): what acts, such as a :class:`~torchrl_pwm.WorldModelPolicy`, an actor that reads
            the observation, a :class:`~torchrl_pwm.TDMPC2Model` or its planner.

    Keyword Args:
        observation_dim, action_dim (int): sizes O and A that it reads and writes. Of a policy that reads pictures,
            their shape, a tuple.
        task (int, optional): index of the fixed task.
        task_name (str, optional): its name, or of the env that the policy was trained in.
        task_sizes (tuple of int, optional): of the fixed task's own observation and action. Default: O and A.
        action_bounds (tuple of sequences, optional): lowest and highest action in the units of the data that the policy
            was made from, which -1 and 1 stand for; see :meth:`unscaled`.
        observation_key, action_key, task_key, init_key (NestedKey): the entries.

    Raises:
        ValueError: if a fixed task's sizes do not fit; at a call, for an observation of another size, or of another
            task than the fixed one.

    A TD-MPC2 planner keeps its plan from step to step. It reads ``is_init`` for that, which TorchRL's ``InitTracker``
    writes; without the entry every step is planned afresh.

    Examples:
        >>> import torch
        >>> from torchrl_pwm import PWMWorldModel, WorldModelPolicy, make_pwm_actor
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> inner = WorldModelPolicy(model, make_pwm_actor(16, 2))
        >>> policy = TrainedPolicy(inner, observation_dim=5, action_dim=2)
        >>> policy(observation=torch.randn(4, 5)).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        *,
        observation_dim: int | tuple[int, ...],
        action_dim: int,
        task: int | None = None,
        task_name: str | None = None,
        task_sizes: tuple[int, int] | None = None,
        action_bounds: tuple[Sequence[float], Sequence[float]] | None = None,
        observation_key: NestedKey = "observation",
        action_key: NestedKey = "action",
        task_key: NestedKey = "task",
        init_key: NestedKey = "is_init",
    ) -> None:
        super().__init__()
        self.policy = policy
        shape = (observation_dim,) if isinstance(observation_dim, int) else tuple(observation_dim)
        #: Shape of one observation, of the networks and of the fixed task.
        self.observation_shape, self.action_dim = shape, action_dim
        self.task, self.task_name = task, task_name
        if task_sizes is not None and (len(shape) > 1 or task_sizes[0] > shape[0] or task_sizes[1] > action_dim):
            raise ValueError(
                f"The task's sizes must be at most those of the policy, {(*shape, action_dim)}, found {task_sizes}."
            )
        self.task_shape = shape if task_sizes is None else (task_sizes[0],)
        self.task_action_dim = action_dim if task_sizes is None else task_sizes[1]
        self.action_bounds = action_bounds
        self.observation_key, self.action_key = observation_key, action_key
        self.task_key, self.init_key = task_key, init_key
        reads = list(policy.in_keys)
        self._reads_task, self._reads_init = task_key in reads, init_key in reads
        self.in_keys = [
            observation_key,
            *([task_key] if self._reads_task and task is None else []),
            *([init_key] if self._reads_init else []),
        ]
        self.out_keys = [action_key]

    @property
    def world_model(self) -> Any:
        """The world model that the policy encodes with.

        Raises:
            AttributeError: if it has none.
        """
        inner: Any = self.policy
        return inner.model.world_model if hasattr(inner, "plan") else inner.world_model

    @property
    def exported_form(self) -> TrainedPolicy:
        """What :func:`~torchrl_pwm.export_policy` exports in place of it."""
        inner = getattr(self.policy, "exported_form", None)
        if inner is None:
            return self
        return TrainedPolicy(
            inner,
            observation_dim=self.observation_shape,
            action_dim=self.action_dim,
            task=self.task,
            task_name=self.task_name,
            task_sizes=None if self.task is None else (*self.task_shape, self.task_action_dim),  # type: ignore[arg-type]
            action_bounds=self.action_bounds,
            observation_key=self.observation_key,
            action_key=self.action_key,
            task_key=self.task_key,
        )

    def unscaled(self, action: Tensor) -> Tensor:
        """An action [*, A] in [-1, 1] in the units of the data: low + (action + 1) / 2 * (high - low).

        Without bounds of the data it stays as it is.
        """
        if self.action_bounds is None:
            return action
        low, high = (torch.tensor(bound).to(action) for bound in self.action_bounds)
        return low + (action + 1) / 2 * (high - low)

    def reset(self) -> None:
        """Forgets what a planner keeps from step to step."""
        if callable(reset := getattr(self.policy, "reset", None)):
            reset()

    @dispatch(auto_batch_size=False)
    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the action."""
        observation = require(tensordict, self.observation_key, self, "Give the env's observations this name.")
        task = tensordict.get(self.task_key, None) if self._reads_task else None
        shape = observation.shape[-len(self.observation_shape) :]
        padded = task is not None or shape != self.task_shape
        self._check(observation, shape, task)
        batch, like = observation.shape[: -len(shape)], self._reference()
        entries = TensorDict({}, batch, device=like.device)
        if len(shape) == 1:
            fitting = nn.functional.pad(observation.to(like), (0, self.observation_shape[0] - shape[0]))
        else:
            fitting = observation.to(like.device)  # pictures of bytes, too
        entries.set(self.observation_key, fitting)
        if self._reads_task:
            index = torch.tensor(self.task) if task is None else task
            entries.set(self.task_key, align_task(index.to(like.device), batch))
        if self._reads_init:
            begins = tensordict.get(self.init_key, None)
            begins = torch.ones((*batch, 1), dtype=torch.bool) if begins is None else begins
            entries.set(self.init_key, begins.to(like.device))
        with _deterministic_unless_told():
            action = self.policy(entries).get(self.action_key)
        size = self.action_dim if padded else self.task_action_dim
        return tensordict.set(self.action_key, action[..., :size].to(observation.device))

    def _check(self, observation: Tensor, shape: torch.Size, task: Tensor | None) -> None:
        if tuple(shape) not in (self.task_shape, self.observation_shape):
            named = f" of {self.task_name}" if self.task_name else ""
            padded = f" (padded: {self.observation_shape[0]})" if self.task_shape != self.observation_shape else ""
            expected = ", ".join(map(str, self.task_shape))
            raise ValueError(
                f"The policy{named} reads {self.observation_key!r} of shape [*, {expected}]{padded}, found "
                f"{tuple(observation.shape)}."
            )
        if self._reads_task and self.task is None and task is None:
            raise ValueError(
                f"The policy acts in several tasks and needs the entry {self.task_key!r}, which make_task_env(..., "
                "task_set=...) writes; or load it with task=NAME."
            )
        if task is not None and self.task is not None and bool((task != self.task).any()):
            found = sorted(set(task.flatten().tolist()))
            raise ValueError(f"The policy is of task {self.task} ({self.task_name}) alone, found task {found}.")

    def _reference(self) -> Tensor:
        """A tensor with the dtype and device of the networks."""
        return next(tensor for tensor in self.policy.parameters() if tensor.is_floating_point())


def _deterministic_unless_told() -> contextlib.AbstractContextManager:
    asked = interaction_type() is not None
    return contextlib.nullcontext() if asked else set_interaction_type(InteractionType.DETERMINISTIC)
