"""An env whose dynamics are a world model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.data import Bounded, Categorical, Composite, TensorSpec, Unbounded
from torchrl.envs import ModelBasedEnvBase

from torchrl_pwm._utils.devices import is_host, spec_on
from torchrl_pwm.envs._encoding import check_model, encode, needs_task, num_tasks, reference_tensor
from torchrl_pwm.modules.frozen import frozen
from torchrl_pwm.modules.multitask import align_task, check_tasks, known_task
from torchrl_pwm.modules.own_encoder import wrong_size
from torchrl_pwm.modules.two_hot import RewardSpace


class ImaginedEnv(ModelBasedEnvBase):
    """An env that steps inside a world model: z' = dyn(z, a), r = rew(z, a).

    It is stateless and differentiable: ``rollout`` builds the graph from the rewards back through the latents to the
    policy, and no gradient reaches the model's weights. It terminates where the model has a termination head that finds
    an end more probable than not, else never. Usually made by :meth:`WorldModelWrapper.imagined_env`, which copies the
    action spec of the real env.

    A reset starts from the TensorDict it is given: from ``observation`` if it has one (encoded without gradient), else
    from ``latent``. Without either, and where only some states are reset, it asks ``starts``. The observation is then
    dropped, as it would not move with the latent; so is a ``"next"`` entry, so that a batch of a replay buffer serves
    as it is.

    Args:
        world_model (PWMWorldModel): or any module with its ``latent_dim``, ``action_dim`` and tensor forms
            ``encode_observation``, ``next_latent``, ``reward_logits``, ``decode_reward``. The env lives on its device.

    Keyword Args:
        batch_size (int or sequence of int): number of imagined states. With ``()``, the default, start states of
            any batch size are taken.
        action_spec (TensorSpec, optional): of one action ``[A]``, bounded by -1 and 1. Default: from the model.
        action_key, observation_key, latent_key, task_key (NestedKey): names of the entries.
        task (int or Tensor, optional): task index of start states that carry none (multi-task models).
        reward_space (str): ``"raw"`` (default), the task's units, or ``"symlog"``, what
            :class:`~torchrl_pwm.PWMLoss` sums by default.
        max_steps (int, optional): truncate after so many steps; adds a ``step_count`` entry. Default: never.
        starts (callable, optional): ``starts(n)`` returns n start states as a TensorDict ``[n]``.
        seed_starts (callable, optional): called with the seed by :meth:`set_seed`, so that ``starts`` draws the same.

    Raises:
        ValueError: if the action spec is not [-1, 1] or does not fit the model; at a reset, if there is no start state
            or no task.

    Writes ``latent`` [*, D] and, for a multi-task model, ``task`` [*] (int64); under ``"next"`` also ``reward``
    [*, 1] and ``done``, ``terminated``, ``truncated`` [*, 1].

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_pwm import PWMWorldModel, make_pwm_actor
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> env = ImaginedEnv(model, batch_size=4)
        >>> start = TensorDict({"observation": torch.randn(4, 5)}, [4])
        >>> rollout = env.rollout(8, make_pwm_actor(16, 2), tensordict=start)
        >>> rollout["next", "reward"].shape, rollout["next", "reward"].requires_grad
        (torch.Size([4, 8, 1]), True)
    """

    # A reset honours start states, whether or not `set_state=True` says so; see _resolve_set_state.
    _supports_set_state = True

    def __init__(
        self,
        world_model: nn.Module,
        *,
        batch_size: int | Sequence[int] = (),
        action_spec: TensorSpec | None = None,
        action_key: NestedKey = "action",
        observation_key: NestedKey = "observation",
        latent_key: NestedKey = "latent",
        task_key: NestedKey = "task",
        task: int | Tensor | None = None,
        reward_space: RewardSpace = "raw",
        max_steps: int | None = None,
        starts: Callable[[int], TensorDictBase] | None = None,
        seed_starts: Callable[[int], object] | None = None,
    ) -> None:
        check_model(world_model, "encode_observation", "next_latent", "reward_logits", "decode_reward")
        if reward_space not in ("raw", "symlog"):
            raise ValueError(f'reward_space must be "raw" or "symlog", found {reward_space!r}.')
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, found {max_steps}.")
        if task is not None and not needs_task(world_model):
            raise ValueError(f"task={task} was given, but this world model has no tasks (num_tasks=0).")
        if task is not None:
            known_task(task, num_tasks(world_model))
        weight = reference_tensor(world_model)
        batch_size = torch.Size([batch_size] if isinstance(batch_size, int) else batch_size)
        super().__init__(world_model, device=weight.device, batch_size=batch_size)
        # Locked only where there is a batch, as TorchRL draws no random actions for an unlocked batch.
        self._batch_locked = bool(batch_size)
        self._action_key = unravel_key(action_key)
        self._observation_key = unravel_key(observation_key)
        self._latent_key = unravel_key(latent_key)
        self._task_key = unravel_key(task_key)
        self.reward_space = reward_space
        self.max_steps = max_steps
        self._task = task
        self._starts, self._seed_starts = starts, seed_starts
        self._make_specs(unit_action_spec(action_spec, world_model), weight.dtype)

    def _make_specs(self, action: TensorSpec, dtype: torch.dtype) -> None:
        model, batch, device = self.world_model, self.batch_size, self.device
        state = {self._latent_key: Unbounded((*batch, model.latent_dim), dtype=dtype, device=device)}
        if needs_task(model):
            state[self._task_key] = Categorical(model.num_tasks, batch, dtype=torch.int64, device=device)
        if self.max_steps is not None:
            state["step_count"] = Unbounded((*batch, 1), dtype=torch.int64, device=device)
        self.action_spec = self._composite({self._action_key: action.expand(*batch, *action.shape)})
        self.observation_spec = self._composite(state)
        self.state_spec = self._composite(state)
        self.reward_spec = Unbounded((*batch, 1), dtype=dtype, device=device)
        flag = Categorical(2, (*batch, 1), dtype=torch.bool, device=device)
        self.done_spec = self._composite(dict.fromkeys(("done", "terminated", "truncated"), flag))

    def _composite(self, leaves: dict[Any, TensorSpec]) -> Composite:
        spec = Composite(shape=self.batch_size, device=self.device)
        for key, leaf in leaves.items():
            spec[key] = spec_on(leaf.clone(), self.device)
        return spec

    def _reset(self, tensordict: TensorDictBase | None = None, set_state: bool | None = None) -> TensorDictBase:
        partial = tensordict is not None and any(key in tensordict.keys(True) for key in self.reset_keys)
        start = None if set_state is False or (partial and not set_state) else tensordict
        if start is None or not self._is_start(start):
            if set_state:
                raise ValueError(self._no_start_message(start))
            start = self._draw(tensordict)
        batch = start.batch_size
        start = start.to(self.device)
        task = self._start_task(start, batch)
        observation = start.get(self._observation_key, None)
        if observation is not None:
            latent = encode(self.world_model, observation, task)
        else:
            latent = start.get(self._latent_key)
        return self._state(latent, task, torch.zeros(*batch, 1, dtype=torch.int64, device=self.device))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        model = self.world_model
        latent, action = tensordict.get(self._latent_key), tensordict.get(self._action_key)
        task = tensordict.get(self._task_key) if needs_task(model) else None
        with frozen(model):
            reward = model.decode_reward(model.reward_logits(latent, action, task), self.reward_space)
            latent = model.next_latent(latent, action, task)
            ends = model.termination_logits(latent, task) > 0 if getattr(model, "termination", False) else None
        # A state that comes from no reset has no count yet.
        before = tensordict.get("step_count", torch.zeros(*latent.shape[:-1], 1, dtype=torch.int64, device=self.device))
        steps = None if self.max_steps is None else before + 1
        return self._state(latent, task, steps, ends).set("reward", reward)

    def _state(
        self, latent: Tensor, task: Tensor | None, steps: Tensor | None, terminated: Tensor | None = None
    ) -> TensorDict:
        out = TensorDict({}, latent.shape[:-1], device=self.device).set(self._latent_key, latent)
        if task is not None:
            out.set(self._task_key, task)
        never = torch.zeros(*out.batch_size, 1, dtype=torch.bool, device=self.device)
        truncated = never
        if self.max_steps is not None:
            assert steps is not None
            out.set("step_count", steps)
            truncated = steps >= self.max_steps
        terminated = never if terminated is None else terminated
        return out.update({"done": terminated | truncated, "terminated": terminated, "truncated": truncated})

    def _is_start(self, tensordict: TensorDictBase) -> bool:
        keys = tensordict.keys(include_nested=True, leaves_only=True)
        return self._observation_key in keys or self._latent_key in keys

    def _draw(self, given: TensorDictBase | None) -> TensorDictBase:
        if self._starts is None:
            raise ValueError(self._no_start_message(given))
        batch = self.batch_size if given is None else given.batch_size
        start = self._starts(batch.numel())
        if start.batch_size != (batch.numel(),):
            raise ValueError(f"starts({batch.numel()}) returned a batch of shape {tuple(start.batch_size)}.")
        return start.reshape(batch)

    def _start_task(self, start: TensorDictBase, batch: torch.Size) -> Tensor | None:
        if not needs_task(self.world_model):
            return None
        task = start.get(self._task_key, None)
        task = self._task if task is None else task
        if task is None:
            raise ValueError(
                f"This world model has {self.world_model.num_tasks} tasks: put each start state's task index under "
                f"{self._task_key!r}, or give imagined_env(task=...)."
            )
        if isinstance(task, Tensor):
            task = known_task(task, self.world_model.num_tasks)
        task = align_task(torch.as_tensor(task, dtype=torch.int64, device=self.device), batch).clone()
        if is_host(task.device):
            check_tasks(task, self.world_model.num_tasks)
        return task

    def _no_start_message(self, given: TensorDictBase | None) -> str:
        entries = "nothing" if given is None else f"the entries {sorted(map(str, given.keys()))}"
        return (
            f"An imagined env needs start states: expected {self._observation_key!r} or {self._latent_key!r} in "
            f"reset(tensordict) or rollout(..., tensordict=...), found {entries}. To start from a real env, make this "
            "one with wrapper.imagined_env() while the wrapper is in a TransformedEnv."
        )

    def _reset_check_done(self, tensordict: Any, tensordict_reset: Any) -> None:
        """Nothing: no flag is set after a reset, and TorchRL would read each of them to see that."""

    def _reset_proc_data(self, tensordict: TensorDictBase | None, tensordict_reset: TensorDictBase) -> TensorDictBase:
        if tensordict is not None and not any(key in tensordict.keys(True) for key in self.reset_keys):
            tensordict = tensordict.exclude("next", self._observation_key).to(self.device)
        return super()._reset_proc_data(tensordict, tensordict_reset)

    def _resolve_set_state(
        self, set_state: bool | None, tensordict: TensorDictBase | None, select_reset_only: bool
    ) -> bool | None:
        # TorchRL warns that it will ignore a given state unless told otherwise; here starting from it is the purpose.
        if set_state is None and not select_reset_only:
            return None
        return super()._resolve_set_state(set_state, tensordict, select_reset_only)

    def _set_seed(self, seed: int | None) -> None:
        """Start states alone are drawn at random."""
        if seed is not None and self._seed_starts is not None:
            self._seed_starts(seed)


def _range(spec: TensorSpec) -> str:
    if isinstance(spec, Unbounded):
        return "an unbounded action spec"
    return f"an action spec from {spec.space.low.min().item():g} to {spec.space.high.max().item():g}"


def unit_action_spec(spec: TensorSpec | None, model: Any) -> TensorSpec:
    """``spec`` if it is one action ``[A]`` of the model within -1 and 1, else an error that says what to add."""
    if spec is None:
        return Bounded(-1.0, 1.0, (model.action_dim,))
    if not isinstance(spec, (Bounded, Unbounded)) or not spec.dtype.is_floating_point:
        raise ValueError(f"A world model imagines with continuous actions, found the action spec {spec}.")
    space = spec.space
    if torch.device(spec.device or "cpu").type == "meta":
        return spec  # which has no numbers to read
    if isinstance(spec, Unbounded) or not (space.low.isfinite().all() and space.high.isfinite().all()):
        raise ValueError(
            f"Expected actions in [-1, 1], found {_range(spec)}. Give the env a Bounded action spec, then "
            "add torchrl.envs.transforms.ActionScaling(), which scales it to [-1, 1]."
        )
    if max((space.low + 1).abs().max(), (space.high - 1).abs().max()) > 1e-5:
        raise ValueError(
            f"Expected actions in [-1, 1], found bounds from {space.low.min().item():g} to "
            f"{space.high.max().item():g}. Add torchrl.envs.transforms.ActionScaling(): "
            "TransformedEnv(env, Compose(ActionScaling(), WorldModelWrapper(model)))."
        )
    if spec.shape != (model.action_dim,):
        raise ValueError(wrong_size("action", spec.shape, (model.action_dim,)))
    return spec
