"""PWM's policy and critics: small MLPs on the world model's latent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import InteractionType, TensorDictModule, TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.modules import ProbabilisticActor, TanhNormal

from torchrl_pwm._utils.ranges import COUNT, check_range
from torchrl_pwm.modules.layers import MLP, Mish, ResetsItself, hooked, stacked_mlps
from torchrl_pwm.modules.stacks import Form, Layer, run_each

_MISH_NORM, _LINEAR = Form("mish_norm"), Form()


class GaussianHead(nn.Module):
    """An MLP mean and a state-independent standard deviation: ``[*, D]`` to ``loc`` and ``scale`` ``[*, A]``.

    Hidden layers are Linear -> Mish -> LayerNorm: activation before normalisation, unlike the world model.
    The log standard deviation is kept at or above ``min_log_std`` by clamping the parameter itself before every
    pass, so that its gradient is never cut (PWM, arXiv 2407.02466, published code).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        units: Sequence[int],
        init_log_std: float,
        min_log_std: float,
        output_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.min_log_std, self.output_gain = min_log_std, output_gain
        layers: list[nn.Module] = []
        for width in units:
            layers += [nn.Linear(in_features, width), Mish(), nn.LayerNorm(width)]
            in_features = width
        self.mu_net = MLP(*layers, nn.Linear(in_features, out_features))
        self.init_log_std = float(init_log_std)
        self.logstd = nn.Parameter(torch.full((out_features,), self.init_log_std))
        self._scale_output()

    def reset_parameters(self) -> None:
        """Torch's default for the layers, the last times ``output_gain``; the log standard deviation starts afresh."""
        for layer in self.mu_net:
            if isinstance(layer, (nn.Linear, nn.LayerNorm)):
                layer.reset_parameters()
        nn.init.constant_(self.logstd, self.init_log_std)
        self._scale_output()

    @torch.no_grad()
    def _scale_output(self) -> None:
        last = self.mu_net[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(self.output_gain)
        last.bias.mul_(self.output_gain)

    def std(self) -> Tensor:
        """The standard deviation ``[A]``, its parameter kept above its floor."""
        if not torch.compiler.is_exporting():  # an exported program changes none of its weights
            with torch.no_grad():
                self.logstd.clamp_(min=self.min_log_std)
        return self.logstd.exp()

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        std, loc = self.std(), self.mu_net(latent)
        return loc, std.expand_as(loc)


class PWMActor(ProbabilisticActor):
    """The tanh-Gaussian policy that :func:`make_pwm_actor` builds."""

    def load_reference_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads a published actor (keys ``logstd`` and ``mu_net.*``).

        Raises:
            RuntimeError: if keys or shapes do not fit this actor.
        """
        self.get_submodule("module.0.module").load_state_dict(dict(state_dict))


def make_pwm_actor(
    latent_dim: int,
    action_dim: int,
    *,
    units: Sequence[int] = (400, 200, 100),
    init_log_std: float = -1.0,
    min_log_std: float = -1.427,
    output_gain: float = 1.0,
    in_key: NestedKey = "latent",
    out_key: NestedKey = "action",
) -> PWMActor:
    """PWM's stochastic policy a = tanh(mu(z) + exp(log_std) eps), eps ~ N(0, 1).

    Args:
        latent_dim (int): size D of the latent it reads, ``[*, D]``.
        action_dim (int): size A of the action it writes, ``[*, A]`` in [-1, 1].
        units (sequence of int): hidden layers. Default: ``(400, 200, 100)``.
        init_log_std (float): first value of the state-independent log standard deviation.
        min_log_std (float): floor of the log standard deviation; the default keeps std >= 0.24.
        output_gain (float): the last layer's first weights times this. A small gain starts from the mean action zero,
            where an arbitrary constant one would carry the env far from where it starts. Default: 1, as published.
        in_key (NestedKey): where the latent is read. Default: ``"latent"``.
        out_key (NestedKey): where the action is written. Default: ``"action"``.

    Returns:
        A TorchRL probabilistic actor. It samples by default; under
        ``set_exploration_type(ExplorationType.DETERMINISTIC)`` it returns tanh(mu), the evaluation action.

    Source: PWM (arXiv 2407.02466), appendix on hyper-parameters.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> actor = make_pwm_actor(latent_dim=16, action_dim=2)
        >>> actor(TensorDict({"latent": torch.randn(4, 16)}, [4]))["action"].shape
        torch.Size([4, 2])
    """
    check_range(COUNT, latent_dim=latent_dim, action_dim=action_dim)
    head = GaussianHead(latent_dim, action_dim, units, init_log_std, min_log_std, output_gain)
    return PWMActor(
        TensorDictModule(head, in_keys=[in_key], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=[out_key],
        spec=Bounded(-1.0, 1.0, (action_dim,)),
        distribution_class=TanhNormal,
        default_interaction_type=InteractionType.RANDOM,
    )


def gaussian_head(actor: nn.Module, in_key: NestedKey) -> GaussianHead | None:
    """The network of an actor of :func:`make_pwm_actor` that reads ``in_key``; None for any other actor.

    For a small actor its call takes half the time of the actor's own, which passes on TensorDicts.
    """
    if type(actor) is not PWMActor or len(actor.module) != 2:
        return None
    part = actor.module[0]
    if type(part) is not TensorDictModule or part.in_keys != [in_key] or hooked(part):
        return None
    return part.module if type(part.module) is GaussianHead else None


class ValueEnsemble(ResetsItself, TensorDictModuleBase):
    """N state-value MLPs evaluated together: ``latent`` [*, D] to ``state_value`` [N, *, 1].

    Called with a TensorDict of batch ``[*]`` it returns a new one of batch ``[N, *]``, as
    :class:`torchrl.modules.EnsembleModule` does; called with a tensor, the values. Parameters are stacked along the
    first axis, in the published order: weight, bias, norm gain, norm bias of each hidden layer, then weight and bias.

    Hidden layers are Linear -> Mish -> LayerNorm.
    """

    def __init__(
        self, latent_dim: int, units: Sequence[int], num_nets: int, in_key: NestedKey, out_key: NestedKey
    ) -> None:
        super().__init__()
        self.in_keys, self.out_keys = [in_key], [out_key]
        self.num_nets = num_nets
        self.params = stacked_mlps(num_nets, latent_dim, units, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Orthogonal weights with gain sqrt 2, also in the last layer; zero biases; neutral norms."""
        for index, param in enumerate(self.params):
            if index % 4 == 0:
                for weight in param:
                    nn.init.orthogonal_(weight, math.sqrt(2))
            else:
                nn.init.constant_(param, 1.0 if index % 4 == 2 else 0.0)

    def values(self, latent: Tensor) -> Tensor:
        """``[*, D]`` to ``[N, *, 1]``."""
        params = list(self.params)
        layers = [Layer(_MISH_NORM, *params[i : i + 4]) for i in range(0, len(params) - 2, 4)]
        return run_each(latent, [*layers, Layer(_LINEAR, *params[-2:])])

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        values = self.values(tensordict.get(self.in_keys[0]))
        out = TensorDict({}, values.shape[:-1], device=tensordict.device)
        return out.set(self.out_keys[0], values)

    def load_reference_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads a published critic (stacked ``params.{0, 1, ...}``).

        Raises:
            RuntimeError: if keys or shapes do not fit this ensemble.
        """
        self.load_state_dict(dict(state_dict))


def make_value_ensemble(
    latent_dim: int,
    *,
    units: Sequence[int] = (400, 200),
    num_nets: int = 3,
    in_key: NestedKey = "latent",
    out_key: NestedKey = "state_value",
) -> ValueEnsemble:
    """PWM's critics: ``num_nets`` state-value MLPs on the latent.

    Args:
        latent_dim (int): size D of the latent.
        units (sequence of int): hidden layers. Default: ``(400, 200)``.
        num_nets (int): ensemble size N. Default: ``3``; the losses bootstrap from the minimum.
        in_key (NestedKey): where the latent is read. Default: ``"latent"``.
        out_key (NestedKey): where the values are written. Default: ``"state_value"``.

    Returns:
        A TensorDict module from ``latent`` [*, D] to ``state_value`` [N, *, 1].

    Source: PWM (arXiv 2407.02466), appendix on hyper-parameters.

    Examples:
        >>> import torch
        >>> make_value_ensemble(16)(torch.randn(5, 16)).shape
        torch.Size([3, 5, 1])
    """
    check_range(COUNT, latent_dim=latent_dim, num_nets=num_nets)
    return ValueEnsemble(latent_dim, units, num_nets, in_key, out_key)
