"""TD-MPC2's objective: consistency, reward, value and policy losses on real sequences."""

from __future__ import annotations

from typing import NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch
from tensordict.utils import unravel_key
from torch import Tensor

from torchrl_pwm._utils.devices import place_buffers
from torchrl_pwm._utils.entries import require
from torchrl_pwm._utils.ranges import NOT_NEGATIVE, SOME_SHARE, check_range
from torchrl_pwm.modules.frozen import frozen
from torchrl_pwm.modules.tdmpc2 import EntropyForm, TDMPC2Model
from torchrl_pwm.objectives.entries import require_column, require_finite
from torchrl_pwm.objectives.first_batch import task_entry
from torchrl_pwm.objectives.sequences import SequenceLoss, require_sequences, step_weights, termination_error, unroll


class TDMPC2Noise(NamedTuple):
    """Random numbers of a loss on sequences [B, T]: standard normal, and indices [2] of Q functions."""

    target_action: Tensor | None = None  # [T, B, A], of the policy in the value targets
    target_members: Tensor | None = None
    policy_action: Tensor | None = None  # [T + 1, B, A], of the policy in its own loss
    policy_members: Tensor | None = None


class TDMPC2Loss(SequenceLoss):
    """The losses of TD-MPC2 over sequences of T real transitions (arXiv 2310.16828, equations 3 to 5).

    With z_0 = enc(o_0), z_{t+1} = dyn(z_t, a_t), e_{t+1} = sg[enc(o_{t+1})] and
    y_t = r_t + g (1 - terminated_t) min_two Q_target(e_{t+1}, pi(e_{t+1})),

        loss_consistency = 20  mean_t rho^t MSE(z_{t+1}, e_{t+1})
        loss_reward      = 0.1 mean_t rho^t CE(rew(z_t, a_t), r_t)
        loss_value       = 0.1 mean_{t,q} rho^t CE(Q_q(z_t, a_t), y_t)
        loss_termination = mean_t BCE(end(z_{t+1}), terminated_t)               with a termination head
        loss_policy      = -mean_t rho^t (avg_two Q(z_t, pi(z_t)) / S + 1e-4 entropy),   t = 0 .. T

    The discount g is each task's own. S is the running range of the values, updated in training mode before it is
    used. The policy's loss reaches the policy alone, and no other loss reaches it.
    :class:`~torchrl_pwm.trainers.TDMPC2OptimizationStepper` takes the policy's step after the others, with the new Q
    functions, as published, and moves the target by ``model.update_target()``; a loop of one's own calls that itself.

    Args:
        model (TDMPC2Model): the model to train.

    Keyword Args:
        consistency_coef, reward_coef, value_coef, termination_coef (float): applied to the losses returned.
        entropy_coef (float): of the scaled entropy.
        rho (float): weight of each further step. Published: 0.5 with T = 3; 0.99 with T = 16 for PWM's world models.
        entropy (str): ``"current"``, or ``"mid-2024"`` for that version's form, see :meth:`TDMPC2Model.entropies`.
        reduction (str): ``"mean"``, ``"sum"`` or ``"none"`` (``[B, T]``, and ``[B, T + 1]`` of the policy).

    Reads ``[B, T]`` sequences with ``observation``, ``action``, ``("next", "observation")``, ``("next", "reward")``,
    for many tasks ``task`` [B, T] (of which a sequence has one), and, where they are there, ``("next", "terminated")``
    (required with a termination head) and ``("next", "done")``: steps after a done belong to another episode and are
    left out, as are steps that TorchRL's samplers mark as padding.

    Raises:
        ValueError: if an option is unknown; at the call, if the batch is not ``[B, T]``, an entry is missing or of
            another shape or dtype; at the first batch as :class:`PWMWorldModelLoss`.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_pwm import PWMWorldModel, TDMPC2Model
        >>> model = TDMPC2Model(PWMWorldModel(5, 2, latent_dim=16, units=(32, 32), num_bins=11))
        >>> step = TensorDict({"observation": torch.randn(4, 3, 5), "reward": torch.randn(4, 3, 1)}, [4, 3])
        >>> td = TensorDict({"observation": torch.randn(4, 3, 5), "action": torch.zeros(4, 3, 2)}, [4, 3])
        >>> losses = TDMPC2Loss(model)(td.set("next", step))
        >>> sorted(key for key in losses.keys() if key.startswith("loss_"))
        ['loss_consistency', 'loss_policy', 'loss_reward', 'loss_value']
    """

    consistency_coef: Tensor
    reward_coef: Tensor
    value_coef: Tensor
    termination_coef: Tensor
    entropy_coef: Tensor

    def __init__(
        self,
        model: TDMPC2Model,
        *,
        consistency_coef: float = 20.0,
        reward_coef: float = 0.1,
        value_coef: float = 0.1,
        termination_coef: float = 1.0,
        entropy_coef: float = 1e-4,
        rho: float = 0.5,
        entropy: EntropyForm = "current",
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        check_range(NOT_NEGATIVE, consistency_coef=consistency_coef, reward_coef=reward_coef, value_coef=value_coef)
        check_range(NOT_NEGATIVE, termination_coef=termination_coef, entropy_coef=entropy_coef)
        check_range(SOME_SHARE, rho=rho)
        if entropy not in ("current", "mid-2024"):
            raise ValueError(f'entropy must be "current" or "mid-2024", found {entropy!r}.')
        self.model = model
        self.register_coeff_buffer("consistency_coef", consistency_coef)
        self.register_coeff_buffer("reward_coef", reward_coef)
        self.register_coeff_buffer("value_coef", value_coef)
        self.register_coeff_buffer("termination_coef", termination_coef)
        self.register_coeff_buffer("entropy_coef", entropy_coef)
        self.rho, self.entropy = rho, entropy
        ends = ["loss_termination"] if model.world_model.termination else []
        self.out_keys = ["loss_consistency", "loss_reward", "loss_value", *ends, "loss_policy"]
        self.out_keys += ["reward_error", "latent_error_last", "value_target_mean"]
        self.out_keys += ["policy_entropy", "policy_scaled_entropy", "value_scale"]
        self._set_in_keys()
        place_buffers(self)

    def _set_in_keys(self) -> None:
        keys = self.tensor_keys
        # The flags may be left out; a call without TensorDict takes them by these names.
        nexts = [keys.observation, keys.reward, keys.done, keys.terminated]
        task = [keys.task] if self.model.world_model.num_tasks else []
        self.in_keys = [keys.observation, keys.action, *task, *(unravel_key(("next", key)) for key in nexts)]

    def reset_parameters_recursive(self) -> None:
        """Starts the model afresh."""
        self.model.reset_parameters()

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All losses and detached metrics of sequences ``[B, T]``, which are left unchanged."""
        losses, latents = self.model_losses(tensordict)
        losses.update(self.policy_loss(latents, tensordict))
        out = losses.select(*self.out_keys)
        require_finite(tensordict.select(*self.in_keys, strict=False), out, self)
        self._clear_weakrefs(tensordict, out)
        return out

    def model_losses(
        self, tensordict: TensorDictBase, noise: TDMPC2Noise | None = None
    ) -> tuple[TensorDictBase, Tensor]:
        """All losses but the policy's, with metrics; and the latents z_0 .. z_T, detached [T + 1, B, D]."""
        noise = noise or TDMPC2Noise()
        model, world_model = self.model, self.model.world_model
        task = self._task(tensordict)
        observation, action, following, reward, _ = self._entries(tensordict, world_model)
        following, reward = following.transpose(0, 1), reward.transpose(0, 1)
        terminated = self._terminated(tensordict, reward)
        with torch.no_grad():
            encoded = world_model.encode_observation(following, task)
            target = self.value_target(encoded, reward, terminated, task, noise)

        latents, reward_logits = unroll(world_model, observation[:, 0], action, task)
        q_logits = model.q_logits(latents[:-1], action.transpose(0, 1), task)
        consistency = (latents[1:] - encoded).square().mean(-1)
        codec, targets = world_model.codec, target.expand(len(q_logits), *target.shape)
        terms = {
            "loss_consistency": (self.consistency_coef, consistency),
            "loss_reward": (self.reward_coef, codec.cross_entropy(reward_logits, reward).squeeze(-1)),
            "loss_value": (self.value_coef, codec.cross_entropy(q_logits, targets).squeeze(-1).mean(0)),
        }
        weight, mask = step_weights(self.rho, len(consistency), consistency), self._mask(tensordict)
        out = {key: coef * self._reduced(term.T * weight, mask) for key, (coef, term) in terms.items()}
        if world_model.termination and terminated is not None:
            ends = termination_error(world_model, latents[1:], terminated, task)
            out["loss_termination"] = self.termination_coef * self._reduced(ends.T, mask)
        error = (world_model.decode_reward(reward_logits.detach()) - reward).abs().squeeze(-1)
        out["reward_error"] = self._mean(error.T, mask)
        out["latent_error_last"] = self._mean(consistency[-1].detach(), None if mask is None else mask[:, -1])
        out["value_target_mean"] = self._mean(target.squeeze(-1).T, mask)
        return TensorDict(out), latents.detach()

    def policy_loss(
        self, latents: Tensor, tensordict: TensorDictBase, noise: TDMPC2Noise | None = None
    ) -> TensorDictBase:
        """The policy's loss at latents [T + 1, B, D] of the sequences, with metrics, from the Q functions as they are.

        In training mode the running range of the values is updated first.
        """
        noise, model, task = noise or TDMPC2Noise(), self.model, self._task(tensordict)
        with frozen(model.world_model), frozen(model.q):
            sample = model.act(latents, task, noise.policy_action)
            value = model.q_value(latents, sample.action, task, members=noise.policy_members)
        if self.training:
            model.scale.update(value[0])
        entropy, scaled = model.entropies(sample, task, self.entropy)
        gain = (model.scale(value) + self.entropy_coef * scaled).squeeze(-1)
        mask = self._mask(tensordict)
        if mask is not None:
            # A step that counts leads to a latent that counts.
            mask = torch.cat([mask[:, :1], mask], 1)
        loss = self._reduced(-gain.T * step_weights(self.rho, len(gain), gain), mask)
        metrics = {"policy_entropy": entropy, "policy_scaled_entropy": scaled}
        means = {key: self._mean(value.detach().squeeze(-1).T, mask) for key, value in metrics.items()}
        return TensorDict({"loss_policy": loss, **means, "value_scale": model.scale.value.clone()})

    def value_target(
        self, latent: Tensor, reward: Tensor, terminated: Tensor | None, task: Tensor | None, noise: TDMPC2Noise
    ) -> Tensor:
        """y_t = r_t + g (1 - terminated_t) min_two Q_target(e_{t+1}, pi(e_{t+1})), [T, B, 1].

        Args:
            latent: e_{t+1}, ``[T, B, D]``.
            reward, terminated: of the steps, ``[T, B, 1]``, the latter as numbers.
            task: of the sequences, ``[B]``.
            noise: its ``target_action`` and ``target_members`` are used.
        """
        model = self.model
        action = model.act(latent, task, noise.target_action).action
        value = model.q_value(latent, action, task, reduce="min", members=noise.target_members, target=True)
        discount = model.discount_of(task)
        return reward + (discount if terminated is None else discount * (1 - terminated)) * value

    def _task(self, tensordict: TensorDictBase) -> Tensor | None:
        """The sequences' tasks, [B]."""
        require_sequences(tensordict, self)
        world_model = self.model.world_model
        if not world_model.num_tasks:
            return None
        key = self.tensor_keys.task
        require(tensordict, key, self)
        task = task_entry(tensordict, key, world_model, self, tensordict.batch_size)
        return None if task is None else task[:, 0]

    def _terminated(self, tensordict: TensorDictBase, like: Tensor) -> Tensor | None:
        """[T, B, 1], as numbers."""
        key = unravel_key(("next", self.tensor_keys.terminated))
        if not self.model.world_model.termination and tensordict.get(key, None) is None:
            return None
        return require_column(tensordict, key, self).transpose(0, 1).to(like.dtype)
