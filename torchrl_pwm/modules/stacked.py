"""Actors and critics of T tasks as one: parameters along a first axis, layers as batched matrix products."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.modules import TanhNormal

from torchrl_pwm.modules.actor_critic import GaussianHead, PWMActor, ValueEnsemble
from torchrl_pwm.modules.kernels import suits
from torchrl_pwm.modules.stacks import Form, Layer, as_wide, run

__all__ = ["StackedGaussianHead", "StackedValueEnsemble", "stack_actors", "stack_parameters", "stacked_mlp"]


def stack_parameters(networks: Sequence[nn.Module]) -> nn.ParameterList:
    """Parameters [T, ...] of T networks of one shape, in the order of ``parameters()``.

    From then on each network's own weights are a view of its slice, so that both always hold the same numbers.

    Raises:
        ValueError: if the networks differ in shape.

    Examples:
        >>> networks = [nn.Linear(2, 3) for _ in range(4)]
        >>> weight, bias = stack_parameters(networks)
        >>> _ = nn.init.ones_(weight)
        >>> weight.shape, networks[1].weight.sum().item()
        (torch.Size([4, 3, 2]), 6.0)
    """
    stacked = []
    shapes = {tuple(tuple(param.shape) for param in network.parameters()) for network in networks}
    if len(shapes) != 1:
        raise ValueError(f"networks of tasks that are trained together need one shape, found {len(shapes)}.")
    for same in zip(*(network.parameters() for network in networks)):
        whole = nn.Parameter(torch.stack([param.data for param in same]))
        for param, part in zip(same, whole.data.unbind(0)):
            param.data, param.grad = part, None
        stacked.append(whole)
    return nn.ParameterList(stacked)


_MISH_NORM, _LINEAR = Form("mish_norm"), Form()
_LARGE = 1 << 15  # numbers of an input and layer that make one network after the other as fast as a batched product


def stacked_mlp(rows: Tensor, params: Sequence[Tensor]) -> Tensor:
    """``[T, B, D]`` to ``[T, B, O]``: linear maps, Mish and layer normalisation between them, for T sets of weights.

    On a CPU large batches go one after the other through :func:`.stacks.run`: a batched product would not be faster.

    Args:
        rows: [T, B, D].
        params: weight [T, O, I], bias [T, O], gain and shift [T, O] of each hidden layer, then weight and bias.
    """
    if suits(rows, _LARGE * len(rows), params[0].shape[1] / rows.shape[-1]):
        # unbind, since the gradient of an index is a zero tensor of the whole size
        networks = zip(*(param.unbind(0) for param in params))
        return torch.stack([run(task, _layers(network)) for task, network in zip(rows.unbind(0), networks)])
    hidden = rows
    (first_weight, first_bias), *layers = _folded(params)
    hidden = torch.baddbmm(first_bias.unsqueeze(1), hidden, first_weight.mT)
    for weight, bias in layers:
        hidden = F.layer_norm(F.mish(hidden), hidden.shape[-1:])
        hidden = torch.baddbmm(bias.unsqueeze(1), hidden, weight.mT)
    return as_wide(hidden, rows)


def _layers(params: Sequence[Tensor]) -> list[Layer]:
    hidden = [Layer(_MISH_NORM, *params[index : index + 4]) for index in range(0, len(params) - 2, 4)]
    return [*hidden, Layer(_LINEAR, *params[-2:])]


def _folded(params: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Weights [T, O, I] and biases [T, O], each with the gain and shift [T, I] of the normalisation before it."""
    first_weight, first_bias, *rest = params
    layers = [(first_weight, first_bias)]
    for gain, shift, weight, bias in zip(*[iter(rest)] * 4):
        shifted = torch.baddbmm(bias.unsqueeze(-1), weight, shift.unsqueeze(-1)).squeeze(-1)
        layers.append((weight * gain.unsqueeze(1), shifted))
    return layers


