"""Agents: a world model with its actor, critics and running moments, as one module to act with and to train on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch import nn

from torchrl_pwm._utils.errors import DamagedFileError
from torchrl_pwm.modules.actor_critic import PWMActor, ValueEnsemble, make_pwm_actor, make_value_ensemble
from torchrl_pwm.modules.agent_files import (
    AdamState,
    AgentFile,
    MomentsState,
    actor_sizes,
    critic_sizes,
    parse_agent,
    read_agent_file,
)
from torchrl_pwm.modules.arguments import build_for, plain
from torchrl_pwm.modules.checkpoints import read_world_model
from torchrl_pwm.modules.hub import Pretrained
from torchrl_pwm.modules.normalizer import ObservationNormalizer
from torchrl_pwm.modules.policy import WorldModelPolicy
from torchrl_pwm.modules.running_statistics import RunningMoments
from torchrl_pwm.modules.world_model import PWMWorldModel

#: Published: normalised observations are clipped to [-5, 5] before PWM's encoder; SHAC does not clip them.
_OBSERVATION_CLIP = 5.0
_SHAC_MIN_LOG_STD = -10.0


class PWMAgent(Pretrained):
    """A world model, the actor and the critics on its latents, and the running moments they were trained with.

    Of a SHAC agent there is no world model: actor and critics read the observation itself.

    Args:
        world_model (PWMWorldModel, optional): with its own moments of rewards, and of observations if it standardises
            them.
        actor (PWMActor): see :func:`~torchrl_pwm.make_pwm_actor`.
        critics (ValueEnsemble): see :func:`~torchrl_pwm.make_value_ensemble`.

    Keyword Args:
        normalizer (ObservationNormalizer, optional): of an agent without a world model.
        return_moments (RunningMoments, optional): running moments of the loss of an imagined rollout, by whose spread
            the actor's loss is divided; see :class:`~torchrl_pwm.FirstOrderLoss`.
        observation_moments (RunningMoments, optional): those that the world model's observation statistics come from,
            with the number of samples.

    Attributes:
        optimizers (dict): of a published agent, what the Adam optimisers of ``"actor"``, ``"critic"`` and
            ``"world_model"`` keep, by name of the parameter; empty if there is none. It is no part of the state dict.
            :func:`~torchrl_pwm.trainers.load_agent` puts it into steppers.

    Raises:
        ValueError: if the parts do not fit together.

    Source: PWM (arXiv 2407.02466), single-task experiments, published code.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> model = PWMWorldModel(5, 2, latent_dim=16, units=(32, 32), normalize_rewards=True)
        >>> agent = PWMAgent(model, make_pwm_actor(16, 2), make_value_ensemble(16))
        >>> agent.policy(TensorDict({"observation": torch.randn(4, 5)}, [4]))["action"].shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        world_model: PWMWorldModel | None,
        actor: PWMActor,
        critics: ValueEnsemble,
        *,
        normalizer: ObservationNormalizer | None = None,
        return_moments: RunningMoments | None = None,
        observation_moments: RunningMoments | None = None,
    ) -> None:
        super().__init__()
        if world_model is not None and normalizer is not None:
            raise ValueError("Give a normalizer or a world model: a world model standardises observations itself.")
        self.world_model, self.actor, self.critics = world_model, actor, critics
        self.normalizer = normalizer
        self.return_moments, self.observation_moments = return_moments, observation_moments
        self.optimizers: dict[str, dict[str, AdamState]] = {}
        arguments = _actor_arguments(actor), _critic_arguments(critics)
        sizes = {part["latent_dim"] for part in arguments}
        expected = None if world_model is None else world_model.latent_dim
        if normalizer is not None:
            expected = normalizer.moments.mean.shape[0]
        if len(sizes | ({expected} - {None})) > 1:
            raise ValueError(
                f"The parts of an agent must fit together: actor and critics read {arguments[0]['latent_dim']} and "
                f"{arguments[1]['latent_dim']} entries, what is before them gives {expected}."
            )
        if world_model is not None and world_model.action_dim != arguments[0]["action_dim"]:
            raise ValueError(
                f"The actor writes {arguments[0]['action_dim']} entries of the action, the world model reads "
                f"{world_model.action_dim}."
            )

    @classmethod
    def from_pwm(cls, path: str | os.PathLike[str]) -> PWMAgent:
        """The agent of a file that the published code of PWM, or of SHAC, saved; nothing in it is executed.

        Observations are normalised by the file's moments, clipped to [-5, 5], where it has them, rewards are predicted
        in its units and given back in the task's. Sizes are inferred from the weights.

        Raises:
            FileNotFoundError: if there is no such file.
            DamagedFileError: if it is no checkpoint, or refers to anything but tensors and running moments.
            ValueError: if it is a checkpoint of something else, or its parts do not fit together.

        Examples:
            >>> agent = PWMAgent.from_pwm("dflex/pretrained/ant.pt")  # doctest: +SKIP
            >>> result = evaluate_policy(agent.policy, DFlexEnv("ant", 64), episodes=64)  # doctest: +SKIP
        """
        contents = read_agent_file(path)
        return cls._from_file(parse_agent(contents, path), path)

    @classmethod
    def _from_file(cls, file: AgentFile, path: str | os.PathLike[str]) -> PWMAgent:
        moments = {name: _running(state) for name, state in file.moments.items()}
        observation, returns = moments.get("obs_rms"), moments.get("ret_rms")
        model, normalizer, in_key = None, None, "latent"
        try:
            if file.world_model is not None:
                model = _published_world_model(file, observation)
            else:
                in_key = "observation"
                if observation is not None:
                    normalizer = ObservationNormalizer(observation.mean.numel())
                    normalizer.moments.load_state_dict(observation.state_dict())
                    in_key, observation = normalizer.out_keys[0], None
            floor: dict[str, Any] = {} if model is not None else {"min_log_std": _SHAC_MIN_LOG_STD}
            actor = build_for(file.actor, make_pwm_actor, actor_sizes(file.actor), **floor, in_key=in_key)
            actor.load_reference_state_dict(file.actor)
            critics = build_for(file.critic, make_value_ensemble, critic_sizes(file.critic), in_key=in_key)
            critics.load_reference_state_dict(file.critic)
            agent = cls(
                model,
                actor,
                critics,
                normalizer=normalizer,
                return_moments=returns,
                observation_moments=observation,
            )
        except (ValueError, RuntimeError, TypeError, LookupError) as error:
            raise DamagedFileError(f"{path}: {error}") from error
        agent.optimizers = file.optimizers
        return agent

    @property
    def policy(self) -> TensorDictModuleBase:
        """A policy from observation (and task) to action, which shares the agent's networks.

        It samples by default; under ``set_exploration_type(ExplorationType.DETERMINISTIC)`` it takes tanh(mu), the
        evaluation action.
        """
        if self.world_model is not None:
            return WorldModelPolicy(self.world_model, self.actor)
        return self.actor if self.normalizer is None else TensorDictSequential(self.normalizer, self.actor)

    @property
    def constructor_arguments(self) -> dict[str, Any]:
        """What the agent's parts were built with, as plain numbers, strings, lists and dictionaries."""
        return {
            "world_model": None if self.world_model is None else self.world_model.constructor_arguments,
            "world_model_keys": {} if self.world_model is None else plain(self.world_model.renamed_keys),
            "actor": _actor_arguments(self.actor),
            "critics": _critic_arguments(self.critics),
            "normalizer": None if self.normalizer is None else _normalizer_arguments(self.normalizer),
            "return_moments": self.return_moments is not None,
            "observation_moments": self.observation_moments is not None,
        }

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> PWMAgent:
        """A new agent with parts that are built as :attr:`constructor_arguments` says."""
        normalizer = arguments["normalizer"]
        model = None if arguments["world_model"] is None else PWMWorldModel(**arguments["world_model"])
        if model is not None:
            keys = arguments.get("world_model_keys", {})  # which earlier files do not have
            model.set_keys(**{name: tuple(key) if isinstance(key, list) else key for name, key in keys.items()})
        shape = () if model is None else model.observation_shape
        return cls(
            model,
            make_pwm_actor(**_with_keys(arguments["actor"])),
            make_value_ensemble(**_with_keys(arguments["critics"])),
            normalizer=None if normalizer is None else ObservationNormalizer(**_with_keys(normalizer)),
            return_moments=RunningMoments() if arguments["return_moments"] else None,
            observation_moments=RunningMoments(shape) if arguments["observation_moments"] else None,
        )


