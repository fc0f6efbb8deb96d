"""The interface of a differentiable simulator: what it must have to become a TorchRL env."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from torchrl_pwm._utils.seeds import make_generator
from torchrl_pwm.envs.multitask import checked_seed

__all__ = ["RewardTiming", "Simulator", "SimulatorStep"]

RewardTiming = Literal["after", "before"]


class SimulatorStep(NamedTuple):
    """One step of N simulated envs.

    Attributes:
        observation: [N, O], the state reached, *before* any reset: the terminal observation where the env is done.
        reward: [N].
        terminated: bool [N], the episode ended and has no future.
        truncated: bool [N], the episode was cut off; None leaves it to the env, which counts to ``episode_length``.
        after_reset: [N, O], of a simulator whose step itself resets the envs that are done: the observation after that.
            None leaves the resets to :class:`SimulatorEnv`.

    Examples:
        >>> import torch
        >>> step = SimulatorStep(torch.zeros(3, 2), reward=torch.ones(3), terminated=torch.zeros(3, dtype=torch.bool))
        >>> step.truncated is None
        True
    """

    observation: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor | None = None
    after_reset: Tensor | None = None


class Simulator(ABC):
    """N envs of one simulated task, stepped together; :class:`SimulatorEnv` makes one TorchRL env of them.

    A simulator of one's own sets three class attributes and writes :meth:`reset` and :meth:`step`. What it carries
    from step to step lives in tensor attributes, with entry i of each belonging to env i; then :meth:`cut`,
    :meth:`state_dict` and :meth:`load_state_dict` work as they are. Tensors are replaced, never changed in place, as
    they are part of the graph.

    Args:
        num_envs (int): number N of parallel envs.

    Keyword Args:
        device (device, optional): of all tensors. Default: torch's default device.
        dtype (dtype): of observations, actions and rewards. Default: ``torch.float32``.
        seed (int): of ``generator``, which every random draw comes from.

    Attributes:
        observation_size: length O of an observation.
        action_size: length A of an action; its entries lie in [-1, 1].
        episode_length: steps after which an env is truncated, or None for never.
        reward_timing: whether a step is rewarded for the state it reaches, ``"after"``, or leaves, ``"before"``.
        terminates: whether an episode may end before its time is over.
        reset_cuts_all: whether the reset of some envs cuts the graph of the others, too.
        generator: the simulator's own ``torch.Generator``.

    Raises:
        ValueError: for num_envs below 1, a dtype that is no float, or a seed out of range.

    Examples:
        >>> import torch
        >>> class Hover(Simulator):
        ...     observation_size, action_size, episode_length = 2, 2, 100
        ...
        ...     def __init__(self, num_envs, **options):
        ...         super().__init__(num_envs, **options)
        ...         self.position = torch.zeros(num_envs, 2, dtype=self.dtype, device=self.device)
        ...
        ...     def reset(self, rows):
        ...         self.position = torch.where(rows[:, None], self.uniform(2), self.position)
        ...         return self.position
        ...
        ...     def step(self, actions):
        ...         self.position = self.position + 0.1 * actions
        ...         distance = self.position.square().sum(-1)
        ...         return SimulatorStep(self.position, -distance, terminated=distance > 4)
        >>> from torchrl_pwm.envs.simulators import SimulatorEnv
        >>> env = SimulatorEnv(Hover(num_envs=8), requires_grad=True)
        >>> env.rollout(5)["next", "reward"].shape
        torch.Size([8, 5, 1])
    """

    observation_size: int
    action_size: int
    episode_length: int | None = None
    reward_timing: RewardTiming = "after"
    terminates: bool = True
    reset_cuts_all: bool = False

    def __init__(
        self,
        num_envs: int,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
            raise ValueError(f"num_envs must be an integer of at least 1, found {num_envs!r}")
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point type such as torch.float32, found {dtype!r}")
        self.num_envs = num_envs
        # A new tensor tells the full name of a device such as "cuda", which is "cuda:0".
        self.device = torch.empty(0, device=device).device
        self.dtype = dtype
        self.generator = make_generator(self.device, checked_seed(seed))

    @abstractmethod
    def reset(self, rows: Tensor) -> Tensor:
        """Starts an episode in the envs where ``rows`` (bool [N]) is True; the others keep state and graph.

        Returns:
            The observation of every env, [N, O].
        """

    @abstractmethod
    def step(self, actions: Tensor) -> SimulatorStep:
        """Advances every env by one step with ``actions`` [N, A], differentiably."""

    def skip(self, steps: Tensor) -> None:  # noqa: B027
        """Counts ``steps`` [N] of the present episodes as taken; of a simulator that itself counts them."""

    def cut(self) -> None:
        """Cuts the graph of the state at its present values."""
        for name, value in self._tensors().items():
            if value.grad_fn is not None:
                setattr(self, name, value.detach())

    def set_seed(self, seed: int) -> None:
        """Starts the random draws again."""
        self.generator.manual_seed(checked_seed(seed))

    def uniform(self, *size: int) -> Tensor:
        """Uniform draws in [-1, 1), [N, \\*size], for all envs: a start must not depend on which others are reset."""
        return 2 * self._draw(torch.rand, size) - 1

    def normal(self, *size: int) -> Tensor:
        """Standard normal draws, [N, \\*size], for all envs."""
        return self._draw(torch.randn, size)

    def numbers(self, *values: float) -> Tensor:
        """A vector of these numbers, made on the device: one made of a list would be copied to a GPU, which waits."""
        return torch.stack([torch.full((), value, dtype=self.dtype, device=self.device) for value in values])

    def _draw(self, draw: Any, size: tuple[int, ...]) -> Tensor:
        return draw(self.num_envs, *size, generator=self.generator, dtype=self.dtype, device=self.device)

    def state_dict(self) -> dict[str, Any]:
        """Copies of the tensor attributes and of the generator's state: all that later steps depend on."""
        state: dict[str, Any] = {name: value.detach().clone() for name, value in self._tensors().items()}
        return {**state, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of :meth:`state_dict`.

        Raises:
            KeyError: if it has other entries than this simulator.
            ValueError: if an entry has another shape.
        """
        own = self._tensors()
        if state.keys() != {*own, "generator"}:
            raise KeyError(f"expected the state entries {sorted([*own, 'generator'])}, found {sorted(state)}")
        for name, value in own.items():
            if state[name].shape != value.shape:
                raise ValueError(
                    f"expected {name} of shape {tuple(value.shape)}, found {tuple(state[name].shape)}: "
                    f"was the state saved with another num_envs than {self.num_envs}?"
                )
        for name, value in own.items():
            setattr(self, name, state[name].to(value, copy=True))
        self.generator.set_state(state["generator"].cpu())

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
