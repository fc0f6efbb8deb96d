"""Envs with the interface of DiffRL, which DFlex and rewarped share, as a :class:`Simulator`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchrl_pwm.envs.simulators.base import Simulator, SimulatorStep


class DiffRLSimulator(Simulator):
    """An env that itself resets what is done and draws from torch's global generator.

    For the time of a call, the global generator takes the state of this simulator's own, and then its former state.

    Args:
        env: the built env.

    Keyword Args:
        seed (int): of this simulator's draws.

    Raises:
        TypeError: if ``env`` lacks an attribute of the interface.
    """

    library: ClassVar[str]
    #: attributes and methods of the interface.
    needs: ClassVar[tuple[str, ...]] = (
        *("num_envs", "num_observations", "num_actions", "episode_length", "device", "no_grad", "progress_buf"),
        *("reset", "step", "initialize_trajectory", "clear_grad", "get_checkpoint"),
    )
    #: names of the flags among the extras that a step returns.
    flags: ClassVar[tuple[str, str]]

    def __init__(self, env: Any, *, seed: int = 0) -> None:
        lacking = [name for name in self.needs if not hasattr(env, name)]
        # rewarped allocates its buffers at the first reset.
        if lacking and not (lacking == ["progress_buf"] and hasattr(env, "initialized")):
            raise TypeError(
                f"expected an env of {self.library}, found {type(env).__name__}, which has no {', '.join(lacking)}"
            )
        super().__init__(int(env.num_envs), device=env.device, seed=seed)
        self.env = env
        self.observation_size = int(env.num_observations)
        self.action_size = int(env.num_actions)
        self.episode_length = int(env.episode_length)
        self.terminates = bool(getattr(env, "early_termination", True))

    def reset(self, rows: Tensor) -> Tensor:
        with self.running():
            return self.env.reset(rows.nonzero().flatten())

    def step(self, actions: Tensor) -> SimulatorStep:
        with self.running():
            after_reset, reward, _, extras = self.env.step(actions)
        if not all(name in extras for name in self.flags):
            raise KeyError(
                f"expected {' and '.join(self.flags)} among what a step of {self.library} returns beside observation "
                f"and reward, found {sorted(extras)}: is this the version that is named in the docs?"
            )
        terminated, truncated = (extras[name].bool() for name in self.flags)
        reached = extras.get("obs_before_reset")
        return SimulatorStep(after_reset if reached is None else reached, reward, terminated, truncated, after_reset)

    def skip(self, steps: Tensor) -> None:
        self.env.progress_buf = steps.to(self.env.progress_buf)

    def cut(self) -> None:
        with self.running():
            self.env.initialize_trajectory()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around every call of the env."""
        with draws_from(self.generator):
            yield

    def state_dict(self) -> dict[str, Any]:
        """The env's own checkpoint, its step counts and the state of the generator; needs a first reset."""
        return {
            "checkpoint": _copied(self.env.get_checkpoint()),
            "progress": self.env.progress_buf.clone(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of :meth:`state_dict`.

        Raises:
            KeyError: if it has other entries.
            ValueError: if it was saved with another num_envs.
        """
        if state.keys() != {"checkpoint", "progress", "generator"}:
            raise KeyError(f"expected the state entries ['checkpoint', 'generator', 'progress'], found {sorted(state)}")
        if state["progress"].shape != (self.num_envs,):
            raise ValueError(
                f"the state was saved with num_envs={state['progress'].numel()}, this env has {self.num_envs}"
            )
        with self.running():
            if not getattr(self.env, "initialized", True):
                self.env.reset()
            self.env.clear_grad(_copied(state["checkpoint"]))
            self.env.progress_buf = state["progress"].to(self.device, copy=True)
            self.env.initialize_trajectory()
        self.generator.set_state(state["generator"].cpu())


@contextmanager
def draws_from(generator: torch.Generator) -> Iterator[None]:
    """Lends ``generator`` to code that draws from torch's global one, which is left as it was."""
    device = generator.device
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        if cuda:
            torch.cuda.set_rng_state(generator.get_state(), device)
        else:
            torch.set_rng_state(generator.get_state())
        try:
            yield
        finally:
            generator.set_state(torch.cuda.get_rng_state(device) if cuda else torch.get_rng_state())


def build_env(kind: Callable[..., Any], num_envs: int, *, device: Any, seed: int, **settings: Any) -> Any:
    """Builds an env of ``kind`` on ``device``, by its full name.

    Raises:
        ValueError: for num_envs below 1.
        AttributeError: where it asks numpy for ``Inf``, with what to do.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs must be an integer of at least 1, found {num_envs!r}")
    place = torch.empty(0, device=device).device
    with draws_from(torch.Generator(place).manual_seed(seed)):
        try:
            return kind(num_envs=num_envs, device=str(place), **settings)
        except AttributeError as error:
            if "np.Inf" not in str(error):
                raise
            raise AttributeError(
                f"{error} Build the env with shim=True, or inside torchrl_pwm.envs.simulators.compatibility_shim()"
            ) from error


def _copied(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Detached copies of the tensors of a nested checkpoint."""
    return {
        name: _copied(value) if isinstance(value, dict) else torch.as_tensor(value).detach().clone()
        for name, value in checkpoint.items()
    }
