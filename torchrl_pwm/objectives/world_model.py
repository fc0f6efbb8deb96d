"""Training of the world model on real sequences: latent consistency, reward, termination and observation prediction."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch
from tensordict.utils import unravel_key
from torch import Tensor

from torchrl_pwm._utils.devices import is_host, place_buffers, readable
from torchrl_pwm._utils.ranges import NOT_NEGATIVE, SOME_SHARE, check_range
from torchrl_pwm.modules.world_model import PWMWorldModel
from torchrl_pwm.objectives.entries import require_column, require_finite
from torchrl_pwm.objectives.sequences import SequenceLoss, step_weights, termination_error, unroll

_REWARD_CLIP = 5.0  # published
_LOOKS_FOR_ENDS = 100  # batches of a GPU, each of which is waited for; of the CPU all are looked at


class PWMWorldModelLoss(SequenceLoss):
    """Consistency, reward and termination losses of a world model over sequences of T real transitions.

    With z_0 = enc(o_0), z_{t+1} = dyn(z_t, a_t) and targets sg[enc(o_{t+1})] from the same encoder,

        loss_consistency = c_z mean_t rho^t MSE(z_{t+1}, sg[enc(o_{t+1})])
        loss_reward      = c_r mean_t rho^t CE(rew(z_t, a_t), r_t)
        loss_termination = c_e mean_t BCE(end(z_{t+1} + noise), terminated_t)     with a termination head
        loss_decoder     = c_o mean_t MSE(dec(z_t), o_t)                          with an observation decoder

    where CE is the soft cross entropy with two-hot targets, or the squared error for a scalar head. A model with
    ``normalize_rewards`` is trained on clip((r - mean) / std, -5, 5), after its moments took in the batch's rewards
    (not in eval mode). Of several heads each has an open loop of its own, and losses are means over them. The decoder
    reads all latents of the open loop, z_0 to z_T, whose gradient reaches encoder and dynamics; the first counts with
    the first step, and o is standardised, see :meth:`~torchrl_pwm.PWMWorldModel.observation_target`; the padding of
    tasks with smaller observations is left out if the model was built with ``observation_dims``.
    Source: PWM (arXiv 2407.02466), section 4.1; TD-MPC2 (arXiv 2310.16828), equation (3); the decoder: DreamerV3
    (arXiv 2301.04104).

    Args:
        world_model (PWMWorldModel): the model to train.

    Keyword Args:
        consistency_coef, reward_coef, termination_coef, decoder_coef (float): c_z, c_r, c_e and c_o, applied to the
            losses returned.
        rho (float): weight of each further step.
        termination_noise (float): standard deviation of the noise on the latents that the termination head learns from,
            in units of their spread in the batch. An end is a step in the state, whose gradient is nothing but at the
            step; the head learns the probability under noise, which has one around it.
        divide_reward_by_horizon (bool): divide the reward loss by T once more; see :meth:`single_task`.
        mask_actions (bool): zero the padded entries of the actions before the model sees them (needs a model with
            ``action_dims``). In collected and published data they hold noise.
        heads (str): of a model with N heads, those that a sequence trains: ``"each"``, or ``"one"`` drawn at random,
            whose update costs about what that of a model with one head does, and of whose sequences each head sees
            an Nth.
        reduction (str): ``"mean"``, ``"sum"`` or ``"none"`` (``[B, T]``).

    Reads ``[B, T]`` sequences with ``observation``, ``action``, ``("next", "observation")``, ``("next", "reward")``,
    for a multi-task model ``task`` [B, T] and, with a termination head, ``("next", "terminated")`` [B, T, 1]. Steps
    after a ``("next", "done")``, if that entry is there, belong to another episode and are left out, as are steps that
    TorchRL's samplers mark as padding.

    Raises:
        ValueError: if an option is unknown; at the call, if the batch is not ``[B, T]``, an entry is missing or of
            another shape or dtype; at the first batch, if actions leave [-1, 1], a task is none of the model's, whole
            numbers or float64 do not fit into float32, or sequences join steps of several episodes.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> step = TensorDict({"observation": torch.randn(4, 17, 5), "reward": torch.randn(4, 17, 1)}, [4, 17])
        >>> td = TensorDict({"observation": torch.randn(4, 17, 5), "action": torch.zeros(4, 17, 2)}, [4, 17])
        >>> losses = PWMWorldModelLoss(model)(td.set("next", step))
        >>> sorted(key for key in losses.keys() if key.startswith("loss_"))
        ['loss_consistency', 'loss_reward']
    """

    consistency_coef: Tensor
    reward_coef: Tensor
    termination_coef: Tensor | None
    decoder_coef: Tensor | None

    def __init__(
        self,
        world_model: PWMWorldModel,
        *,
        consistency_coef: float = 20.0,
        reward_coef: float = 0.1,
        termination_coef: float = 1.0,
        decoder_coef: float = 1.0,
        rho: float = 0.99,
        termination_noise: float = 0.6,
        divide_reward_by_horizon: bool = False,
        mask_actions: bool = False,
        heads: Literal["each", "one"] = "each",
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        check_range(NOT_NEGATIVE, consistency_coef=consistency_coef, reward_coef=reward_coef, decoder_coef=decoder_coef)
        check_range(SOME_SHARE, rho=rho)
        if heads not in ("each", "one"):
            raise ValueError(f"heads is 'each' or 'one', found {heads!r}")
        if mask_actions and world_model.action_masks is None:
            raise ValueError("mask_actions=True needs a world model built with action_dims.")
        self.world_model = world_model
        self.register_coeff_buffer("consistency_coef", consistency_coef)
        self.register_coeff_buffer("reward_coef", reward_coef)
        # Without a head the state dict stays as it was.
        self.register_coeff_buffer("termination_coef", termination_coef if world_model.termination else None)
        self.register_coeff_buffer("decoder_coef", decoder_coef if world_model.has_decoder else None)
        self.rho, self.termination_noise = rho, termination_noise
        self.divide_reward_by_horizon, self.heads = divide_reward_by_horizon, heads
        self.mask_actions = mask_actions
        self._looks_for_ends = 0 if world_model.termination else _LOOKS_FOR_ENDS
        more = ["loss_termination"] if world_model.termination else []
        more += ["loss_decoder"] if world_model.has_decoder else []
        self.out_keys = ["loss_consistency", "loss_reward", *more, "reward_error", "latent_error_last"]
        self._set_in_keys()
        place_buffers(self)

    @classmethod
    def single_task(cls, world_model: PWMWorldModel, gamma: float = 0.99, **kwargs: Any) -> PWMWorldModelLoss:
        """The form of the published single-task runs: equal coefficients, steps weighted by gamma^t.

        Their reward term is a mean over time divided by the horizon once more.
        """
        defaults = {"consistency_coef": 1.0, "reward_coef": 1.0, "rho": gamma, "divide_reward_by_horizon": True}
        return cls(world_model, **{**defaults, **kwargs})

    def _set_in_keys(self) -> None:
        keys = self.tensor_keys
        ends = [keys.terminated] if self.world_model.termination else []
        nexts = [unravel_key(("next", key)) for key in (keys.observation, keys.reward, *ends)]
        self.in_keys = [keys.observation, keys.action, *nexts, *([keys.task] if self.world_model.num_tasks else [])]

    def reset_parameters_recursive(self) -> None:
        """Starts the world model afresh."""
        self.world_model.reset_parameters()

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The losses and detached metrics of sequences ``[B, T]``, which are left unchanged."""
        out = self.losses(tensordict)
        require_finite(tensordict.select(*self.in_keys, strict=False), out, self)
        self.warn_of_ends(tensordict)
        self._clear_weakrefs(tensordict, out)
        return out

    def losses(self, tensordict: TensorDictBase) -> TensorDictBase:
        """What :meth:`forward` returns, without a look at its numbers: nothing waits for the device."""
        model = self.world_model
        observation, action, next_observation, reward, task = self._entries(tensordict, model)
        action = model.masked(action, task) if self.mask_actions else action
        with torch.no_grad():
            target = model.encode_observation(next_observation, task)

        first = None if task is None else task[:, 0]
        # With several heads [T + 1, N, B, D], and so on: their losses are [N, B, T] until the mean over them.
        latents, logits = unroll(model, observation[:, 0], action, first, heads=self.heads)
        predicted, logits = latents[1:].movedim(0, -2), logits.movedim(0, -2)

        consistency = _over_heads((predicted - target).square().mean(-1))
        mask = self._mask(tensordict)
        reward_target = self._reward_target(reward, mask)
        reward_target = reward_target.expand(*logits.shape[:-1], 1)
        reward_loss = _over_heads(model.codec.cross_entropy(logits, reward_target).squeeze(-1))
        reward_error = _over_heads((model.decode_reward(logits.detach()) - reward).abs().squeeze(-1))
        horizon = tensordict.shape[1]
        weight = step_weights(self.rho, horizon, reward)
        out = TensorDict(
            {
                "loss_consistency": self.consistency_coef * self._reduced(consistency * weight, mask),
                "loss_reward": self.reward_coef
                * self._reduced(reward_loss * weight, mask)
                / (horizon if self.divide_reward_by_horizon else 1),
                "reward_error": self._mean(reward_error, mask),
                "latent_error_last": self._mean(consistency[:, -1].detach(), None if mask is None else mask[:, -1]),
            }
        )
        if model.termination:
            out.set("loss_termination", self._termination_loss(latents[1:], tensordict, task, mask))
        if model.has_decoder:
            observed = torch.cat([observation[:, :1], next_observation], 1).transpose(0, 1)
            out.set("loss_decoder", self._decoder_loss(latents, observed, first, mask))
        return out

    def _decoder_loss(self, latent: Tensor, observation: Tensor, task: Tensor | None, mask: Tensor | None) -> Tensor:
        """Of latents [T + 1, *, B, D] and observations [T + 1, B, O]."""
        if self.decoder_coef is None:
            raise ValueError("The world model has a new decoder: build the loss after add_decoder().")
        observation = observation.unsqueeze(1) if latent.ndim > observation.ndim else observation
        error = _over_heads(self.world_model.decoding_error(latent, observation, task).movedim(0, -1))
        steps = torch.cat([error[:, :1] + error[:, 1:2], error[:, 2:]], 1)
        return self.decoder_coef * self._reduced(steps, mask)

    def _termination_loss(
        self, latent: Tensor, tensordict: TensorDictBase, task: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        if self.termination_coef is None:
            raise ValueError("The world model has a new termination head: build the loss after add_termination_head().")
        terminated = require_column(tensordict, unravel_key(("next", self.tensor_keys.terminated)), self)
        terminated, task = terminated.transpose(0, 1).to(latent.dtype), None if task is None else task[:, 0]
        if self.training and self.termination_noise:
            spread = latent.detach().flatten(0, -2).std(0)
            latent = latent + self.termination_noise * spread * torch.randn_like(latent)
        if latent.ndim > terminated.ndim:
            terminated = terminated.unsqueeze(1).expand(*latent.shape[:-1], 1)
        error = _over_heads(termination_error(self.world_model, latent, terminated, task).movedim(0, -1))
        return self.termination_coef * self._reduced(error, mask)

    def warn_of_ends(self, *batches: TensorDictBase) -> None:
        """Says once that the model cannot know of the ends in its data; reads a number of the first batches."""
        key = unravel_key(("next", self.tensor_keys.terminated))
        flags = [flag for flag in (batch.get(key, None) for batch in batches) if flag is not None and readable(flag)]
        if not self._looks_for_ends or not flags:
            return
        if not is_host(flags[0].device):
            self._looks_for_ends -= 1
        if not torch.stack([flag.any() for flag in flags]).any():
            return
        self._looks_for_ends = 0
        warnings.warn(
            "Episodes of the data end (next, terminated), but the world model has no termination head: in imagination "
            "they go on for ever. Build it with PWMWorldModel(..., termination=True), unless the reward shows the end.",
            stacklevel=3,
        )

    def _reward_target(self, reward: Tensor, mask: Tensor | None) -> Tensor:
        moments = self.world_model.reward_moments
        if moments is None:
            return reward
        if self.training:
            moments.update(reward.reshape(-1), None if mask is None else mask.reshape(-1))
        return moments.normalize(reward, clip=_REWARD_CLIP)


def _over_heads(loss: Tensor) -> Tensor:
    """Mean over the heads of a model with several, [N, B, T] to [B, T]."""
    return loss.mean(0) if loss.ndim == 3 else loss
