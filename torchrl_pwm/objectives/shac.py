"""SHAC's policy objective: roll out a differentiable simulator, then :class:`FirstOrderLoss`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from tensordict.utils import unravel_key
from torch import Tensor
from torchrl.data import Bounded

from torchrl_pwm._utils.devices import place_buffers, readable
from torchrl_pwm._utils.entries import require
from torchrl_pwm.modules.frozen import swapped
from torchrl_pwm.modules.normalizer import ObservationNormalizer
from torchrl_pwm.objectives.acting import ActingLoss
from torchrl_pwm.objectives.first_order import Bootstrap

if TYPE_CHECKING:
    from torchrl.envs import EnvBase


class SHACLoss(ActingLoss):
    """First-order policy learning through a differentiable simulator (SHAC, arXiv 2204.07137, algorithm 1).

    :meth:`rollout` goes on for a window of H steps from where N parallel environments stand,

        a_k = tanh(mu(o_k) + sigma eps_k),   (o'_{k+1}, r_k) = simulator(a_k),

    with gradient through simulator and policy, and the module is then :class:`FirstOrderLoss` on that window: an env
    that is done is closed with the value of o'_{k+1}, its observation *before* the reset (zero if terminated, not if
    only truncated), and starts anew with a full discount; so an env may earn several returns, which add up. At the end
    of the window the graph is cut. Settings of the PWM paper (arXiv 2407.02466): H = 32, three critics whose minimum
    is the value, normalised observations and returns. As first published: one critic, ``delay_value=True``,
    ``normalize_returns=False``.

    Args:
        actor_network (TensorDictModule): a TorchRL probabilistic actor, see :func:`~torchrl_pwm.make_pwm_actor`.
        value_network (TensorDictModule): see :func:`~torchrl_pwm.make_value_ensemble`.

    Keyword Args:
        horizon (int): simulated steps H of a window.
        normalizer (ObservationNormalizer, optional): what actor and critics then read is its ``out_keys``. Its moments
            stand still during a window and move by every observation of it, [N, H] of them, in :meth:`actor_loss` and
            :meth:`forward`, in training mode alone, as the return scale does. Saved with the loss.
        normalize_returns, bootstrap, delay_value, loss_function, reduction: see :class:`FirstOrderLoss`.

    Raises:
        ValueError: if an option is unknown, the horizon is below 1 or the actor is not probabilistic; see
            :meth:`rollout` for what an env must be.

    Reads what :class:`FirstOrderLoss` reads, [N, H]; returns scalars ``loss_actor``, ``loss_value`` and detached
    metrics.

    Examples:
        >>> from torchrl_pwm import ObservationNormalizer, make_pwm_actor, make_value_ensemble
        >>> from torchrl_pwm.envs.simulators import AnalyticEnv
        >>> env = AnalyticEnv("cartpole_swingup", 8, requires_grad=True)
        >>> size, key = env.observation_spec["observation"].shape[-1], "normalized_observation"
        >>> actor, value = make_pwm_actor(size, 1, in_key=key), make_value_ensemble(size, in_key=key)
        >>> loss = SHACLoss(actor, value, horizon=4, normalizer=ObservationNormalizer(size))
        >>> td = env.reset()
        >>> for _ in range(2):
        ...     rollout, td = loss.rollout(env, td)
        ...     losses = loss(rollout)
        ...     losses["loss_actor"].backward()  # and a step of the actor's optimiser
        >>> rollout.shape, losses["loss_value"].shape
        (torch.Size([8, 4]), torch.Size([]))
    """

    def __init__(
        self,
        actor_network: TensorDictModule,
        value_network: TensorDictModuleBase,
        *,
        horizon: int = 32,
        normalizer: ObservationNormalizer | None = None,
        normalize_returns: bool = True,
        bootstrap: Bootstrap = "standard",
        delay_value: bool = False,
        loss_function: str = "l2",
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            actor_network,
            value_network,
            horizon=horizon,
            normalize_returns=normalize_returns,
            bootstrap=bootstrap,
            delay_value=delay_value,
            loss_function=loss_function,
            reduction=reduction,
        )
        self.normalizer = normalizer
        self._set_in_keys()
        place_buffers(self)

    def _set_in_keys(self) -> None:
        super()._set_in_keys()
        # Called first by the base class's constructor.
        normalizer = getattr(self, "normalizer", None)
        if normalizer is not None:
            self.in_keys = [*self.in_keys, *normalizer.in_keys]

    @property
    def policy(self) -> TensorDictModuleBase:
        """The policy as it acts on an env's own observations: the normaliser, if there is one, then the actor."""
        if self.normalizer is None:
            return self.actor_network
        return TensorDictSequential(self.normalizer, self.actor_network)

    def rollout(
        self, env: EnvBase, tensordict: TensorDictBase, noise: Tensor | None = None
    ) -> tuple[TensorDictBase, TensorDictBase]:
        """Simulates a window of H steps, resetting the envs that are done on the way.

        The graph is cut where the window begins, by the env's ``truncate_graph`` if it has one: back-propagate one
        window before rolling out the next.

        Args:
            env (EnvBase): a differentiable simulator of batch [N], see :mod:`torchrl_pwm.envs.simulators`. An env that
                keeps state of its own, outside the TensorDict, needs a method ``truncate_graph(tensordict)``.
            tensordict (TensorDictBase): where it stands, [N]: what ``env.reset()`` or the last window returned.
            noise (Tensor, optional): ``[H, N, A]``, instead of fresh Gaussian noise; zeros give the mean action.

        Returns:
            The window, a TensorDict ``[N, H]`` of the env's entries at the root and under ``"next"``, there from before
            any reset, with the normalised observations at both; and where the env stands now, [N].

        Raises:
            ValueError: if envs are done at the start, what the actor reads is missing, the action has another name or
                other bounds than [-1, 1] in the env, the noise has another shape, or the env gives no gradient.
        """
        keys = self.tensor_keys
        cut = getattr(env, "truncate_graph", TensorDictBase.detach)
        td = cut(tensordict)
        self._check(env, td, noise)
        transitions, held = [], self.memory.begin(td)
        td = td.exclude(*self.memory.entries)
        with swapped(self.actor_network, self.actor_network_params), self.memory.stepping():
            for step in range(self.horizon):
                seen = self.memory.recall(self._seen(td), held) if self.memory else self._seen(td)
                action = self._act(seen, None if noise is None else noise[step])
                # A copy: the env writes into what it is given.
                transition, td = env.step_and_maybe_reset(td.copy().set(keys.action, action))
                held = self.memory.keep(seen, transition.get(("next", keys.done), None)) if self.memory else held
                transitions.append(transition)
        rollout = TensorDict.stack(transitions, tensordict.ndim)
        self._check_gradient(rollout, action)
        if self.normalizer is not None:
            self.normalizer(rollout)
            self.normalizer(rollout.get("next"))
        td = td.exclude(keys.action)
        for key, value in held.items():
            td.set(key, value)
        return rollout, td

    def _seen(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The TensorDict with the entries that the actor reads."""
        if self.normalizer is None and not self.memory:
            return tensordict
        # A copy: a recurrent policy writes into what it reads.
        return tensordict.copy() if self.normalizer is None else self.normalizer(tensordict.copy())

    def _scaled_actor_loss(self, negative_returns: Tensor, rollout: TensorDictBase) -> Tensor:
        loss = super()._scaled_actor_loss(negative_returns, rollout)
        if self.normalizer is not None and self.training:
            for key in self.normalizer.in_keys:
                require(rollout, key, self)
            self.normalizer.update(rollout)
        return loss

    def _check(self, env: EnvBase, td: TensorDictBase, noise: Tensor | None) -> None:
        keys = self.tensor_keys
        self._check_noise(noise)
        for key in self.policy.in_keys:
            if unravel_key(key) not in self.memory.entries:
                require(td, key, self)
        done = td.get(keys.done, None)
        if done is not None and readable(done) and done.any():
            raise ValueError(
                f"{int(done.sum())} of {done.numel()} envs are done where the window begins: pass what env.reset() or "
                "the last rollout returned, from an env that resets where it is done."
            )
        action = unravel_key(keys.action)
        if action not in [unravel_key(key) for key in env.action_keys]:
            raise ValueError(
                f"SHACLoss writes the action under {action!r}, the env reads {env.action_keys}: rename it with "
                "loss.set_keys(action=...)."
            )
        spec = env.full_action_spec[action]
        if not self._tanh_gaussian or not isinstance(spec, Bounded):
            return
        low, high = spec.space.low, spec.space.high
        if readable(low) and bool((low != -1).any() | (high != 1).any()):
            raise ValueError(
                f"The policy acts in [-1, 1], the env in [{low.min():g}, {high.max():g}]: wrap it in "
                "TransformedEnv(env, ActionScaling()) of torchrl.envs."
            )

    def _check_gradient(self, rollout: TensorDictBase, action: Tensor) -> None:
        if action.requires_grad and not any(leaf.requires_grad for leaf in rollout.get("next").values(True, True)):
            raise ValueError(
                "The env gives no gradient: neither its rewards nor its observations depend on the actions. Build it "
                "with requires_grad=True, and without transforms or processes that detach."
            )
