"""Building blocks shared by the world model, the actor and the critics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.parameter import is_lazy

from torchrl_pwm.modules import kernels
from torchrl_pwm.modules.heads import StackedLinear
from torchrl_pwm.modules.stacks import Form, Layer, as_wide, run

_SMALLEST = 1e-8


class ResetsItself:
    """A module whose ``reset_parameters`` TensorDict's recursive reset calls as a whole.

    Left to itself it would ask the layers, for torch's own initialisation, and skip bare parameters.
    """

    reset_parameters: Callable[[], None]

    def _reset_parameters(self, module: nn.Module) -> bool:
        self.reset_parameters()
        return True


class SimNorm(nn.Module):
    """Simplicial normalisation: a softmax inside each group of ``dim`` features.

    Every group of the output is a point on a simplex, which bounds the latent and keeps the dynamics smooth.
    Source: TD-MPC2 (arXiv 2310.16828), section 3.1; used for PWM's latents (arXiv 2407.02466), section 4.1.

    Args:
        dim (int): group size. Default: ``8``.

    Raises:
        ValueError: at the call, if the last axis is not a multiple of ``dim``.

    Examples:
        >>> import torch
        >>> SimNorm(2)(torch.zeros(1, 4))
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[*, D]`` to ``[*, D]``."""
        if x.shape[-1] % self.dim:
            raise ValueError(f"SimNorm needs a multiple of {self.dim} features, found {x.shape[-1]}.")
        return kernels.simplex(x, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class ResidualLatent(nn.Module):
    """The normalisation of a residual world model's latents, and their step z' = norm(norm^-1(z) + change).

    With SimNorm, a softmax in groups, norm^-1 is the logarithm, up to a constant in each group that the softmax does
    not see; without, norm is layer normalisation without parameters and norm^-1 the identity. Not in the paper.

    Args:
        simnorm_dim (int): SimNorm group size, or 0 for layer normalisation.

    Examples:
        >>> import torch
        >>> latents = ResidualLatent(simnorm_dim=2)
        >>> z = latents(torch.tensor([[0.0, 1.0]]))
        >>> torch.allclose(latents.step(z, torch.zeros(1, 2)), z)
        True
    """

    def __init__(self, simnorm_dim: int) -> None:
        super().__init__()
        self.simnorm = SimNorm(simnorm_dim) if simnorm_dim else None

    def forward(self, x: Tensor) -> Tensor:
        """Any ``[*, D]`` to latents ``[*, D]``."""
        return F.layer_norm(x, x.shape[-1:]) if self.simnorm is None else self.simnorm(x)

    def step(self, latent: Tensor, change: Tensor) -> Tensor:
        """The next latent ``[*, D]``."""
        return self(change + (latent if self.simnorm is None else latent.clamp_min(_SMALLEST).log()))


class Mish(nn.Mish):
    """:class:`torch.nn.Mish`, faster on a CPU; see :mod:`.kernels`.

    Examples:
        >>> import torch
        >>> Mish()(torch.zeros(2))
        tensor([0., 0.])
    """

    def forward(self, x: Tensor) -> Tensor:
        return kernels.mish(x)


class NormedLinear(nn.Linear):
    """Linear, then LayerNorm, then an activation: the hidden block of the world model.

    Args:
        in_features (int): size of the last input axis.
        out_features (int): size of the last output axis.
        activation (nn.Module, optional): what follows the normalisation. Default: :class:`torch.nn.Mish`.

    Examples:
        >>> import torch
        >>> NormedLinear(3, 5)(torch.randn(2, 3)).shape
        torch.Size([2, 5])
    """

    def __init__(self, in_features: int, out_features: int, activation: nn.Module | None = None) -> None:
        super().__init__(in_features, out_features)
        self.ln = nn.LayerNorm(out_features)
        self.act = Mish() if activation is None else activation

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[*, in_features]`` to ``[*, out_features]``."""
        layers = layers_of([self]) if kernels.suits(x) else None
        return self.finish(super().forward(x)) if layers is None else run(x, layers)

    def finish(self, linear: Tensor) -> Tensor:
        """Normalisation and activation of an already computed linear part ``[*, out_features]``."""
        return self.act(self.ln(linear))


class MLP(nn.Sequential):
    """Layers one after another; on a CPU all of them as one autograd function, where :func:`layers_of` knows them.

    Examples:
        >>> import torch
        >>> MLP(nn.Linear(3, 5), Mish(), nn.LayerNorm(5), nn.Linear(5, 2))(torch.randn(4, 3)).shape
        torch.Size([4, 2])
    """

    def forward(self, x: Tensor) -> Tensor:
        layers = layers_of(self) if kernels.suits(x) else None
        return as_wide(super().forward(x), x) if layers is None else run(x, layers)


