"""PWM's policy objective for T tasks at once, on one frozen world model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives.utils import ValueEstimators
from torchrl.objectives.value import TD0Estimator, TDLambdaEstimator

from torchrl_pwm._utils.devices import readable
from torchrl_pwm.modules.actor_critic import ValueEnsemble
from torchrl_pwm.modules.running_statistics import RunningMoments
from torchrl_pwm.modules.stacked import StackedValueEnsemble, stack_actors
from torchrl_pwm.objectives.pwm import PWMLoss

__all__ = ["StackedPWMLoss"]

_OPTIONS: tuple[str, ...] = (
    "horizon",
    "detach_latent",
    "reward_space",
    "reward_scale",
    "normalize_returns",
    "bootstrap",
)
_OPTIONS += ("delay_value", "mask_actions")
_OPTIONS += ("behavior_coef", "disagreement_coef", "loss_function", "reduction", "training")


class StackedPWMLoss(PWMLoss):
    """T objectives :class:`~torchrl_pwm.PWMLoss` on one world model, evaluated together.

    Batches have the tasks along a first axis, start states [T, B] and rollouts [T, B, H], and every loss is a vector
    [T]. No task enters another's numbers, so the gradient of the sum is each task's own. The latents of all tasks go
    through the frozen model as one batch, those of each task through its own actor and critics. Weights and return
    scales of the single objectives become views of the stacked ones and follow them.

    Args:
        losses (sequence of PWMLoss): with actors of :func:`~torchrl_pwm.make_pwm_actor` and critics of
            :func:`~torchrl_pwm.make_value_ensemble`, and the same options.

    Raises:
        ValueError: if they have other networks, or differ in world model, options, entries or value targets.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_pwm import PWMWorldModel, make_pwm_actor, make_value_ensemble
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> losses = [PWMLoss(make_pwm_actor(16, 2), make_value_ensemble(16), model, horizon=4) for _ in range(3)]
        >>> loss = StackedPWMLoss(losses)
        >>> loss.actor_loss(loss.imagine(TensorDict({"observation": torch.randn(3, 8, 5)}, [3, 8]))).shape
        torch.Size([3])
    """

    def __init__(self, losses: Sequence[PWMLoss]) -> None:
        first = losses[0]
        chosen = {name: getattr(first, name) for name in _OPTIONS}
        for loss in losses:
            _require_same(_description(loss), _description(first))
        if first.delay_value or first.reduction not in ("mean", "sum"):
            raise ValueError(
                "tasks are trained together with delay_value=False and reduction mean or sum, found "
                f"{first.delay_value} and {first.reduction}."
            )
        critics = [loss.value_network for loss in losses]
        if not all(isinstance(critic, ValueEnsemble) for critic in critics):
            raise ValueError("tasks are trained together with the critics of make_value_ensemble alone, found others.")
        training = chosen.pop("training")
        super().__init__(
            stack_actors([loss.actor_network for loss in losses]),
            StackedValueEnsemble(critics),
            first.world_model,
            disagreement=first.disagreement,
            **{**chosen, "reduction": "none"},
        )
        self.set_keys(**dataclasses.asdict(first.tensor_keys))
        self.make_value_estimator(*_value_targets(first)[:1], **_value_targets(first)[1])
        self.over_batch = first.reduction
        self.return_moments = _stacked_moments([loss.return_moments for loss in losses])
        self.train(training)

    def behavior_distance(self, tensordict: TensorDictBase) -> Tensor:
        """The single objective's, [T], at start states [T, B]."""
        return self._over_batch(super().behavior_distance(tensordict))

    def value_loss(self, rollout: TensorDictBase) -> Tensor:
        """The single objective's, [T], on a batch [T, *]."""
        return self._over_batch(super().value_loss(rollout))

    def rollout_metrics(self, rollout: TensorDictBase) -> dict[str, Tensor]:
        """The single objective's, [T] each."""
        reward = self._rewards(rollout).detach().flatten(1).mean(1)
        return {"reward_mean": reward, "return_scale": self._scale(rollout).detach().expand_as(reward).clone()}

    def _scaled_actor_loss(self, negative_returns: Tensor, rollout: TensorDictBase) -> Tensor:
        if self.normalize_returns and self.training:
            self.return_moments.update(negative_returns.detach().T)
        return self._over_batch(negative_returns / self._scale(rollout).unsqueeze(-1))

    def _over_batch(self, losses: Tensor) -> Tensor:
        return losses.flatten(1).mean(1) if self.over_batch == "mean" else losses.flatten(1).sum(1)


def _value_targets(loss: PWMLoss) -> tuple[Any, dict[str, float]]:
    """Estimator and settings of an objective's value targets.

    Raises:
        ValueError: for an estimator of the user's own.
    """
    estimator = loss.value_estimator
    gamma = {"gamma": loss._gamma}
    if isinstance(estimator, TDLambdaEstimator):
        lmbda = {"lmbda": float(estimator.lmbda)} if readable(estimator.lmbda) else {}
        return ValueEstimators.TDLambda, {**gamma, **lmbda}
    if isinstance(estimator, TD0Estimator):
        return ValueEstimators.TD0, gamma
    raise ValueError(f"tasks are trained together with TD(lambda) or TD(0), found {type(estimator).__name__}.")


def _description(loss: PWMLoss) -> dict[str, Any]:
    """What the objectives of tasks that are trained together have in common."""
    return {
        **{name: getattr(loss, name) for name in _OPTIONS},
        "world_model": loss.world_model,
        "disagreement": loss.disagreement,
        "tensor_keys": loss.tensor_keys,
        "value_targets": _value_targets(loss),
    }


def _require_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        same = found[name] is value if name in ("world_model", "disagreement") else found[name] == value
        if not same:
            shown = "" if name in ("world_model", "disagreement") else f": {found[name]!r} and {value!r}"
            raise ValueError(f"tasks that are trained together need the same {name}{shown}. Train them one by one.")


def _stacked_moments(singles: Sequence[RunningMoments]) -> RunningMoments:
    """Moments [T], of which those of the tasks become views."""
    first = singles[0]
    stacked = RunningMoments((len(singles),), first.epsilon, independent=True).to(first.mean)
    for name, buffer in stacked.named_buffers():
        buffer.copy_(torch.stack([getattr(single, name) for single in singles]))
        for single, part in zip(singles, buffer.unbind(0)):
            setattr(single, name, part)
    return stacked