def _published_world_model(file: AgentFile, observation: RunningMoments | None) -> PWMWorldModel:
    assert file.world_model is not None
    sizes, weights = read_world_model(file.world_model)
    reward = file.moments.get("rew_rms")
    # Of bins, in symlog space, the published code has moments too and does not use them.
    normalized = reward is not None and not sizes["num_bins"]
    clip = None if observation is None else _OBSERVATION_CLIP
    model: PWMWorldModel = build_for(weights, PWMWorldModel, sizes, normalize_rewards=normalized, observation_clip=clip)
    if normalized:
        assert model.reward_moments is not None and reward is not None
        moments = _running(reward, ()).state_dict()
        weights = {**weights, **{f"reward_moments.{name}": value for name, value in moments.items()}}
    model.load_state_dict(weights)
    if observation is not None:
        tasks = max(model.num_tasks, 1)
        mean, std = observation.mean.flatten(), observation.std.flatten()
        model.set_observation_statistics(mean.expand(tasks, -1), std.expand(tasks, -1), min_std=0.0)
    return model


def _running(state: MomentsState, shape: tuple[int, ...] | None = None) -> RunningMoments:
    """Moments of the shape of one sample, which for a single number is ()."""
    if shape is None:
        shape = () if state.mean.numel() == 1 else tuple(state.mean.shape)
    moments = RunningMoments(shape)
    for name, value in (("mean", state.mean), ("var", state.var), ("count", torch.tensor(state.count))):
        own = moments.get_buffer(name)
        own.copy_(value.reshape(own.shape))
    return moments


