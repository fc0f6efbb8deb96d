"""Differentiable simulators as TorchRL envs."""

from __future__ import annotations

from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_pwm._utils.devices import is_host, readable, spec_on
from torchrl_pwm.envs.simulators._gates import Gates
from torchrl_pwm.envs.simulators._watch import NonFiniteWatch
from torchrl_pwm.envs.simulators._workers import NamedEnvMeta
from torchrl_pwm.envs.simulators.base import RewardTiming, Simulator, SimulatorStep

__all__ = ["SimulatorEnv"]

NonFinite = Literal["raise", "terminate"]

_STATE = {"simulator", "steps", "observation", "already_reset", "non_finite_count"}


class SimulatorEnv(EnvBase, metaclass=NamedEnvMeta):
    """A batched TorchRL env of a differentiable :class:`Simulator`.

    With ``requires_grad``, ``rollout`` and ``step_and_maybe_reset`` build the graph from rewards and observations back
    through the physics to the actions. Envs that are done are reset alone, the others keep their graph; the terminal
    observation stays in ``("next", "observation")``. :meth:`truncate_graph` ends a window of short-horizon learning
    (SHAC, arXiv 2204.07137), a full :meth:`reset` cuts every graph.

    Keys, all with batch [N]: reads ``action`` [N, A] in [-1, 1]; writes ``observation`` [N, O] and ``reward``,
    ``done``, ``terminated``, ``truncated`` [N, 1]. Both ``terminated`` and ``truncated`` may be set at once.

    Args:
        simulator (Simulator): the simulated task. Its device and dtype are the env's.

    Keyword Args:
        requires_grad (bool): whether gradients flow through steps. Default: ``False``, which runs under ``no_grad``.
            TorchRL's collectors and ``ParallelEnv`` give data without a graph in either case.
        non_finite (str): what a NaN or an infinity in an env's observation or reward does. ``"raise"`` (default) stops.
            ``"terminate"`` ends that env's episode: terminated, reward 0, its last finite observation repeated, no
            gradient to the actions of that episode, and ``non_finite_count`` (int) grows by one.
        stagger (bool): whether a :meth:`reset` of all envs gives each a random number of steps, of which its first
            episode is shorter, so that they do not all end at once ever after. For training; default: ``False``.
        num_workers (int): of envs that are built by the name of a task: above 1 gives a ``ParallelEnv`` of that many
            processes, with batch [num_workers, num_envs], a seed each, and without gradients. Default: 1.

    Raises:
        ValueError: for an unknown option, or ``num_workers`` with gradients; at a step, for actions of wrong shape,
            dtype or device.
        RuntimeError: at a step before the first reset, or if actions that require gradients, with gradients enabled,
            meet an env without ``requires_grad``: a loss would lose its gradient there unnoticed. Evaluation belongs
            under ``torch.no_grad()``.
        FloatingPointError: with ``non_finite="raise"``, naming the envs and their step: at that step or, on a GPU,
            which would have to be waited for, within 32 further ones and before a window or all envs begin anew.

    Examples:
        >>> from torchrl_pwm.envs.simulators import AnalyticEnv
        >>> from tensordict.nn import TensorDictModule
        >>> from torch import nn
        >>> env = AnalyticEnv("double_pendulum", num_envs=4, requires_grad=True)
        >>> policy = TensorDictModule(nn.Sequential(nn.Linear(6, 1), nn.Tanh()), ["observation"], ["action"])
        >>> td = env.reset()
        >>> for window in range(2):
        ...     td = env.truncate_graph(td)
        ...     reward = 0.0
        ...     for step in range(16):
        ...         transition, td = env.step_and_maybe_reset(policy(td))
        ...         reward = reward + transition["next", "reward"].mean()
        ...     (-reward).backward()
        >>> bool(policy.module[0].weight.grad.isfinite().all())
        True
    """

    def __init__(
        self,
        simulator: Simulator,
        *,
        requires_grad: bool = False,
        non_finite: NonFinite = "raise",
        stagger: bool = False,
    ) -> None:
        if non_finite not in ("raise", "terminate"):
            raise ValueError(f'non_finite must be "raise" or "terminate", found {non_finite!r}')
        length = simulator.episode_length
        if length is not None and length < 1:
            raise ValueError(f"episode_length must be at least 1, found {length}")
        super().__init__(device=simulator.device, batch_size=torch.Size([simulator.num_envs]))
        self.simulator = simulator
        self.requires_grad = requires_grad
        self.non_finite = non_finite
        self.stagger = stagger
        self._lost = self._zeros(torch.int64)  # times that the episode of each env was ended
        self._watch = NonFiniteWatch()
        self._resets_itself = False
        self._steps = self._zeros(torch.int64)
        self._observation: Tensor | None = None
        # Envs that the simulator itself reset in its last step, and that await their reset here.
        self._already_reset = self._zeros(torch.bool)
        self._gates = Gates(simulator.num_envs, simulator.device)
        self._make_specs()

    def _zeros(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros(self.batch_size, dtype=dtype, device=self.device)

    def _make_specs(self) -> None:
        n, kind = self.num_envs, {"dtype": self.simulator.dtype, "device": self.device}
        batch: dict[str, Any] = {"shape": self.batch_size, "device": self.device}
        self.observation_spec = Composite(observation=Unbounded((n, self.simulator.observation_size), **kind), **batch)
        unit = Bounded(-1.0, 1.0, (n, self.simulator.action_size), dtype=self.simulator.dtype)
        self.action_spec = spec_on(unit, self.device)
        self.reward_spec = Unbounded((n, 1), **kind)
        flags = {
            key: Binary(1, (n, 1), dtype=torch.bool, device=self.device) for key in ("done", "terminated", "truncated")
        }
        self.done_spec = Composite(flags, **batch)

    def extra_repr(self) -> str:
        task = f"{self.task!r}, " if isinstance(getattr(self, "task", None), str) else ""
        return f"{task}num_envs={self.num_envs}, device={self.device}"

    @property
    def _on_host(self) -> bool:
        return is_host(self.device)

    @property
    def num_envs(self) -> int:
        """Number N of parallel envs."""
        return self.simulator.num_envs

    @property
    def episode_length(self) -> int | None:
        """Steps after which an env is truncated, or None for never."""
        return self.simulator.episode_length

    @property
    def terminates(self) -> bool:
        """Whether an episode may end before its time is over."""
        return self.simulator.terminates or self.non_finite == "terminate"

    @property
    def non_finite_count(self) -> int:
        """Episodes ended so far by ``non_finite="terminate"``."""
        return int(self._lost.sum()) if readable(self._lost) else 0

    @property
    def reward_timing(self) -> RewardTiming:
        """Whether a step is rewarded for the state it reaches, ``"after"``, or for the one it leaves, ``"before"``."""
        return self.simulator.reward_timing

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if mask is None:
            self._watch.read()
            started = needed = ~self._zeros(torch.bool)
        else:
            self._check_started("partially reset")
            started = mask.reshape(self.num_envs)
            needed = started & ~self._already_reset
        with self._grad_mode():
            if self._resets(needed):
                self._observation = self.simulator.reset(needed)
        assert self._observation is not None
        self._check_start(started)
        self._steps = torch.where(started, 0, self._steps)
        if mask is None and self.stagger and self.episode_length is not None:
            self._steps = ((self.simulator.uniform() + 1) / 2 * self.episode_length).long()
            self.simulator.skip(self._steps)
        self._already_reset = self._already_reset & ~started
        self._gates.restart(started)
        if mask is None or (self._on_host and bool(started.all())):
            self._cut()
        return self._pack(self._observation, self._zeros(torch.bool), self._zeros(torch.bool))

    def _reset_check_done(self, tensordict: Any, tensordict_reset: Any) -> None:
        """Nothing: no flag is set after a reset, and TorchRL would read each of them to see that."""

    def _resets(self, needed: Tensor) -> bool:
        """Whether the simulator has to reset envs; a GPU is asked only where it may have reset them itself."""
        asked = self._on_host or self._resets_itself
        return not asked or not readable(needed) or bool(needed.any())

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._check_started("stepped")
        action = self._checked_action(tensordict.get("action"))
        with self._grad_mode():
            differentiable = torch.is_grad_enabled() and action.requires_grad
            gated = self._gates(action) if differentiable and self.non_finite == "terminate" else action
            step = self._checked_step(self.simulator.step(gated))
            if differentiable and not (step.observation.requires_grad or step.reward.requires_grad):
                raise RuntimeError(
                    f"{type(self.simulator).__name__}.step returned an observation and a reward without a graph, "
                    "though the actions require gradients: it must use differentiable torch operations only, outside "
                    "no_grad and without detach or numpy"
                )
            self._steps = self._steps + 1
            truncated = self._out_of_time() if step.truncated is None else step.truncated
            if step.after_reset is not None:
                self._resets_itself = True
                self._already_reset = step.terminated | truncated
            step = self._without_non_finite(step, action)
            self._observation = step.observation if step.after_reset is None else step.after_reset
            return self._pack(step.observation, step.terminated, truncated).set("reward", step.reward[:, None].clone())

    def _out_of_time(self) -> Tensor:
        length = self.episode_length
        return self._zeros(torch.bool) if length is None else self._steps >= length

    def _pack(self, observation: Tensor, terminated: Tensor, truncated: Tensor) -> TensorDict:
        flags = {"done": terminated | truncated, "terminated": terminated, "truncated": truncated}
        # Copies, as these may be the simulator's own tensors, and users write into their TensorDicts.
        columns = {key: flag[:, None].clone() for key, flag in flags.items()}
        return TensorDict({"observation": observation.clone(), **columns}, self.batch_size, device=self.device)

    def _grad_mode(self) -> torch.set_grad_enabled:
        return torch.set_grad_enabled(self.requires_grad and torch.is_grad_enabled())

    def truncate_graph(self, tensordict: TensorDictBase | None = None) -> TensorDictBase:
        """Cuts the graph here, between two windows of first-order learning.

        The simulator's state keeps its values and loses its graph, and so does everything that is carried on: the
        whole ``tensordict``, with the state of transforms such as ``RewardSum``. It works the same through a
        ``TransformedEnv`` around this env.

        Args:
            tensordict: where the env stands: what :meth:`reset` returned, the second value of
                :meth:`step_and_maybe_reset`, or, after a rollout, ``env.maybe_reset(env.step_mdp(rollout[:, -1]))``.
                Without it, the present ``observation`` and flags are returned as a new TensorDict, as after
                :meth:`load_state_dict`; transforms around this env have no part in that.

        Returns:
            The detached TensorDict, a new one with the present observation at its root, from which the next window
            starts: ``env.rollout(H, policy, tensordict=td, auto_reset=False, break_when_any_done=False)``.

        Raises:
            RuntimeError: before the first reset.
            ValueError: if the TensorDict is a finished step (it has ``"next"``), or has envs that are done.
        """
        self._check_started("cut")
        if tensordict is not None and "next" in tensordict:
            raise ValueError(
                'expected the TensorDict of the next step, found a finished step (it has "next"): pass '
                "env.maybe_reset(env.step_mdp(tensordict)), or the second value of step_and_maybe_reset"
            )
        self._watch.read()
        flags = [] if tensordict is None else [tensordict[key] for key in self.done_keys if key in tensordict]
        if flags and readable(*flags) and torch.stack([flag.any() for flag in flags]).any():
            raise ValueError(
                "found envs that are done, which must be reset before the next window: pass "
                "env.maybe_reset(tensordict), or the second value of step_and_maybe_reset"
            )
        self._cut()
        if tensordict is not None:
            return tensordict.detach()
        assert self._observation is not None
        return self._pack(self._observation, self._zeros(torch.bool), self._zeros(torch.bool))

    def _cut(self) -> None:
        self.simulator.cut()
        assert self._observation is not None
        self._observation = self._observation.detach()
        self._gates.clear()

    def _set_seed(self, seed: int | None) -> None:
        if seed is None:
            raise ValueError("a simulator needs an integer seed, found None")
        self.simulator.set_seed(seed)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """All that later steps and resets depend on: simulator, step counts and the state of the generator.

        Around this env, a ``TransformedEnv`` saves only its transforms: save ``env.base_env.state_dict()`` beside it.
        """
        self._watch.read()
        observation = self._observation if self._observation is None else self._observation.detach().clone()
        return {
            "simulator": self.simulator.state_dict(),
            "steps": self._steps.clone(),
            "observation": observation,
            "already_reset": self._already_reset.clone(),
            "non_finite_count": self.non_finite_count,
        }

    def load_state_dict(self, state_dict: Any, strict: bool = True, **kwargs: Any) -> None:
        """Goes on from a state of :meth:`state_dict`, bit for bit, from ``env.truncate_graph()`` or a saved TensorDict.

        Without ``strict``, an incomplete state changes nothing: TorchRL's ``EnvCreator`` hands on parts of the state
        of another env.

        Raises:
            KeyError, ValueError: if the state is not one of this kind of env and ``num_envs``.
        """
        if set(state_dict) != _STATE:
            if not strict:
                return
            raise KeyError(f"expected the entries {sorted(_STATE)} of a simulator env, found {sorted(state_dict)}")
        self.simulator.load_state_dict(state_dict["simulator"])
        self._steps = state_dict["steps"].to(self._steps, copy=True)
        observation = state_dict["observation"]
        self._observation = None if observation is None else observation.to(self.device, copy=True)
        self._already_reset = state_dict["already_reset"].to(self._already_reset, copy=True)
        self._lost = self._zeros(torch.int64)
        self._lost[0] = int(state_dict["non_finite_count"])
        self._gates.clear()

    def to(self, device: torch.device | str | int) -> SimulatorEnv:
        """This env, if ``device`` is its own; a simulator cannot be moved.

        Raises:
            ValueError: for another device.
        """
        if torch.empty(0, device=device).device != self.device:
            raise ValueError(f"the simulator lives on {self.device}: build the env with device={str(device)!r}")
        return self

    def _check_started(self, what: str) -> None:
        if self._observation is None:
            raise RuntimeError(f"the env was {what} before its first reset: call reset()")

    def _checked_action(self, action: Tensor) -> Tensor:
        expected = (self.num_envs, self.simulator.action_size)
        if tuple(action.shape) != expected:
            raise ValueError(
                f"expected actions of shape {expected} (num_envs, action size), found {tuple(action.shape)}: "
                "does the policy fit env.action_spec?"
            )
        if action.dtype != self.simulator.dtype:
            raise ValueError(
                f"expected actions of dtype {self.simulator.dtype}, found {action.dtype}: convert the policy, or build "
                "the env with the policy's dtype"
            )
        if action.device != self.device:
            raise ValueError(
                f"expected actions on {self.device}, found {action.device}: move the policy there, or build the env "
                "with the policy's device"
            )
        if action.requires_grad and torch.is_grad_enabled() and not self.requires_grad:
            raise RuntimeError(
                "the actions require gradients, but this env was built with requires_grad=False and would drop them: "
                "build it with requires_grad=True to learn through it, or step it under torch.no_grad()"
            )
        return action

    def _checked_step(self, result: Any) -> SimulatorStep:
        step = SimulatorStep(*result)
        batch, kind = (self.num_envs,), self.simulator.dtype
        wide = ((*batch, self.simulator.observation_size), kind)
        flag = (batch, torch.bool)
        expected = (wide, (batch, kind), flag, flag, wide)
        for key, value, (shape, dtype) in zip(SimulatorStep._fields, step, expected):
            if value is not None and (tuple(value.shape), value.dtype) != (shape, dtype):
                raise ValueError(
                    f"{type(self.simulator).__name__}.step must return {key} of shape {shape} and {dtype}, "
                    f"found {tuple(value.shape)} and {value.dtype}"
                )
        return step

    def _check_start(self, started: Tensor) -> None:
        assert self._observation is not None
        expected = (self.num_envs, self.simulator.observation_size)
        if tuple(self._observation.shape) != expected:
            raise ValueError(
                f"{type(self.simulator).__name__}.reset must return the observation of every env, of shape {expected}, "
                f"found {tuple(self._observation.shape)}"
            )
        self._watch.note_start(started & ~self._observation.isfinite().all(-1))

    def _without_non_finite(self, step: SimulatorStep, action: Tensor) -> SimulatorStep:
        finite = step.observation.isfinite().all(-1) & step.reward.isfinite()
        if self._on_host and finite.all():
            return step
        bad = ~finite
        if self.non_finite == "raise":
            self._watch.note_step(bad, self._steps, action)
            return step
        assert self._observation is not None
        self._lost = self._lost + bad
        self._gates.close(bad)
        last = self._observation.detach()
        return step._replace(
            observation=torch.where(bad[:, None], last, step.observation),
            reward=torch.where(bad, 0.0, step.reward),
            terminated=step.terminated | bad,
        )
