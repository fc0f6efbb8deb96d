"""The transform that adds a world model's latent to an env, a replay buffer or a model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, Transform

from torchrl_pwm.envs._encoding import check_model, encode, needs_task, num_tasks, observation_shape
from torchrl_pwm.envs.imagined import ImaginedEnv, unit_action_spec
from torchrl_pwm.modules.multitask import known_task
from torchrl_pwm.modules.two_hot import RewardSpace

__all__ = ["ImaginedEnv", "WorldModelWrapper"]


class WorldModelWrapper(Transform):
    """Writes ``latent`` = enc(``observation``, ``task``), so that one policy runs in the real env and in imagination.

    In ``TransformedEnv(env, WorldModelWrapper(model))`` reset and step write it and the observation spec has it; in a
    replay buffer it is written beside ``observation`` and, if present, beside ``("next", "observation")``. There is no
    gradient: the model is not trained through it.

    .. note:: TorchRL exports another class of this name, ``torchrl.modules.WorldModelWrapper``: a module that chains a
        transition and a reward model. This one is an env transform.

    The model is not a submodule: ``env.to(device)``, ``env.parameters()`` and ``env.state_dict()`` leave it alone.
    Observations travel to the model's device and latents back. :meth:`clone` shares the model. Put the transform
    around a ``ParallelEnv`` rather than inside its workers while the model is being trained, as each worker process
    keeps the model that it was started with.

    Args:
        world_model (PWMWorldModel): or any module with its tensor form ``encode_observation``.

    Keyword Args:
        in_keys (sequence of NestedKey): the observation ``[*, O]``, one entry. For several, put
            :class:`torchrl.envs.CatTensors` in front.
        out_keys (sequence of NestedKey): where the latent ``[*, D]`` goes, one entry.
        task_key (NestedKey): task index ``[*]`` (int64), read if the model has tasks.
        task (int, optional): index of the task of an env that has no entry for it; written under ``task_key``, so that
            losses and policies find it.

    Raises:
        TypeError: if ``world_model`` cannot encode.
        ValueError: if there is not one key of each; in use, if the observation or the task is missing, or the
            observation has not the model's size.

    The model's actions are in [-1, 1]. If the env's are not, put :class:`torchrl.envs.transforms.ActionScaling` in
    front: the first reset warns of an env whose actions are others, and :meth:`imagined_env` refuses it.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, ReplayBuffer
        >>> from torchrl_pwm import PWMWorldModel
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> data = ReplayBuffer(storage=LazyTensorStorage(10), transform=WorldModelWrapper(model), batch_size=4)
        >>> indices = data.extend(TensorDict({"observation": torch.randn(10, 5)}, [10]))
        >>> data.sample()["latent"].shape
        torch.Size([4, 16])
    """

    _actions_seen = False

    def __init__(
        self,
        world_model: nn.Module,
        *,
        in_keys: Sequence[NestedKey] = ("observation",),
        out_keys: Sequence[NestedKey] = ("latent",),
        task_key: NestedKey = "task",
        task: int | None = None,
    ) -> None:
        check_model(world_model, "encode_observation")
        if task is not None and not needs_task(world_model):
            raise ValueError(f"task={task} was given, but this world model has no tasks (num_tasks=0).")
        if task is not None:
            known_task(task, num_tasks(world_model))
        self.task = task
        in_keys, out_keys = (
            [keys] if isinstance(keys, str) else [unravel_key(key) for key in keys] for keys in (in_keys, out_keys)
        )
        if len(in_keys) != 1 or len(out_keys) != 1:
            raise ValueError(
                f"Expected one observation and one latent entry, found in_keys={in_keys} and out_keys={out_keys}. "
                "Join several observations with torchrl.envs.CatTensors in front."
            )
        self._observation_key, self._latent_key, self._task_key = in_keys[0], out_keys[0], unravel_key(task_key)
        if task is not None:
            out_keys = [*out_keys, self._task_key]
        elif needs_task(world_model):
            in_keys = [*in_keys, self._task_key]
        super().__init__(in_keys=in_keys, out_keys=out_keys)
        # A submodule would be moved by TransformedEnv to the env's device, away from the losses that share it.
        self.__dict__["_world_model"] = (world_model,)

    @property
    def world_model(self) -> Any:
        """The model."""
        return self.__dict__["_world_model"][0]

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        if not self._actions_seen:
            self._actions_seen = True
            self._warn_of_other_actions()
        return self._write(tensordict_reset, tensordict)

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        return self._write(next_tensordict, tensordict)

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        return self._write(next_tensordict, next_tensordict)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes ``latent`` and, beside ``("next", "observation")``, ``("next", "latent")``."""
        following = tensordict.get("next", None)
        if following is not None and following.get(self._observation_key, None) is not None:
            tensordict.set(unravel_key(("next", self._latent_key)), self._encode(following, tensordict))
            if tensordict.get(self._observation_key, None) is None:
                return tensordict
        return self._write(tensordict, tensordict)

    def _write(self, tensordict: TensorDictBase, fallback: TensorDictBase) -> TensorDictBase:
        if self.missing_tolerance and tensordict.get(self._observation_key, None) is None:
            return tensordict
        latent = self._encode(tensordict, fallback)
        if self.task is not None:
            tensordict.set(self._task_key, torch.full(latent.shape[:-1], self.task, device=latent.device))
        return tensordict.set(self._latent_key, latent)

    def _encode(self, tensordict: TensorDictBase, fallback: TensorDictBase) -> Tensor:
        """The latent of a TensorDict; an env that writes its task at the reset only has it in ``fallback``."""
        observation = tensordict.get(self._observation_key, None)
        if observation is None:
            raise ValueError(self._missing("observation", self._observation_key, tensordict))
        task = self.task
        if task is None and needs_task(self.world_model):
            task = tensordict.get(self._task_key, None)
            task = fallback.get(self._task_key, None) if task is None else task
            if task is None:
                raise ValueError(self._missing("task index", self._task_key, tensordict))
        return encode(self.world_model, observation, task)

    def _missing(self, what: str, key: NestedKey, given: TensorDictBase | Composite) -> str:
        hint = (
            f"This world model has {self.world_model.num_tasks} tasks: make_task_env(..., task_set=...) writes the "
            "index, or name yours with task_key=..., or say which one this env is with WorldModelWrapper(model, task=0)"
            if key == self._task_key
            else "Name yours with in_keys=..."
        )
        entries = sorted(map(str, given.keys(True, True)))
        return f"WorldModelWrapper needs the {what} under {key!r}, found {entries}. {hint}"

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Adds the latent: unbounded, though SimNorm's lie in [0, 1], as another model's may not."""
        if self._observation_key not in observation_spec.keys(True, True):
            if self.missing_tolerance:
                return observation_spec
            raise ValueError(self._missing("observation", self._observation_key, observation_spec))
        leaf, path = observation_spec[self._observation_key], self._observation_key
        batch = (observation_spec[path[:-1]] if isinstance(path, tuple) else observation_spec).shape
        shape = leaf.shape[len(batch) :]
        expected = observation_shape(self.world_model, shape[-1:])
        if len(shape) != len(expected):
            raise ValueError(
                f"The world model reads observations of shape {list(expected)}, found {path!r} of shape {list(shape)}: "
                "put torchrl.envs.FlattenObservation in front, or build the model with an encoder= for this shape."
            )
        one = torch.zeros(1, *shape, dtype=leaf.dtype, device=leaf.device)
        latent = encode(self.world_model, one, 0 if needs_task(self.world_model) else None)
        observation_spec[self._latent_key] = Unbounded(
            (*batch, latent.shape[-1]), dtype=latent.dtype, device=leaf.device
        )
        if self.task is not None:
            if self._task_key in observation_spec.keys(True, True):
                raise ValueError(
                    f"The env writes its task under {self._task_key!r}, and task={self.task} was given: leave one out."
                )
            observation_spec[self._task_key] = Categorical(
                self.world_model.num_tasks, batch, dtype=torch.int64, device=leaf.device
            )
        return observation_spec

    def imagined_env(
        self,
        batch_size: int | Sequence[int] | None = None,
        task: int | Tensor | None = None,
        reward_space: RewardSpace = "raw",
        max_steps: int | None = None,
    ) -> ImaginedEnv:
        """An env with the real env's action spec, whose dynamics are the model.

        A reset without start states takes them from the real env, by resetting it as often as needed. Outside an env
        the action spec comes from the model, and start states must be given.

        Args:
            batch_size (int or sequence of int, optional): number of imagined states. Default: the real env's.
            task (int or Tensor, optional): task index of start states that carry none.
            reward_space (str): ``"raw"`` (default) or ``"symlog"``.
            max_steps (int, optional): truncate after so many steps. Default: never.

        Returns:
            An :class:`ImaginedEnv`, differentiable under ``rollout``.

        Raises:
            ValueError: if the real env's action is not one continuous entry in [-1, 1] of the model's size.
        """
        env = self._real_env()
        action: dict[str, Any] = {}
        if env is not None:
            if len(env.action_keys) != 1:
                raise ValueError(f"A world model takes one action entry, the env has {env.action_keys}.")
            key = env.action_keys[0]
            action = {"action_key": key, "action_spec": env.full_action_spec_unbatched[key]}
            action |= {"starts": self._starts, "seed_starts": self._seed_starts}
            batch_size = env.batch_size if batch_size is None else batch_size
        return ImaginedEnv(
            self.world_model,
            batch_size=() if batch_size is None else batch_size,
            observation_key=self._observation_key,
            latent_key=self._latent_key,
            task_key=self._task_key,
            task=self.task if task is None else task,
            reward_space=reward_space,
            max_steps=max_steps,
            **action,
        )

    def _real_env(self) -> EnvBase | None:
        """The whole env around this transform, or ``None`` outside an env."""
        owner: Any = self
        while not isinstance(owner, EnvBase):
            reference = owner.__dict__.get("_container")
            if reference is None:
                return None
            owner = reference()
            if owner is None:
                raise ValueError(
                    "The real env of this wrapper is gone: a transform does not keep its env alive. Keep the "
                    "TransformedEnv in a variable, or use a new wrapper outside an env."
                )
        return owner

    def _warn_of_other_actions(self) -> None:
        """A policy that learns in the model would act in such an env without an error, and badly."""
        env = self._real_env()
        if env is None or len(env.action_keys) != 1 or not hasattr(self.world_model, "action_dim"):
            return
        try:
            unit_action_spec(env.full_action_spec_unbatched[env.action_keys[0]], self.world_model)
        except ValueError as error:
            warnings.warn(f"The env's actions are not those of the world model: {error}", stacklevel=2)

    def _seed_starts(self, seed: int) -> None:
        env = self._real_env()
        assert env is not None
        env.set_seed(seed)

    @torch.no_grad()
    def _starts(self, count: int) -> TensorDictBase:
        """Latents (and tasks) ``[count]`` of freshly reset real envs."""
        env = self._real_env()
        assert env is not None
        starts: list[TensorDictBase] = []
        while sum(map(len, starts)) < count:
            start = env.reset().select(self._latent_key, self._task_key, strict=False).reshape(-1)
            starts.append(TensorDict(start.to_dict(), start.batch_size))
        return torch.cat(starts)[:count]