def layers_of(modules: Iterable[nn.Module]) -> list[Layer] | None:
    """What :func:`.stacks.run` needs to run these modules, or None where it cannot.

    It knows linear maps, :class:`NormedLinear` with Mish or :class:`SimNorm`, and linear maps with Mish and then a
    ``LayerNorm``, all without hooks and parametrisations, which one function for all would pass over.
    """
    if _has_any_global_hook():
        return None
    layers: list[Layer] = []
    rest = iter(modules)
    for module in rest:
        known: Layer | None = None
        if type(module) is NormedLinear:
            known = _normed(module, module.ln, module.act)
        elif type(module) is nn.Linear and not hooked(module):
            known = Layer(_LINEAR, module.weight, module.bias)
        elif type(module) in (Mish, nn.Mish) and layers and layers[-1].form is _LINEAR:
            known = _acted(layers.pop(), module, next(rest, None))
        if known is None:
            return None
        layers.append(known)
    return layers


_LINEAR = Form()


def _normed(linear: NormedLinear, norm: nn.Module, act: nn.Module) -> Layer | None:
    """A linear map, its normalisation, and Mish or SimNorm."""
    if type(norm) is not nn.LayerNorm or norm.normalized_shape != (linear.out_features,):
        return None
    if hooked(linear) or hooked(norm) or hooked(act):
        return None
    if type(act) is SimNorm and linear.out_features % act.dim == 0:
        form = Form("norm_simplex", norm.eps, act.dim)
    elif type(act) in (Mish, nn.Mish):
        form = Form("norm_mish", norm.eps)
    else:
        return None
    return Layer(form, linear.weight, linear.bias, norm.weight, norm.bias)


def _acted(linear: Layer, act: nn.Module, norm: nn.Module | None) -> Layer | None:
    """A linear map, Mish, and its normalisation."""
    if type(norm) is not nn.LayerNorm or norm.normalized_shape != tuple(linear.weight.shape[:1]):
        return None
    if hooked(act) or hooked(norm):
        return None
    return Layer(Form("mish_norm", norm.eps), linear.weight, linear.bias, norm.weight, norm.bias)


def hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its ``forward``."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def make_mlp(
    in_features: int, units: Sequence[int], out_features: int, last_activation: nn.Module | None = None
) -> nn.Sequential:
    """Hidden :class:`NormedLinear` blocks with Mish, then a plain linear layer.

    With ``last_activation`` the last layer is a :class:`NormedLinear` with that activation instead.

    Examples:
        >>> make_mlp(3, (8,), 16, SimNorm(8))[-1].act
        SimNorm(dim=8)
    """
    sizes = [in_features, *units]
    layers: list[nn.Module] = [NormedLinear(i, o) for i, o in pairwise(sizes)]
    if last_activation is None:
        layers.append(nn.Linear(sizes[-1], out_features))
    else:
        layers.append(NormedLinear(sizes[-1], out_features, last_activation))
    return MLP(*layers)


def require_initialized(network: nn.Module, name: str) -> None:
    """Raises ValueError if a network has lazy layers that have not run yet, and so no weights."""
    lazy = [key for key, value in network.named_parameters() if is_lazy(value)]
    if lazy:
        raise ValueError(
            f"{name} has lazy layers that have not run, so that {lazy[0]!r} has no shape yet: call it once on a batch "
            "before you pass it on, or give its layers their input sizes."
        )


def initialize(network: nn.Module, leave: nn.Module | None = None) -> None:
    """TD-MPC2's first values: truncated normal weights (std 0.02), zero biases, embeddings in [-0.02, 0.02].

    The layers of ``leave``, a part of the network, stay as they are.
    """
    left = set() if leave is None else set(leave.modules())
    for layer in network.modules():
        if layer in left:
            continue
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, (nn.LayerNorm, StackedLinear)):
            layer.reset_parameters()
        elif isinstance(layer, nn.Embedding):
            nn.init.uniform_(layer.weight, -0.02, 0.02)


def stacked_mlps(num_nets: int, in_features: int, units: Sequence[int], out_features: int) -> nn.ParameterList:
    """Parameters of ``num_nets`` MLPs along a first axis, not yet initialised.

    In the published order: weight, bias, norm gain, norm bias of each hidden layer, then weight and bias.
    """
    params: list[Tensor] = []
    for width in units:
        params += [torch.empty(num_nets, width, in_features), *torch.empty(3, num_nets, width)]
        in_features = width
    return nn.ParameterList(
        [*params, torch.empty(num_nets, out_features, in_features), torch.empty(num_nets, out_features)]
    )


def run_from_first_linear(mlp: nn.Sequential, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Runs ``mlp`` with its first linear map replaced by ``x @ weight.T + bias``.

    ``bias`` may have batch axes: that is how the constant share of an input (a task embedding) is computed
    once for many calls.
    """
    layers = layers_of(mlp) if kernels.suits(x) else None
    if layers is not None:
        return run(x, [layers[0]._replace(weight=weight, bias=bias), *layers[1:]])
    hidden = F.linear(x, weight) + bias
    first, *rest = mlp
    hidden = first.finish(hidden) if isinstance(first, NormedLinear) else hidden
    for layer in rest:
        hidden = layer(hidden)
    return as_wide(hidden, x)
