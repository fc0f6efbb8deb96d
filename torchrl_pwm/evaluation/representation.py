"""Representation of a world model: whether its latents still tell states apart."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from math import nan
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from torchrl_pwm._utils.seeds import kept_generators
from torchrl_pwm.modules import PWMWorldModel

__all__ = ["RepresentationWatch", "collapse_warning", "latent_metrics", "representation", "representation_by_task"]

_STATES = 512  # of each task that are looked at, at most; half of them are what the probe learns from
_UNITS, _UPDATES, _RATE = 128, 300, 1e-3  # of the probe network
_COLLAPSED = 0.5  # of the observations' variance: with less, the latent counts as collapsed


def representation(world_model: PWMWorldModel, batch: TensorDictBase) -> dict[str, float]:
    """How well the latents of held-out states tell these apart; of several tasks the means over them.

    Args:
        world_model: the model.
        batch: held-out states or sequences, [N] or [N, T], with ``observation`` and, for a multi-task model, ``task``.
            Half of the rows are what the probe learns from, the other half what it is measured on.

    Returns:
        A dictionary with ``latent_spread``, the standard deviation of the latent over the states of a task, mean over
        its entries; ``observation_explained``, the share of the observations' variance, mean over the entries that
        vary, that a small network reads from the latents after 300 updates (1 is all of it); and, of a model that has
        one, ``decoder_explained``, the same of its own decoder. Linear maps of least squares find what no network of
        the model's kind learns from latents that hardly differ, which is why the probe is a network.
        Observations that are no vectors have the spread alone.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32), decoder=True)
        >>> sorted(representation(model, TensorDict({"observation": torch.randn(64, 5)}, [64])))
        ['decoder_explained', 'latent_spread', 'observation_explained']
    """
    return _mean(representation_by_task(world_model, batch))


def representation_by_task(world_model: PWMWorldModel, batch: TensorDictBase) -> dict[int, dict[str, float]]:
    """:func:`representation` of each task in the batch, by index; a single-task model has the index 0."""
    # torch's generator is seeded and given back, so that a training goes on as without this
    with kept_generators(), torch.no_grad():
        torch.manual_seed(0)
        states = _states(world_model, batch)
        result = {task: _cheap(world_model, *held) for task, held in states.items()}
        if states and len(world_model.observation_shape) == 1:
            for (task, _), share in zip(states.items(), _probe(world_model, list(states.values()))):
                result[task]["observation_explained"] = share
    return result


@torch.no_grad()
def latent_metrics(world_model: PWMWorldModel, batch: TensorDictBase) -> dict[str, float]:
    """What :func:`representation` gives without its probe, for every log: one pass through the encoder."""
    return _mean(
        {task: _cheap(world_model, *held) for task, held in _states(world_model, batch, shuffle=False).items()}
    )


def collapse_warning(found: Mapping[Any, Mapping[str, float]]) -> str | None:
    """One sentence on the tasks whose latents have collapsed, with what to do; None where there are none.

    Args:
        found: of :func:`representation_by_task`, by index or name.

    Examples:
        >>> collapse_warning({0: {"latent_spread": 0.04, "observation_explained": 0.99}}) is None
        True
    """
    bad = {task: each for task, each in found.items() if each.get("observation_explained", 1.0) < _COLLAPSED}
    if not bad:
        return None
    worst = min(bad, key=lambda task: bad[task]["observation_explained"])
    where = f" of {len(bad)} of {len(found)} tasks (worst: {worst})" if len(found) > 1 else ""
    share = max(bad[worst]["observation_explained"], 0.0)
    return (
        f"The latent{where} has collapsed: a small network reads {share:.0%} of the observations' variance from it, "
        f"expected at least {_COLLAPSED:.0%} (its standard deviation over states "
        f"is {bad[worst]['latent_spread']:.3g}), so that a policy in this model cannot tell states apart. Train the "
        "model with an observation decoder (decoder=True) and observation statistics, or longer."
    )


class RepresentationWatch:
    """Measures of the representation along a training, to be given as its ``evaluate``.

    Each call returns :func:`latent_metrics`, every ``probe_interval``-th, from the first on, ``observation_explained``
    too. From the call ``warn_from`` on, when latents have had time to spread, a collapse is warned of, once.
    As a component of a trainer it goes on counting where a training was interrupted.

    Args:
        world_model (PWMWorldModel): the model that is trained.
        held_out (TensorDictBase): see :func:`representation`.

    Keyword Args:
        probe_interval (int): calls between two probes.
        warn_from (int): number of calls before the first warning.
        names (mapping, optional): of the tasks, by index, for the warning.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> watch = RepresentationWatch(model, TensorDict({"observation": torch.randn(64, 5)}, [64]), probe_interval=2)
        >>> sorted(watch()), sorted(watch())
        (['latent_spread', 'observation_explained'], ['latent_spread'])
    """

    #: Checkpoints of earlier versions have none.
    optional = True

    def __init__(
        self,
        world_model: PWMWorldModel,
        held_out: TensorDictBase,
        *,
        probe_interval: int = 10,
        warn_from: int = 10,
        names: Mapping[int, str] | None = None,
    ) -> None:
        self.world_model, self.held_out, self.names = world_model, held_out, dict(names or {})
        self.probe_interval, self.warn_from = probe_interval, warn_from
        self._calls, self._warned = 0, False

    def __call__(self) -> dict[str, float]:
        self._calls += 1
        if (self._calls - 1) % self.probe_interval:
            return latent_metrics(self.world_model, self.held_out)
        found = self.measure(warn=self._calls > self.warn_from)
        return _mean(found)

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self._calls, "warned": self._warned}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._calls, self._warned = state_dict["calls"], state_dict["warned"]

    def measure(self, *, warn: bool = True) -> dict[str, dict[str, float]]:
        """:func:`representation_by_task` by name, with a warning of a collapse unless there was one."""
        by_index = representation_by_task(self.world_model, self.held_out)
        found = {self.names.get(index, str(index)): each for index, each in by_index.items()}
        warning = collapse_warning(found) if warn and not self._warned else None
        if warning:
            self._warned = True
            warnings.warn(warning, stacklevel=2)
        return found


def _mean(found: Mapping[Any, Mapping[str, float]]) -> dict[str, float]:
    names = next(iter(found.values()), {})
    return {name: sum(each[name] for each in found.values()) / len(found) for name in names}


def _states(
    model: PWMWorldModel, batch: TensorDictBase, *, shuffle: bool = True
) -> dict[int, tuple[Tensor, Tensor | None]]:
    """Observations [n, *O] and task indices [n] of each task, the rows of the second half after those of the first."""
    keys = model.tensor_keys
    like = next(model.parameters())
    observation = batch.get(keys.observation).to(like.device)
    if shuffle:
        order = torch.randperm(len(observation)).to(like.device)
        observation = observation[order]
    shape = model.observation_shape
    flat = observation.reshape(-1, *shape)
    added = batch.get(("collector", "mask"), None)
    counts = torch.ones(observation.shape[: observation.ndim - len(shape)], dtype=torch.bool, device=like.device)
    if added is not None:
        mask = added.reshape(batch.shape).to(like.device)
        counts = mask[order] if shuffle else mask
    if not model.num_tasks:
        return {0: (_at_most(flat[counts.reshape(-1)]), None)}
    task = batch.get(keys.task).to(like.device)
    task = (task[order] if shuffle else task).expand(counts.shape).reshape(-1)
    found: dict[int, tuple[Tensor, Tensor | None]] = {}
    for index in task.unique().tolist():
        own = _at_most(flat[(task == index) & counts.reshape(-1)])
        found[index] = (own, torch.full((len(own),), index, device=like.device))
    return found


def _at_most(rows: Tensor) -> Tensor:
    """Evenly spaced ones of too many."""
    if len(rows) <= _STATES:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, _STATES, device=rows.device).long()]


def _cheap(model: PWMWorldModel, observation: Tensor, task: Tensor | None) -> dict[str, float]:
    latent = model.encode_observation(observation, task)
    found = {"latent_spread": float(latent.std(0, correction=0).mean())}
    if model.has_decoder:
        target = model.observation_target(observation.to(latent.dtype), task)
        found["decoder_explained"] = _explained(model.decode_observation(latent, task, "standardized"), target)
    return found


def _explained(predicted: Tensor, target: Tensor) -> float:
    """Share of the variance of each entry of ``target`` [n, O] that varies, mean over them, at most 1."""
    varies = target.std(0, correction=0) > 1e-6 * target.abs().amax(0).clamp_min(1e-6)
    if not varies.any():
        return nan
    spread = (target - target.mean(0)).square().sum(0)[varies]
    return float((1 - (predicted - target).square().sum(0)[varies] / spread).mean())


def _probe(model: PWMWorldModel, states: list[tuple[Tensor, Tensor | None]]) -> list[float]:
    """``observation_explained`` of each task, by probes that are trained side by side."""
    half = max(len(observation) for observation, _ in states) // 2
    latents, targets, held_out = [], [], []
    for observation, task in states:
        latent = model.encode_observation(observation, task)
        target = observation.to(latent.dtype)
        target = (target - target.mean(0)) / target.std(0, correction=0).clamp_min(1e-6)
        middle = max(len(latent) // 2, 1)
        rows = torch.arange(half, device=latent.device) % middle  # of the smaller tasks again
        latents.append(latent[rows])
        targets.append(target[rows])
        held_out.append((latent[middle:], target[middle:]))
    x, y = torch.stack(latents), torch.stack(targets)
    probe = _Probe(len(states), x.shape[-1], y.shape[-1]).to(x)
    optimizer = torch.optim.Adam(probe.parameters(), _RATE)
    with torch.enable_grad():
        for _ in range(_UPDATES):
            optimizer.zero_grad()
            (probe(x) - y).square().mean((1, 2)).sum().backward()
            optimizer.step()
    padded = latents[0].new_zeros(len(states), max(len(latent) for latent, _ in held_out), x.shape[-1])
    for place, (latent, _) in zip(padded, held_out):
        place[: len(latent)] = latent
    read = probe(padded)
    return [
        _explained(own[: len(target)], target) if len(target) > 1 else nan for own, (_, target) in zip(read, held_out)
    ]


class _Probe(nn.Module):
    """A small network for each task, [K, n, D] to [K, n, O], without a norm that would enlarge what hardly differs."""

    def __init__(self, tasks: int, latent_dim: int, observation_dim: int) -> None:
        super().__init__()
        sizes = [(latent_dim, _UNITS), (_UNITS, observation_dim)]
        self.weights = nn.ParameterList([_uniform(size[0], tasks, *size) for size in sizes])
        self.biases = nn.ParameterList([_uniform(size[0], tasks, 1, size[1]) for size in sizes])

    def forward(self, latent: Tensor) -> Tensor:
        hidden = torch.nn.functional.mish(torch.baddbmm(self.biases[0], latent, self.weights[0]))
        return torch.baddbmm(self.biases[1], hidden, self.weights[1])


def _uniform(inputs: int, *shape: int) -> Tensor:
    """First values of torch's linear layers."""
    return (2 * torch.rand(shape) - 1) / inputs**0.5
