"""Numbers that are not finite: where they are, and the error that says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_pwm._utils.devices import readable


def all_finite(values: Iterable[Tensor]) -> bool:
    """Whether every entry of every tensor is finite."""
    return bool(torch.stack([value.detach().isfinite().all() for value in values]).all())


def describe_batch(batch: TensorDictBase) -> str:
    """The entry of a batch [B] or [B, T] and the tasks that are not finite, if there are any, and the first place."""
    for key, value in batch.items(include_nested=True, leaves_only=True):
        steps = ~value.isfinite().reshape(*(batch.shape or value.shape[:1]), -1).all(-1)
        rows = steps.reshape(len(steps), -1).any(1)
        if rows.any():
            task = batch.get("task", None)
            named = "" if task is None else f" of task {sorted(set(task[rows].flatten().tolist()))}"
            first = steps.nonzero()[0].tolist()
            place = f"row {first[0]}" + (f", step {first[1]}" if len(first) > 1 else "")
            return (
                f"the batch has non-finite {key}{named} in {int(rows.sum())} of {len(rows)} rows, first in {place}: "
                "check the data"
            )
    return "every entry of the batch is finite, so the networks have diverged: lower the learning rate"


class BadStep(NamedTuple):
    """The first number of steps [N, T] that is not finite.

    Args:
        key: its entry.
        step: from 0 to T - 1.
        envs: bool [N], in which it is not finite at this step.
        value: the number, of the first of them.
        task: of the first of them, where the steps say it.
    """

    key: NestedKey
    step: int
    envs: Tensor
    value: float
    task: int | None

    @property
    def env(self) -> int:
        """The first of them."""
        return int(self.envs.nonzero()[0])

    def named(self, *, first_step: int = 0, row: str = "env") -> str:
        """Entry, number, env and step, counted from ``first_step`` on."""
        task = "" if self.task is None else f" (task {self.task})"
        return f"{self.key} is {self.value:g} in {row} {self.env}{task} at step {first_step + self.step}"


def first_bad_step(steps: TensorDictBase) -> BadStep | None:
    """Where steps ``[N, T]`` are not finite for the first time; one read of their device where all are.

    Of one step, what was seen comes before what was done, and that before what came of it. Entries that cannot be read
    are not looked at: those of ``meta``, and all of them in compiled or captured code.

    Examples:
        >>> from tensordict import TensorDict
        >>> reward = torch.zeros(2, 3, 1)
        >>> reward[1, 2] = torch.nan
        >>> first_bad_step(TensorDict({"next": {"reward": reward}}, [2, 3])).named()
        "('next', 'reward') is nan in env 1 at step 2"
    """
    leaves: dict[Any, Tensor] = {
        key: value for key, value in steps.items(True, True) if isinstance(value, Tensor) and value.is_floating_point()
    }
    if not leaves or not readable(*leaves.values()) or all_finite(leaves.values()):
        return None
    found = []
    for number, (key, value) in enumerate(leaves.items()):
        flat = value.detach().reshape(*steps.shape[:2], -1)
        bad = ~flat.isfinite().all(-1)
        if bad.any():
            step = int(bad.any(0).nonzero()[0])
            after = isinstance(key, tuple) and key[0] == "next"
            done = not after and ("next", key) not in leaves
            found.append((step, after, done, number, key, bad[:, step], flat[:, step]))
    step, *_, key, envs, numbers = min(found, key=lambda each: each[:4])
    env = int(envs.nonzero()[0])
    value = numbers[env][~numbers[env].isfinite()][0]
    task = steps.get("task", None)
    return BadStep(key, step, envs, float(value), None if task is None else int(task[env, step]))


def non_finite(
    name: str, update: int, numbers: Mapping[str, float | Tensor], *, where: str, changed: bool = False
) -> FloatingPointError:
    """The error of an update whose numbers are not finite, with ``where`` they may come from."""
    listed = ", ".join(f"{number} {float(value):g}" for number, value in numbers.items())
    state = "Earlier steps of this update were taken" if changed else "No parameter was changed"
    return FloatingPointError(
        f"Update {update} of the {name}: expected finite numbers, found {listed}; {where}. {state}."
    )


def refuse_bad_update(
    name: str,
    update: int,
    numbers: Mapping[str, Tensor],
    parameters: Iterable[Tensor],
    batch: TensorDictBase,
) -> None:
    """Checks an update of plain PyTorch between ``backward()`` and ``step()``; one read of the device.

    Args:
        name, update: of the error.
        numbers: the loss, under its name.
        parameters: those with the gradients.
        batch: what the loss was made of.

    Raises:
        FloatingPointError: if an entry of the batch, a number or a gradient is not finite.
    """
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    entries = [value for value in batch.values(True, True) if value.is_floating_point()]
    if not all_finite([*numbers.values(), norm, *entries]):
        found = {**{key: value.detach() for key, value in numbers.items()}, "gradient norm": norm}
        raise_non_finite(name, update, found, where=describe_batch(batch))


def raise_non_finite(*arguments: Any, **options: Any) -> NoReturn:
    """Raises :func:`non_finite`."""
    raise non_finite(*arguments, **options)
