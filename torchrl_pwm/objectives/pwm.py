"""PWM's policy objective: imagine in a frozen world model, then :class:`FirstOrderLoss`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn

from torchrl_pwm._utils.entries import require
from torchrl_pwm._utils.ranges import POSITIVE, check_range
from torchrl_pwm.modules.actor_critic import gaussian_head
from torchrl_pwm.modules.frozen import frozen, swapped
from torchrl_pwm.modules.two_hot import RewardSpace
from torchrl_pwm.objectives.acting import ActingLoss
from torchrl_pwm.objectives.entries import require_batch, require_sizes
from torchrl_pwm.objectives.first_batch import not_representable, out_of_range, outside_unit, own_actions, task_entry
from torchrl_pwm.objectives.first_order import Bootstrap
from torchrl_pwm.objectives.walk import state_at, walk


class PWMLoss(ActingLoss):
    """First-order policy extraction from a frozen world model (PWM, arXiv 2407.02466, section 4.2, algorithm 1).

    From start states z_0 = enc(o_0) the policy is rolled out for H steps inside the model,

        a_k = tanh(mu(sg[z_k]) + sigma eps_k),   z_{k+1} = dyn(z_k, a_k),   r_k = rew(z_k, a_k),

    and :class:`FirstOrderLoss` back-propagates the return through the model into the policy. If the model has a
    termination head, rewards and the last value count with the probability that the episode still goes on. Neither the
    world model nor the other network receives a gradient from either loss. The model is not a submodule:
    ``parameters()``, ``state_dict()`` and ``to()`` concern actor, critics and return scale only.

    Args:
        actor_network (TensorDictModule): a TorchRL probabilistic actor on the latent, see
            :func:`~torchrl_pwm.make_pwm_actor`.
        value_network (TensorDictModule): see :func:`~torchrl_pwm.make_value_ensemble`.
        world_model (PWMWorldModel): or any module with the same tensor forms.

    Keyword Args:
        horizon (int): imagined steps H.
        detach_latent (bool): stop the gradient where the policy reads the latent, so that it reaches earlier actions
            through the dynamics alone. Default: ``True``, as published.
        reward_space (str): the reward that is summed. ``"symlog"`` (default) leaves a binned head's reward in symlog
            space, as published, and a normalised one normalised; ``"raw"`` decodes it to the task's units. Of any
            other scalar head both are the same.
        reward_scale (float): the reward that is summed times this, so that critics see values of moderate size: raw
            rewards of Meta-World reach 10 a step. Default: 1.
        mask_actions (bool): zero the padded entries of the action before the model sees them (needs a model with
            ``action_dims``). Default: ``False``, as published.
        behavior_coef (float): weight of ``loss_behavior``, the squared distance of the mean action at the start
            states to the data's ``action`` [B, A] there, as in TD3+BC (arXiv 2106.06860); padded entries do not count
            if the model has ``action_dims``. Default: 0, no such loss, as published.
        disagreement (nn.Module): a :class:`~torchrl_pwm.DynamicsEnsemble` trained on this model's latents.
        disagreement_coef (float): the ensemble's disagreement times this is taken off each imagined reward, in the
            space that is summed, as in MOPO (arXiv 2005.13239). Default: 0.
        normalize_returns, bootstrap, delay_value, loss_function, reduction: see :class:`FirstOrderLoss`.

    Raises:
        ValueError: if an option is unknown, the actor is not probabilistic or a network is of another size than the
            model's; at the call, if neither observation nor latent is there, or a task of another shape or dtype; at
            the first batch, if a task is none of the model's, or actions of the behaviour term leave [-1, 1].

    Reads ``observation`` [B, O], or else ``latent`` [B, D], ``task`` [B] (int64) for a multi-task model and ``action``
    [B, A] with a behaviour term. A recurrent actor (``GRUModule``, ``LSTMModule``) begins with the hidden states of the
    start states, where they carry some, else with zeros. Returns scalars ``loss_actor``, ``loss_value``,
    ``loss_behavior`` where there is one, and detached metrics.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_pwm import PWMWorldModel, make_pwm_actor, make_value_ensemble
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> loss = PWMLoss(make_pwm_actor(16, 2), make_value_ensemble(16), model, horizon=4)
        >>> losses = loss(TensorDict({"observation": torch.randn(8, 5)}, [8]))
        >>> losses["loss_actor"].shape, losses["loss_value"].shape
        (torch.Size([]), torch.Size([]))
    """

    @dataclass
    class _AcceptedKeys(ActingLoss._AcceptedKeys):
        """Entries that can be renamed with :meth:`set_keys`; reward, done and terminated live under ``"next"``."""

        observation: NestedKey = "observation"
        task: NestedKey = "task"
        latent: NestedKey = "latent"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys

    def __init__(
        self,
        actor_network: TensorDictModule,
        value_network: TensorDictModuleBase,
        world_model: nn.Module,
        *,
        horizon: int = 16,
        detach_latent: bool = True,
        reward_space: RewardSpace = "symlog",
        reward_scale: float = 1.0,
        normalize_returns: bool = True,
        bootstrap: Bootstrap = "standard",
        delay_value: bool = False,
        mask_actions: bool = False,
        behavior_coef: float = 0.0,
        disagreement: nn.Module | None = None,
        disagreement_coef: float = 0.0,
        loss_function: str = "l2",
        reduction: str = "mean",
    ) -> None:
        if reward_space not in ("raw", "symlog"):
            raise ValueError(f'reward_space must be "raw" or "symlog", found {reward_space!r}.')
        if mask_actions and getattr(world_model, "action_masks", None) is None:
            raise ValueError("mask_actions=True needs a world model built with action_dims.")
        check_range(POSITIVE, reward_scale=reward_scale)
        for name, coefficient in (("behavior_coef", behavior_coef), ("disagreement_coef", disagreement_coef)):
            if not 0.0 <= coefficient < float("inf"):
                raise ValueError(f"{name} must be finite and at least 0, found {coefficient}.")
        if disagreement_coef and disagreement is None:
            raise ValueError("disagreement_coef needs disagreement=, a DynamicsEnsemble of the model's latents.")
        require_sizes(actor_network, value_network, world_model, self)
        # In a tuple, torch does not take the frozen model for a submodule, nor TorchRL for one to reset.
        self.__dict__["_world_model"] = (world_model,)
        self.__dict__["_disagreement"] = (disagreement,)
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
        self.detach_latent = detach_latent
        self.reward_space, self.reward_scale = reward_space, reward_scale
        self.mask_actions = mask_actions
        self.behavior_coef = behavior_coef
        self.disagreement_coef = disagreement_coef
        if behavior_coef:
            self.out_keys = [*self.out_keys, "loss_behavior"]
            self._set_in_keys()

    @property
    def world_model(self) -> Any:
        """The frozen model."""
        return self.__dict__["_world_model"][0]

    @property
    def disagreement(self) -> Any:
        """The ensemble whose disagreement is penalised, or None."""
        return self.__dict__["_disagreement"][0]

    def _set_in_keys(self) -> None:
        keys = self.tensor_keys
        self.in_keys = [keys.observation, *([keys.task] if getattr(self.world_model, "num_tasks", 0) else [])]
        # set first by the base class's constructor
        if getattr(self, "behavior_coef", 0.0):
            self.in_keys.append(keys.action)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Both losses and detached metrics from start states ``[B]``, which are left unchanged."""
        require_batch(tensordict, self)
        losses = self._losses(self.imagine(tensordict))
        if "loss_behavior" in self.out_keys:
            losses.set("loss_behavior", self.behavior_loss(tensordict))
        return self._checked(losses, tensordict)

    def behavior_loss(self, tensordict: TensorDictBase) -> Tensor:
        """``behavior_coef`` times :meth:`behavior_distance`."""
        return self.behavior_coef * self.behavior_distance(tensordict)

    def behavior_distance(self, tensordict: TensorDictBase) -> Tensor:
        """Squared distance of the mean action to the data's action at start states [B], per entry of the action.

        Raises:
            ValueError: if the start states carry no action, or the actor is no tanh-Gaussian.
        """
        if not self._tanh_gaussian:
            raise ValueError("the behaviour term needs a tanh-Gaussian actor with actions in [-1, 1].")
        keys, model = self.tensor_keys, self.world_model
        wanted = require(tensordict, keys.action, self)
        task = self._task(tensordict)
        if self.first_batch.due("actions", wanted):
            own = own_actions(model, task)
            self.first_batch.check(
                "actions", outside_unit(wanted, keys.action, self, own), not_representable(wanted, keys.action, self)
            )
        latent = self._start(model, tensordict, task)
        with swapped(self.actor_network, self.actor_network_params), self.memory.stepping():
            head = gaussian_head(self.actor_network, keys.latent)
            if head is None:
                state = self.memory.recall(state_at(latent, task, keys), self.memory.begin(tensordict))
                action = torch.tanh(self.actor_network.get_dist_params(state).get("loc"))
            else:
                action = torch.tanh(head(latent)[0])
        distance = (action - wanted.to(action.dtype)).square()
        masks = getattr(model, "action_masks", None)
        if masks is None:
            return self._reduce_loss(distance.mean(-1), None)
        mask = masks[task if task is not None else 0].expand_as(distance)
        return self._reduce_loss((distance * mask).sum(-1) / mask.sum(-1), None)

    def imagine(
        self, tensordict: TensorDictBase, noise: Tensor | None = None, heads: Tensor | None = None
    ) -> TensorDictBase:
        """Rolls the policy out inside the model.

        Args:
            tensordict (TensorDictBase): start states ``[B]``.
            noise (Tensor, optional): ``[H, B, A]``, instead of fresh Gaussian noise; zeros give the mean action.
            heads (Tensor, optional): of a model with K heads their order ``[K]``, instead of a random one: start state
                i keeps the head at its place i modulo K through the whole rollout.

        Returns:
            A TensorDict ``[B, H]`` with ``latent``, ``action``, ``("next", "latent")``, ``("next", "reward")`` and, of
            a model with a termination head, ``("next", "continuation")``, the probability that the episode goes on;
            differentiable with respect to the policy. The reward is in ``reward_space``.

        Raises:
            ValueError: if neither observation nor latent is there, or the noise has another shape.
        """
        self._check_noise(noise)
        task = self._task(tensordict)
        # Time comes first inside, so that entries of the batch broadcast over it.
        model = self.world_model
        acting = swapped(self.actor_network, self.actor_network_params)
        with frozen(model), acting, self.memory.stepping():
            latent = self._start(model, tensordict, task)
            context = self._context(model, task, heads, latent)
            mask = model.action_masks[task if task is not None else 0] if self.mask_actions else None
            if noise is None and self._tanh_gaussian and hasattr(model, "action_dim"):
                # In one draw, as one kernel.
                noise = latent.new_empty(self.horizon, *latent.shape[:-1], model.action_dim).normal_()
            held = self.memory.begin(tensordict)
            visited, taken = walk(self, model, latent, task, context, noise, mask, held, detach=self.detach_latent)
            reward = model.decode_reward(model.reward_logits(visited[:-1], taken, context), self.reward_space)
            ends = model.termination_logits(visited[1:], task) if getattr(model, "termination", False) else None
        if self.disagreement_coef:
            with frozen(self.disagreement):
                spread = self.disagreement(visited[:-1], taken, task)
            reward = reward - self.disagreement_coef * spread
        reward = reward if self.reward_scale == 1.0 else reward * self.reward_scale
        return self._as_rollout(task, visited, taken, reward, None if ends is None else torch.sigmoid(-ends))

    @torch.no_grad()
    def recorded_rollout(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Recorded sequences in the form of :meth:`imagine`'s rollouts, for :meth:`value_target` and
        :meth:`value_loss`.

        Critics that learn from real steps of their policy too, as DreamerV3's do (arXiv 2301.04104), value its real
        states as they are; those of imagination alone believe what the model promises there.

        Args:
            tensordict (TensorDictBase): sequences ``[B, T]`` of a policy near the actor, with ``observation``, here and
                under ``"next"``, ``("next", "reward")`` in raw units, ``("next", "done")`` and ``("next",
                "terminated")`` where episodes end in them, and, for a multi-task model, ``task``.

        Returns:
            A TensorDict ``[B, T]`` with latents, tasks and ends of both ends of each step, and the reward as it is
            summed.

        Raises:
            ValueError: if an entry is missing.

        Examples:
            >>> import torch
            >>> from torchrl_pwm import PWMWorldModel, make_pwm_actor, make_value_ensemble
            >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
            >>> loss = PWMLoss(make_pwm_actor(16, 2), make_value_ensemble(16), model)
            >>> step = TensorDict({"observation": torch.randn(4, 9, 5), "reward": torch.ones(4, 9, 1)}, [4, 9])
            >>> rollout = loss.recorded_rollout(step.select("observation").set("next", step))
            >>> loss.value_target(rollout).shape
            torch.Size([4, 9, 1])
        """
        keys, model = self.tensor_keys, self.world_model
        task = require(tensordict, keys.task, self) if getattr(model, "num_tasks", 0) else None
        rollout = TensorDict({}, tensordict.batch_size)
        for root in ((), ("next",)):
            observation = require(tensordict, unravel_key((*root, keys.observation)), self)
            rollout.set(unravel_key((*root, keys.latent)), model.encode_observation(observation, task))
            if task is not None:
                rollout.set(unravel_key((*root, keys.task)), task)
        reward = require(tensordict, unravel_key(("next", keys.reward)), self)
        reward = model.encode_reward(reward, self.reward_space) * self.reward_scale
        rollout.set(unravel_key(("next", keys.reward)), reward)
        for key in (keys.done, keys.terminated):
            ended = tensordict.get(unravel_key(("next", key)), None)
            if ended is not None:
                rollout.set(unravel_key(("next", key)), ended)
        return rollout

    def with_recorded(self, rows: TensorDictBase, recorded: TensorDictBase) -> TensorDictBase:
        """What critics learn from of imagined rollouts [B, H], and behind it of recorded sequences [N, T].

        With their targets, steps are learned from one by one: those of the sequences follow each other in rows of H.
        Steps that fill up a short episode are its last one once more, and learned from as such.

        Raises:
            ValueError: if their number is no multiple of H.
        """
        horizon, (count, steps) = rows.shape[-1], recorded.shape[-2:]
        if count * steps % horizon:
            raise ValueError(
                f"critics learn from recorded sequences [N, T] whose N * T is a multiple of the horizon {horizon}, "
                f"found {list(recorded.shape)}: take another number of them, or sequences of {horizon} steps."
            )
        further = self.critic_rows(self.recorded_rollout(recorded)).reshape(*rows.shape[:-2], -1, horizon)
        return torch.cat([rows, further], rows.ndim - 2)

    def start_latents(self, tensordict: TensorDictBase) -> TensorDictBase:
        """What :meth:`imagine` begins with: ``latent`` [B, D] and, of a model of several tasks, ``task`` [B]."""
        task = self._task(tensordict)
        starts = TensorDict({}, tensordict.batch_size)
        starts.set(self.tensor_keys.latent, self._start(self.world_model, tensordict, task))
        return starts if task is None else starts.set(self.tensor_keys.task, task)

    @staticmethod
    def _context(model: Any, task: Tensor | None, heads: Tensor | None, latent: Tensor) -> Any:
        """What the steps of a rollout get of the task; of a model with several heads each state keeps a random one."""
        if getattr(model, "num_heads", 1) > 1:
            if latent.ndim == 1:
                raise ValueError(
                    f"The heads of a model with num_heads={model.num_heads} are dealt out to the states of a batch: "
                    "give start states [B], a single one with tensordict.unsqueeze(0)."
                )
            return model.task_context(task, "one", heads)
        return model.task_context(task) if hasattr(model, "task_context") else task

    def _as_rollout(
        self, task: Tensor | None, visited: Tensor, taken: Tensor, reward: Tensor, going_on: Tensor | None
    ) -> TensorDictBase:
        keys, batch = self.tensor_keys, taken.shape[1:-1]
        rollout = TensorDict({}, [*batch, self.horizon])
        entries = [(keys.latent, visited[:-1]), (keys.action, taken)]
        entries += [(("next", keys.latent), visited[1:]), (("next", keys.reward), reward)]
        if going_on is not None:
            entries.append((("next", keys.continuation), going_on))
        if task is not None:
            # At both ends of each step, for critics that read it.
            entries += [(key, task.expand(self.horizon, *batch)) for key in (keys.task, ("next", keys.task))]
        for key, entry in entries:
            rollout.set(unravel_key(key), entry.movedim(0, len(batch)))
        return rollout

    def _task(self, tensordict: TensorDictBase) -> Tensor | None:
        """The task of each start state, checked; numbers are read at the first batch."""
        keys, model = self.tensor_keys, self.world_model
        observation, latent = tensordict.get(keys.observation, None), tensordict.get(keys.latent, None)
        start, axes = (
            (latent, 1) if observation is None else (observation, len(getattr(model, "observation_shape", "O")))
        )
        if start is None:
            return tensordict.get(keys.task, None)
        task = task_entry(tensordict, keys.task, model, self, start.shape[: start.ndim - axes])
        if self.first_batch.due("starts", start, task):
            observed = None if observation is None else not_representable(observation, keys.observation, self)
            known = out_of_range(task, getattr(model, "num_tasks", 0), keys.task, self)
            self.first_batch.check("starts", observed, known)
        return task

    @torch.no_grad()
    def _start(self, model: Any, tensordict: TensorDictBase, task: Tensor | None) -> Tensor:
        keys = self.tensor_keys
        observation = tensordict.get(keys.observation, None)
        if observation is not None:
            return model.encode_observation(observation, task)
        latent = tensordict.get(keys.latent, None)
        if latent is None:
            raise ValueError(
                f"PWMLoss needs start states under {keys.observation!r} or {keys.latent!r}, found the entries "
                f"{sorted(map(str, tensordict.keys()))}. Rename with loss.set_keys(observation=...)."
            )
        return latent.detach()