class StackedGaussianHead(nn.Module):
    """T :class:`~torchrl_pwm.modules.GaussianHead` at once: ``[T, *, D]`` to ``loc`` and ``scale`` ``[T, *, A]``.

    Args:
        heads (sequence of GaussianHead): their weights become views of the stacked ones.

    Raises:
        ValueError: if they differ in shape or in the floor of the log standard deviation.

    Examples:
        >>> heads = [GaussianHead(4, 2, (8,), -1.0, -1.427) for _ in range(3)]
        >>> loc, scale = StackedGaussianHead(heads)(torch.randn(3, 5, 4))
        >>> loc.shape, torch.allclose(loc[2], heads[2](torch.zeros(5, 4))[0])
        (torch.Size([3, 5, 2]), False)
    """

    def __init__(self, heads: Sequence[GaussianHead]) -> None:
        super().__init__()
        floors = {head.min_log_std for head in heads}
        if len(floors) != 1:
            raise ValueError(f"actors that are trained together need one min_log_std, found {sorted(floors)}.")
        (self.min_log_std,) = floors
        self.params = stack_parameters(heads)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        log_std, *params = self.params  # the order of the head's own
        with torch.no_grad():
            log_std.clamp_(min=self.min_log_std)
        flat = latent.flatten(1, -2)
        loc = stacked_mlp(flat, params).view(*latent.shape[:-1], -1)
        between = [1] * (latent.ndim - 2)
        return loc, log_std.exp().view(len(log_std), *between, -1).expand_as(loc)


class StackedValueEnsemble(TensorDictModuleBase):
    """T :class:`~torchrl_pwm.modules.ValueEnsemble` at once: ``latent`` [T, *, D] to ``state_value`` [N, T, *, 1].

    Args:
        ensembles (sequence of ValueEnsemble): their weights become views of the stacked ones.

    Raises:
        ValueError: if they differ in shape.

    Examples:
        >>> from torchrl_pwm import make_value_ensemble
        >>> critics = StackedValueEnsemble([make_value_ensemble(4, units=(8,)) for _ in range(2)])
        >>> critics(TensorDict({"latent": torch.randn(2, 5, 4)}, [2, 5]))["state_value"].shape
        torch.Size([3, 2, 5, 1])
    """

    def __init__(self, ensembles: Sequence[ValueEnsemble]) -> None:
        super().__init__()
        first = ensembles[0]
        self.in_keys, self.out_keys, self.num_nets = list(first.in_keys), list(first.out_keys), first.num_nets
        self.params = stack_parameters(ensembles)

    def values(self, latent: Tensor) -> Tensor:
        """``[T, *, D]`` to ``[N, T, *, 1]``."""
        flat = latent.flatten(1, -2)
        networks = zip(*(param.unbind(1) for param in self.params))
        outputs = [stacked_mlp(flat, network) for network in networks]
        return torch.stack(outputs).view(self.num_nets, *latent.shape[:-1], 1)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        values = self.values(tensordict.get(self.in_keys[0]))
        out = TensorDict({}, values.shape[:-1], device=tensordict.device)
        return out.set(self.out_keys[0], values)


def stack_actors(actors: Sequence[nn.Module]) -> PWMActor:
    """One probabilistic actor ``[T, *, D]`` to ``[T, *, A]`` of T of :func:`~torchrl_pwm.make_pwm_actor`.

    Raises:
        ValueError: for others, or if they differ in shape.
    """
    parts = [actor.module[0] for actor in actors if isinstance(actor, PWMActor)]
    if len(parts) != len(actors):
        raise ValueError("policies are trained together with the actors of make_pwm_actor alone, found others.")
    head, keys = StackedGaussianHead([part.module for part in parts]), list(parts[0].in_keys)
    last: Any = actors[0].out_keys
    return PWMActor(
        TensorDictModule(head, in_keys=keys, out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=last[-1:],
        spec=Bounded(-1.0, 1.0, (head.params[0].shape[-1],)),
        distribution_class=TanhNormal,
    )
