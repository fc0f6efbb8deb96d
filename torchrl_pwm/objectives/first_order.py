"""The first-order policy objective and its value regression, on any differentiable rollout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.objectives.common import LossModule
from torchrl.objectives.utils import ValueEstimators, default_value_kwargs, dispatch_value_estimator, distance_loss
from torchrl.objectives.value import TDLambdaEstimator, ValueEstimatorBase
from torchrl.objectives.value.functional import td_lambda_return_estimate

from torchrl_pwm._utils.devices import place_buffers, readable
from torchrl_pwm._utils.entries import require
from torchrl_pwm._utils.ranges import SHARE, check_choice, check_range
from torchrl_pwm.modules.frozen import frozen, swapped
from torchrl_pwm.modules.layers import require_initialized
from torchrl_pwm.modules.running_statistics import RunningMoments
from torchrl_pwm.objectives.entries import require_batch, require_column, require_finite
from torchrl_pwm.objectives.memory import Memory

Bootstrap = Literal["standard", "reference"]


class FirstOrderLoss(LossModule):
    """Short-horizon return of a differentiable rollout, and regression of the values that close it.

    For a rollout of H steps, with g = gamma and v the minimum over the value ensemble (zero where terminated),

        loss_actor = mean_b  -( sum_k g^k r_k  +  g^H v(z_H) ) / scale

    is back-propagated through the rewards and the last value into whatever produced them. A trajectory that is done at
    step k is closed there with g^(k+1) v(z_{k+1}), and a new one starts. ``scale`` is the running standard deviation
    of the returns, or H. The values regress on detached TD(lambda) targets of the same rollout. Where the rollout says
    how probably the episode goes on after each step, c_k, every later reward and value is weighted by the product of
    these, differentiably (DreamerV3, arXiv 2301.04104): g^k becomes g^k c_0 .. c_{k-1}, and g^H v takes in c_{H-1} too.
    Source: PWM (arXiv 2407.02466), equations (2) and (3); SHAC (arXiv 2204.07137).

    Args:
        actor_network (TensorDictModule): the policy that produced the rollout.
        value_network (TensorDictModule): values ``[*, 1]`` or, as an ensemble, ``[N, *, 1]``; its ``in_keys`` are read
            from the rollout's root and, for the values of next states, under ``"next"``.

    Keyword Args:
        normalize_returns (bool): divide by the running standard deviation of the returns (a saved buffer), else by H.
        bootstrap (str): ``"standard"`` closes a rollout with gamma^H; ``"reference"`` reproduces the published code,
            which uses gamma^(H+1) and forgets the rewards of a trajectory that is done exactly at the last step.
        delay_value (bool): take v from a slowly moving copy of the value network (SHAC as first published), which the
            steppers here move, or in a loop of one's own TorchRL's ``SoftUpdate``. Default: ``False``.
        loss_function (str): distance of the value regression. Default: ``"l2"``.
        reduction (str): ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        ValueError: if an option is unknown, a network has lazy layers that have not run, or the critics are recurrent;
            at the call, if an entry is missing or the rewards are not ``[*, 1]``.

    Value targets come from :meth:`make_value_estimator`, with TD(lambda) (default; gamma 0.99, lambda 0.95) or TD(0).

    A rollout is a TensorDict ``[B, H]`` with ``("next", "reward")`` [B, H, 1], the value network's inputs at the root
    and under ``"next"`` (there: the observation *before* any reset) and, optionally, ``("next", "done")`` and
    ``("next", "terminated")`` [B, H, 1], and ``("next", "continuation")`` [B, H, 1], the probabilities c_k.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_pwm import make_pwm_actor, make_value_ensemble
        >>> loss = FirstOrderLoss(make_pwm_actor(8, 2), make_value_ensemble(8))
        >>> reward = torch.randn(4, 16, 1, requires_grad=True)
        >>> step = TensorDict({"latent": torch.randn(4, 16, 8), "reward": reward}, [4, 16])
        >>> losses = loss(TensorDict({"latent": torch.randn(4, 16, 8), "next": step}, [4, 16]))
        >>> losses["loss_actor"].backward()
        >>> bool(reward.grad.lt(0).all())
        True
    """

    @dataclass
    class _AcceptedKeys:
        """Entries that can be renamed with :meth:`set_keys`; the first four live under ``"next"``."""

        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        continuation: NestedKey = "continuation"
        value: NestedKey = "state_value"
        value_target: NestedKey = "value_target"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    default_value_estimator = ValueEstimators.TDLambda
    SUPPORTED_VALUE_ESTIMATORS = (ValueEstimators.TDLambda, ValueEstimators.TD0)

    actor_network: TensorDictModule
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    value_network: TensorDictModuleBase
    value_network_params: TensorDictParams
    target_value_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: TensorDictModule,
        value_network: TensorDictModuleBase,
        *,
        normalize_returns: bool = True,
        bootstrap: Bootstrap = "standard",
        delay_value: bool = False,
        loss_function: str = "l2",
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if bootstrap not in ("standard", "reference"):
            raise ValueError(f'bootstrap must be "standard" or "reference", found {bootstrap!r}.')
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f'reduction must be "mean", "sum" or "none", found {reduction!r}.')
        check_choice(("l1", "l2", "smooth_l1"), loss_function=loss_function)
        for name, network in (("actor_network", actor_network), ("value_network", value_network)):
            require_initialized(network, name)
        if Memory(value_network):
            raise ValueError(
                f"value_network reads {Memory(value_network).keys} of the step before, found a recurrent one: critics "
                "take a state as it is, see make_value_ensemble."
            )
        self.convert_to_functional(actor_network, "actor_network", create_target_params=False)
        self.convert_to_functional(value_network, "value_network", create_target_params=delay_value)
        self.normalize_returns = normalize_returns
        self.bootstrap = bootstrap
        self.delay_value = delay_value
        self.loss_function = loss_function
        self.reduction = reduction
        self.return_moments = RunningMoments()
        self.out_keys = ["loss_actor", "loss_value", "return_mean", "return_scale", "reward_mean", "value_target_mean"]
        if self.tensor_keys.value not in value_network.out_keys:
            self.tensor_keys.value = value_network.out_keys[0]
        self.make_value_estimator()
        self.register_load_state_dict_post_hook(FirstOrderLoss._follow_loaded_gamma)

    def _set_in_keys(self) -> None:
        value_keys = list(self.value_network.in_keys)
        # The flags may be left out; a call without TensorDict takes them by these names.
        nexts = [self.tensor_keys.reward, *value_keys, self.tensor_keys.done, self.tensor_keys.terminated]
        self.in_keys = [*value_keys, *(unravel_key(("next", key)) for key in nexts)]

    def make_value_estimator(self, value_type: Any = None, **hyperparams: Any) -> FirstOrderLoss:
        """Chooses the value targets: ``ValueEstimators.TDLambda`` (default) or ``TD0``, with ``gamma`` and ``lmbda``.

        Gamma is also the discount of the actor's return.

        Raises:
            NotImplementedError: for another estimator.
            ValueError: for a gamma or lambda that is not between 0 and 1.
        """
        if value_type is None:
            value_type = self.default_value_estimator
        if isinstance(value_type, (ValueEstimatorBase, type)):
            super().make_value_estimator(value_type, **hyperparams)
        else:
            hyperparams = {**default_value_kwargs(value_type), **hyperparams}
            check_range(SHARE, **{key: float(hyperparams[key]) for key in ("gamma", "lmbda") if key in hyperparams})
            dispatch_value_estimator(self, value_type, supported=self.SUPPORTED_VALUE_ESTIMATORS, **hyperparams)
        if isinstance(self.value_estimator, TDLambdaEstimator):
            # The vectorised form splits trajectories by their dones, which is no static graph; H steps are few.
            self.value_estimator.vectorized = False
        # The estimator keeps gamma in float32; the actor's return uses the number as given.
        self._gamma = float(hyperparams.get("gamma", self.value_estimator.gamma))
        self._forward_value_estimator_keys()
        place_buffers(self)
        return self

    def _follow_loaded_gamma(self, *_: Any) -> None:
        # Gamma is saved with the estimator; the actor's return must not keep another one.
        gamma = self.value_estimator.gamma
        if readable(gamma) and gamma != torch.tensor(self._gamma).to(gamma):
            self._gamma = float(gamma)

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        if self._value_estimator is not None:
            names = ("reward", "done", "terminated", "value", "value_target")
            self._value_estimator.set_keys(**{name: getattr(self.tensor_keys, name) for name in names})
        self._set_in_keys()

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Both losses and detached metrics of a rollout ``[B, H]``, which is left unchanged."""
        return self._checked(self._losses(tensordict), tensordict)

    def _checked(self, losses: TensorDictBase, read: TensorDictBase) -> TensorDictBase:
        require_finite(read.select(*self.in_keys, strict=False), losses, self)
        return losses

    def _losses(self, rollout: TensorDictBase) -> TensorDictBase:
        require_batch(rollout, self)
        returns = self._negative_returns(rollout)
        target = self.value_target(rollout)
        with_target = rollout.copy().set(self.tensor_keys.value_target, target)
        out = TensorDict(
            {
                "loss_actor": self._scaled_actor_loss(returns, rollout),
                "loss_value": self.value_loss(with_target),
                "return_mean": -returns.detach().mean(),
                "value_target_mean": target.mean(),
                **self.rollout_metrics(rollout),
            }
        )
        self._clear_weakrefs(rollout, with_target, out)
        # TensorDict's own selection does nothing where an entry of in_keys, here a flag, is missing.
        # A subclass may add entries of its own.
        return out.select(*self.out_keys, strict=False)

    def rollout_metrics(self, rollout: TensorDictBase) -> dict[str, Tensor]:
        """Detached numbers worth a look: the mean reward of a step, and the return scale."""
        reward = self._rewards(rollout).detach()
        return {"reward_mean": reward.mean(), "return_scale": self._scale(rollout).detach().clone()}

    def actor_loss(self, rollout: TensorDictBase) -> Tensor:
        """The actor loss of a differentiable rollout ``[B, H]``, (2) in the paper.

        Updates the return scale when the module is in training mode.
        """
        return self._scaled_actor_loss(self._negative_returns(rollout), rollout)

    def _scaled_actor_loss(self, negative_returns: Tensor, rollout: TensorDictBase) -> Tensor:
        if self.normalize_returns and self.training:
            self.return_moments.update(negative_returns.detach().flatten())
        return self._reduce_loss(negative_returns / self._scale(rollout), mask=None)

    def _scale(self, rollout: TensorDictBase) -> Tensor:
        if self.normalize_returns:
            return self.return_moments.std
        reward = self._rewards(rollout)
        return reward.new_full((), reward.shape[-2])

    def _negative_returns(self, rollout: TensorDictBase) -> Tensor:
        """Minus the discounted return, ``[B]``: the sum over the trajectories that follow each other within H steps."""
        reward, gamma = self._rewards(rollout).squeeze(-1), self._gamma
        horizon = reward.shape[-1]
        steps = torch.arange(horizon, device=reward.device)
        closing_gamma = gamma**2 if self.bootstrap == "reference" else gamma
        done, _ = self._ends(rollout)
        going_on = self._continuation(rollout)
        if done is None:
            last = rollout[..., -1:]
            value = self.next_value(last).squeeze(-1)
            weight = torch.pow(gamma, steps.to(reward.dtype))
            if going_on is not None:
                survival = going_on.squeeze(-1).cumprod(-1)
                weight = weight * torch.cat([torch.ones_like(survival[..., :1]), survival[..., :-1]], -1)
                value = survival[..., -1:] * value
            return -(weight * reward).sum(-1) - (closing_gamma * gamma ** (horizon - 1) * value).squeeze(-1)

        done = done.squeeze(-1)
        value = self.next_value(rollout).squeeze(-1)
        # The step of each trajectory's start: the discount restarts after a done.
        begins = torch.cat([torch.ones_like(done[..., :1]), done[..., :-1]], -1)
        start = torch.where(begins, steps, 0).cummax(-1).values
        weight = torch.pow(gamma, (steps - start).to(reward.dtype))
        if going_on is not None:
            going_on = going_on.squeeze(-1)
            weight, value = weight * _survival(going_on, begins), going_on * value
        closes = gamma * weight * done
        if self.bootstrap == "reference":
            # Published code: an env done at the last step has been reset before its return is booked.
            forgotten = done[..., -1:]
            weight_at_end = torch.where(forgotten, gamma, closing_gamma * weight[..., -1:])
            weight = torch.where(forgotten & (start == start[..., -1:]), 0.0, weight)
        else:
            weight_at_end = gamma * weight[..., -1:]
        closes = torch.cat([closes[..., :-1], weight_at_end], -1)
        return -(weight * reward + closes * value).sum(-1)

    @torch.no_grad()
    def value_target(self, rollout: TensorDictBase) -> Tensor:
        """Value targets G ``[B, H, 1]`` of a rollout, without gradient, from the chosen estimator.

        With r_k ``("next", "reward")``, v_{k+1} = :meth:`next_value`, which is zero where step k terminated, g = gamma
        and l = lambda, TD(lambda) goes backwards over k = H - 1 .. 0,

            G_k = r_k + g ((1 - l) v_{k+1} + l x_{k+1}),   x_{k+1} = v_{k+1}  where k = H - 1 or step k is done,
                                                                     G_{k+1}  elsewhere,

        so that a trajectory's last target is r_k + g v_{k+1}: the end of the rollout and a done without terminated
        are truncations, which bootstrap from the state reached (before any reset), and a terminated step gives r_k.
        That is the lambda-weighted mean of the n-step returns (SHAC, arXiv 2204.07137; PWM, arXiv 2407.02466). TD(0)
        is G_k = r_k + g v_{k+1} throughout. With ``("next", "continuation")`` g is g c_k in all of these.
        """
        keys = self.tensor_keys
        reward = self._rewards(rollout).detach()
        done, terminated = self._ends(rollout)
        never = torch.zeros_like(reward, dtype=torch.bool)
        terminated = never if terminated is None else terminated
        done = never if done is None else done
        data = TensorDict({}, rollout.batch_size)
        for key, entry in ((keys.reward, reward), (keys.done, done), (keys.terminated, terminated)):
            data.set(unravel_key(("next", key)), entry)
        going_on, estimator = self._continuation(rollout), self.value_estimator
        if going_on is None:
            return estimator.value_estimate(data, next_value=self.next_value(rollout))
        # TorchRL's estimators take one gamma, the function behind them one for each step.
        lmbda = estimator.lmbda if isinstance(estimator, TDLambdaEstimator) else 0.0
        next_value = self.next_value(rollout)
        return td_lambda_return_estimate(self._gamma * going_on, lmbda, next_value, reward, done, terminated)

    def value_loss(self, rollout: TensorDictBase) -> Tensor:
        """Regression of every value network on the targets, (3) in the paper.

        Reads ``value_target`` if the rollout has it, else computes it. Any batch shape serves, so that a flattened
        rollout can be cut into minibatches.
        """
        target = rollout.get(self.tensor_keys.value_target, None)
        if target is None:
            target = self.value_target(rollout)
        inputs = self._critic_inputs(rollout).detach()
        with swapped(self.value_network, self.value_network_params):
            values = self.value_network(inputs).get(self.tensor_keys.value)
        error = distance_loss(values, target.expand_as(values), self.loss_function).squeeze(-1)
        if values.ndim > inputs.ndim + 1:
            error = error.mean(0)
        return self._reduce_loss(error, rollout)

    def critic_rows(self, rollout: TensorDictBase, target: Tensor | None = None) -> TensorDictBase:
        """What :meth:`value_loss` reads of a rollout, detached, with its targets."""
        target = self.value_target(rollout) if target is None else target
        return rollout.select(*self.value_network.in_keys).detach().set(self.tensor_keys.value_target, target)

    def next_value(self, rollout: TensorDictBase) -> Tensor:
        """v(z_{k+1}) ``[*, 1]``: the minimum over the value ensemble at the next states, zero where terminated.

        With ``delay_value`` the values are those of the slow copy. The gradient reaches the states, not the weights.
        """
        inputs = self._critic_inputs(rollout, "next")
        slow = self.target_value_network_params if self.delay_value else self.value_network_params
        with frozen(self.value_network, slow):
            value = self.value_network(inputs).get(self.tensor_keys.value)
        if value.ndim > inputs.ndim + 1:
            value = value.min(0).values
        _, terminated = self._ends(rollout)
        return value if terminated is None else torch.where(terminated, 0.0, value)

    def slow_and_fast(self) -> tuple[list[Tensor], list[Tensor]]:
        """With ``delay_value`` the weights of the slow copy of the value network, and those of the network itself."""
        both = self.target_value_network_params, self.value_network_params
        slow, fast = (list(params.data.values(True, True)) for params in both)
        return slow, fast

    @torch.no_grad()
    def restart_targets(self) -> None:
        """Puts the slow copy, if there is one, where the value network is: after weights were loaded into it."""
        if self.delay_value:
            torch._foreach_copy_(*self.slow_and_fast())

    def _critic_inputs(self, rollout: TensorDictBase, *root: str) -> TensorDictBase:
        for key in self.value_network.in_keys:
            require(rollout, unravel_key((*root, key)), self)
        return (rollout.get(root) if root else rollout).select(*self.value_network.in_keys)

    def _rewards(self, rollout: TensorDictBase) -> Tensor:
        return require_column(rollout, unravel_key(("next", self.tensor_keys.reward)), self)

    def _continuation(self, rollout: TensorDictBase) -> Tensor | None:
        return rollout.get(unravel_key(("next", self.tensor_keys.continuation)), None)

    def _ends(self, rollout: TensorDictBase) -> tuple[Tensor | None, Tensor | None]:
        """Done and terminated, as far as the rollout has them; what is terminated is done."""
        keys = self.tensor_keys
        done, terminated = (rollout.get(unravel_key(("next", key)), None) for key in (keys.done, keys.terminated))
        return terminated if done is None else done, terminated


def _survival(going_on: Tensor, begins: Tensor) -> Tensor:
    """Probability [B, H] that the trajectory of each step has not ended before it, from those of going on after it."""
    alive, before = torch.ones_like(going_on[..., 0]), []
    for step in range(going_on.shape[-1]):
        alive = torch.where(begins[..., step], 1.0, alive)
        before.append(alive)
        alive = alive * going_on[..., step]
    return torch.stack(before, -1)
