"""Reading what a loss needs, with errors that name what is missing or not finite."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_pwm._utils.devices import readable
from torchrl_pwm._utils.entries import require
from torchrl_pwm._utils.finite import all_finite, describe_batch
from torchrl_pwm.modules.actor_critic import GaussianHead, PWMActor, ValueEnsemble


def require_column(tensordict: TensorDictBase, key: NestedKey, owner: object) -> Tensor:
    """The entry under ``key``, such as rewards or ends of episodes, with TorchRL's last axis of one.

    Raises:
        ValueError: if it is not there, or has another last axis.
    """
    value = require(tensordict, key, owner)
    if value.shape[-1:] != (1,):
        raise ValueError(
            f"{type(owner).__name__} needs {key!r} of shape [*, 1], found {tuple(value.shape)}: add the last axis with "
            "unsqueeze(-1)."
        )
    return value


def require_sizes(actor: Any, critics: Any, model: Any, owner: object) -> None:
    """Raises ValueError if :func:`.make_pwm_actor` or :func:`.make_value_ensemble` made networks for another model."""
    reads, writes = getattr(model, "latent_dim", None), getattr(model, "action_dim", None)
    head = next((part for part in actor.modules() if isinstance(part, GaussianHead)), None)
    found = []
    if head is not None and isinstance(actor, PWMActor):
        layers = [layer for layer in head.mu_net if isinstance(layer, nn.Linear)]
        found.append(("the actor reads latents", layers[0].in_features, reads))
        found.append(("the actor writes actions", layers[-1].out_features, writes))
    if isinstance(critics, ValueEnsemble):
        found.append(("the critics read latents", critics.params[0].shape[-1], reads))
    for what, size, wanted in found:
        if wanted is not None and size != wanted:
            raise ValueError(
                f"{type(owner).__name__} needs networks of the world model's sizes: {what} of {size} entries, those of "
                f"the model have {wanted}. make_pwm_actor(model.latent_dim, model.action_dim) and "
                "make_value_ensemble(model.latent_dim) fit."
            )


def require_batch(tensordict: TensorDictBase, owner: object) -> None:
    """Raises ValueError if the batch has no entry to learn from."""
    if tensordict.batch_size.numel() == 0:
        raise ValueError(
            f"{type(owner).__name__} needs at least one state, found a batch of shape "
            f"{list(tensordict.batch_size)}: leave empty batches out."
        )


def require_finite(tensordict: TensorDictBase, losses: TensorDictBase, owner: object) -> None:
    """Checks what was read and what came out; one host read, none in a compiled or captured call or on ``meta``.

    Raises:
        FloatingPointError: if a number is not finite; the entry, its tasks and rows are named.
    """
    values = [value for td in (tensordict, losses) for value in td.values(True, True)]
    if readable(*values) and not all_finite(values):
        raise FloatingPointError(
            f"{type(owner).__name__}: expected finite numbers, found others; {describe_batch(tensordict)}."
        )