def _actor_arguments(actor: nn.Module) -> dict[str, Any]:
    if not isinstance(actor, PWMActor):
        raise ValueError(
            f"The actor of an agent is one of make_pwm_actor(...), found {type(actor).__name__}; any other policy on "
            "latents acts through WorldModelPolicy(world_model, actor)"
        )
    first = actor.get_submodule("module.0")
    head: Any = actor.get_submodule("module.0.module")
    sizes = actor_sizes(head.state_dict())
    keys = {"in_key": plain(first.in_keys[0]), "out_key": plain(actor.out_keys[-1])}
    return {**sizes, "init_log_std": head.init_log_std, "min_log_std": head.min_log_std, **keys}


def _critic_arguments(critics: nn.Module) -> dict[str, Any]:
    if not isinstance(critics, ValueEnsemble):
        raise ValueError(
            f"The critics of an agent are those of make_value_ensemble(...), found {type(critics).__name__}"
        )
    keys = {"in_key": plain(critics.in_keys[0]), "out_key": plain(critics.out_keys[0])}
    return {**critic_sizes(critics.state_dict()), **keys}


def _normalizer_arguments(normalizer: ObservationNormalizer) -> dict[str, Any]:
    keys = {"in_key": plain(normalizer.in_keys[0]), "out_key": plain(normalizer.out_keys[0])}
    clip = None if normalizer.clip == float("inf") else normalizer.clip
    return {"observation_dim": normalizer.moments.mean.shape[0], **({} if clip is None else {"clip": clip}), **keys}


def _with_keys(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with names of entries as TensorDict has them: those in several parts are tuples."""
    keys = {name: tuple(arguments[name]) for name in ("in_key", "out_key") if isinstance(arguments[name], list)}
    return {**arguments, **keys}
