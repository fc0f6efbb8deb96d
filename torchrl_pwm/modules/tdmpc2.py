"""TD-MPC2's model: PWM's world model with a policy prior and an ensemble of Q functions."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_pwm._utils.entries import require
from torchrl_pwm.modules.arguments import build_for, with_arguments
from torchrl_pwm.modules.checkpoints import layout_of, untold_arguments
from torchrl_pwm.modules.discounts import TaskDiscounts
from torchrl_pwm.modules.hub import Pretrained
from torchrl_pwm.modules.layers import ResetsItself, initialize, make_mlp
from torchrl_pwm.modules.policy import is_greedy
from torchrl_pwm.modules.presets import Preset
from torchrl_pwm.modules.q_ensemble import QEnsemble
from torchrl_pwm.modules.running_statistics import PercentileScale
from torchrl_pwm.modules.tdmpc2_checkpoints import check_world_model, read_tdmpc2, write_tdmpc2
from torchrl_pwm.modules.world_model import PWMWorldModel

Layout = Literal["old", "new"]
EntropyForm = Literal["current", "mid-2024"]

_HALF_LOG_2PI = math.log(2 * math.pi) / 2


class PolicySample(NamedTuple):
    """An action of the policy prior, [*, A] each: the action, tanh(mu), log sigma and the noise that was used."""

    action: Tensor
    mean: Tensor
    log_std: Tensor
    noise: Tensor


class TDMPC2Model(ResetsItself, TaskDiscounts, Pretrained, TensorDictModuleBase):
    """World model, policy prior, Q ensemble and target Q ensemble of TD-MPC2 (arXiv 2310.16828, section 3.1).

    The world model is a :class:`~torchrl_pwm.PWMWorldModel`: ``model.world_model`` goes into
    :class:`~torchrl_pwm.PWMLoss` as it is, and a world model that :class:`~torchrl_pwm.PWMWorldModelLoss` trained goes
    in here. With z the latent, e the task's embedding and m the task's action mask,

        mu, s = pi(z, e),   log sigma = lo + (hi - lo) (tanh s + 1) / 2,   a = tanh(m mu + exp(m log sigma) m eps),

    and each Q_q(z, e, a) is a distribution over the world model's two-hot bins.

    Args:
        world_model (PWMWorldModel): held, not copied. With ``action_dims`` it masks the entries of the action that a
            task does not have; without, every task has all of them.

    Keyword Args:
        units (sequence of int, optional): hidden layers of policy and Q functions. Default: those of the world model's
            dynamics.
        num_q (int): number of Q functions.
        dropout (float): of the Q functions, in training. The target ensemble and the planner never drop.
        episode_lengths (int or sequence of int): steps L of an episode, of every task or one number per task. The
            discount is clip((L/5 - 1) / (L/5), 0.95, 0.995), a buffer ``discount`` [max(num_tasks, 1)] that is saved
            and may be changed. Default: 500, so 0.99.
        episodic (bool): gives the world model a termination head, if it has none, for tasks that end before their time
            is over. Default: False, as the world model is.
        log_std_min, log_std_max (float): lo and hi.

    Raises:
        ValueError: if ``episode_lengths`` does not fit the tasks, an option is out of its range, or the world model
            normalises rewards (Q functions are in raw units).

    Keys (see :meth:`set_keys`): reads ``observation`` [*, O] and, with tasks, ``task`` [*];
    writes ``latent`` [*, D] and the policy prior's ``action`` [*, A]. It samples, or under
    ``set_exploration_type(ExplorationType.DETERMINISTIC)`` takes tanh(m mu).

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_pwm import PWMWorldModel
        >>> world_model = PWMWorldModel(5, 2, latent_dim=16, units=(32, 32), num_bins=11)
        >>> model = TDMPC2Model(world_model)
        >>> td = model(TensorDict({"observation": torch.randn(4, 5)}, [4]))
        >>> td["action"].shape, model.q_value(td["latent"], td["action"]).shape
        (torch.Size([4, 2]), torch.Size([4, 1]))
    """

    def __init__(
        self,
        world_model: PWMWorldModel,
        *,
        units: Sequence[int] | None = None,
        num_q: int = 5,
        dropout: float = 0.01,
        episode_lengths: int | Sequence[int] = 500,
        episodic: bool = False,
        log_std_min: float = -10,
        log_std_max: float = 2,
    ) -> None:
        super().__init__()
        self._remember_arguments(locals())
        check_world_model(world_model)
        if num_q < 2:
            raise ValueError(f"num_q must be at least 2, since values come from two members, found {num_q}.")
        if not log_std_min < log_std_max:
            raise ValueError(f"log_std_min must be below log_std_max, found {log_std_min} and {log_std_max}.")
        self.world_model = world_model
        self.log_std_min, self.log_std_max = log_std_min, log_std_max
        units = world_model.units if units is None else units
        state, action = world_model.latent_dim + world_model.task_dim, world_model.action_dim
        self.policy = make_mlp(state, units, 2 * action)
        self.q = QEnsemble(state + action, units, max(world_model.num_bins or 0, 1), num_q, dropout)
        self.target_q = copy.deepcopy(self.q).requires_grad_(False).eval()
        if episodic:
            world_model.add_termination_head()
        self.scale = PercentileScale()
        self._set_up_discounts(episode_lengths)
        initialize(self.policy)
        self.set_keys()

    @classmethod
    def from_preset(
        cls,
        preset: Preset,
        *,
        observation_dim: int,
        action_dim: int,
        num_tasks: int = 0,
        action_dims: Sequence[int] | None = None,
        episode_lengths: int | Sequence[int] = 500,
        **kwargs: Any,
    ) -> TDMPC2Model:
        """A model of a published size; see :meth:`PWMWorldModel.from_preset <torchrl_pwm.PWMWorldModel.from_preset>`.

        Examples:
            >>> model = TDMPC2Model.from_preset("5M", observation_dim=24, action_dim=6, num_tasks=30)
            >>> sum(p.numel() for p in model.parameters() if p.requires_grad)
            5241066
        """
        world_model = PWMWorldModel.from_preset(
            preset,
            observation_dim=observation_dim,
            action_dim=action_dim,
            num_tasks=num_tasks,
            action_dims=action_dims,
        )
        return cls(world_model, episode_lengths=episode_lengths, **kwargs)

    @classmethod
    def from_checkpoint(
        cls,
        path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any],
        *,
        action_dims: Sequence[int] | None = None,
        episode_lengths: int | Sequence[int] = 500,
        simnorm_dim: int = 8,
        vmin: float = -10.0,
        vmax: float = 10.0,
        dropout: float = 0.01,
    ) -> TDMPC2Model:
        """A model with the weights of a published TD-MPC2 checkpoint, mid-2024 or current, single- or multi-task.

        Every size is inferred from the weights. Of the mid-2024 layout's quirks one is not repeated: its dropout
        stayed active in evaluation.

        Args:
            path_or_state_dict: a ``.pt`` file (loaded without executing any pickled code), ``{"model": ...}`` or the
                state dict itself.

        Keyword Args:
            action_dims: action size of each task; mid-2024 checkpoints of many tasks do not hold it, and need it.
            episode_lengths: see the class, for the discounts, which no checkpoint holds: for MT80
                ``[task.episode_length for task in MT80]``.
            simnorm_dim, vmin, vmax, dropout: what the weights do not tell.

        Raises:
            ValueError: if the layout is unknown or incomplete (with the offending keys), or ``action_dims`` is missing
                or does not fit.
            FileNotFoundError: if the path does not exist.

        Examples:
            >>> from torchrl_pwm import PWMWorldModel
            >>> model = TDMPC2Model(PWMWorldModel(5, 2, latent_dim=16, units=(32, 32), num_bins=11))
            >>> TDMPC2Model.from_checkpoint(model.to_checkpoint("old")).q.num_nets
            5
        """
        published = read_tdmpc2(path_or_state_dict, action_dims=action_dims)
        arguments = untold_arguments(published.world_sizes, simnorm_dim=simnorm_dim, vmin=vmin, vmax=vmax)
        with layout_of(path_or_state_dict):
            try:
                world_model = build_for(published.world_weights, PWMWorldModel, arguments)
                world_model.load_state_dict(published.world_weights)
                model = cls(world_model, **published.head_sizes, dropout=dropout, episode_lengths=episode_lengths)
                model._load_heads(published.head_weights)
            except (RuntimeError, TypeError, OverflowError) as error:
                raise ValueError(f"Inconsistent checkpoint: its parts do not fit together. {error}") from error
        return model

    def to_checkpoint(self, layout: Layout = "new", *, statistics: bool = False) -> dict[str, dict[str, Any]]:
        """``{"model": state dict}`` as the published code saves it, in the mid-2024 (``"old"``) or current layout.

        Discounts and return scale are in neither: ``state_dict()`` has them.

        Args:
            layout: ``"new"`` or ``"old"``.
            statistics: whether observation statistics of the world model are written too. :meth:`from_checkpoint` and
                :meth:`~torchrl_pwm.PWMWorldModel.from_tdmpc2` read them, the published code does not.

        Raises:
            ValueError: if the layout is another, or cannot hold this model.

        Examples:
            >>> from torchrl_pwm import PWMWorldModel
            >>> model = TDMPC2Model(PWMWorldModel(5, 2, latent_dim=16, units=(32, 32), num_bins=11))
            >>> [key for key in model.to_checkpoint("new")["model"] if key.endswith("2.bias")][-1]
            '_target_Qs_params.2.bias'
        """
        state = write_tdmpc2(
            self.world_model.state_dict(),
            self.state_dict(),
            layout,
            log_std_limits=(self.log_std_min, self.log_std_max),
            num_tasks=self.world_model.num_tasks,
            action_masks=self.world_model.action_masks,
            statistics=statistics,
        )
        return {"model": with_arguments(state, self.world_model.constructor_arguments)}

    @property
    def _untold(self) -> tuple[str, ...]:
        return ("log_std_min", "log_std_max")

    @property
    def constructor_arguments(self) -> dict[str, Any]:
        """The arguments of the constructor, with those of the world model, as plain numbers, lists and dictionaries."""
        return {"world_model": self.world_model.constructor_arguments, **super().constructor_arguments}

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> TDMPC2Model:
        """A new model that is built as :attr:`constructor_arguments` of another one say."""
        return cls(**{**arguments, "world_model": PWMWorldModel(**arguments["world_model"])})

    def _load_heads(self, weights: Mapping[str, Tensor]) -> None:
        own = self.state_dict()
        wrong = [key for key, value in weights.items() if own[key].shape != value.shape]
        if wrong:
            shapes = [f"{key} {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}" for key in wrong[:4]]
            raise ValueError(f"Inconsistent checkpoint: the sizes of its parts do not fit together, found {shapes}.")
        self.load_state_dict({**own, **weights})

    def reset_parameters(self) -> None:
        """Starts everything afresh, the world model and the scale too; the target becomes a copy of the Q functions."""
        self.world_model.reset_parameters()
        self.q.reset_parameters()
        self.target_q.load_state_dict(self.q.state_dict())
        self.scale.reset_parameters()
        initialize(self.policy)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Files of earlier versions hold the termination head beside the world model.
        earlier = f"{prefix}termination_head."
        for key in [key for key in state_dict if key.startswith(earlier)]:
            state_dict[f"{prefix}world_model._termination.{key[len(earlier) :]}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> TDMPC2Model:
        super().train(mode)
        self.target_q.eval()
        return self

    # Tensor forms, used in hot loops. `task` is an index or indices that broadcast to [*].

    def act(self, latent: Tensor, task: Tensor | int | None = None, noise: Tensor | None = None) -> PolicySample:
        """The policy prior at ``latent`` [*, D]; ``noise`` [*, A] instead of fresh Gaussian noise."""
        mean, spread = self.policy(self.world_model.join(latent, task)).chunk(2, -1)
        log_std = self.log_std_min + (self.log_std_max - self.log_std_min) * (spread.tanh() + 1) / 2
        noise = torch.randn_like(mean) if noise is None else noise
        mask = self.action_mask(task)
        if mask is not None:
            mean, log_std, noise = mean * mask, log_std * mask, noise * mask
        return PolicySample((mean + log_std.exp() * noise).tanh(), mean.tanh(), log_std, noise)

    def entropies(
        self, sample: PolicySample, task: Tensor | int | None = None, form: EntropyForm = "current"
    ) -> tuple[Tensor, Tensor]:
        """One-sample entropy -log pi(a) and the scaled entropy that the policy maximises, [*, 1] each.

        With g the Gaussian log density of the noise and n the task's action size, log pi = g - sum log(1 - a^2).
        ``"current"`` scales by n g / log pi, so that -n g remains, as the published code has it; ``"mid-2024"`` takes
        -(n (sum(-eps^2/2 - log sigma) - log(2 pi)/2) - sum log(1 - a^2)).
        """
        if form not in ("current", "mid-2024"):
            raise ValueError(f'The form of the entropy must be "current" or "mid-2024", found {form!r}.')
        density = -sample.noise.square() / 2 - sample.log_std
        squash = (torch.relu(1 - sample.action.square()) + 1e-6).log().sum(-1, keepdim=True)
        mask = self.action_mask(task)
        size = sample.action.shape[-1] if mask is None else mask.sum(-1, keepdim=True)
        gaussian = (density - _HALF_LOG_2PI).sum(-1, keepdim=True)
        log_prob = gaussian - squash
        if form == "mid-2024":
            return -log_prob, squash - size * (density.sum(-1, keepdim=True) - _HALF_LOG_2PI)
        return -log_prob, -log_prob * (size * gaussian / (log_prob + 1e-8))

    def q_logits(
        self,
        latent: Tensor,
        action: Tensor,
        task: Tensor | int | None = None,
        *,
        members: Tensor | None = None,
        target: bool = False,
        dropout: bool = True,
    ) -> Tensor:
        """Logits [num_q, *, K] of each Q function, or [n, *, K] of ``members`` [n]; ``target``: of the slow copy."""
        joint = self.world_model.join(latent, task, action)
        return (self.target_q if target else self.q)(joint, members, dropout=dropout)

    def q_value(
        self,
        latent: Tensor,
        action: Tensor,
        task: Tensor | int | None = None,
        *,
        reduce: Literal["min", "avg"] = "avg",
        members: Tensor | None = None,
        target: bool = False,
        dropout: bool = True,
    ) -> Tensor:
        """Minimum or mean, [*, 1] in raw units, over ``members``: by default two that are drawn at random."""
        if reduce not in ("min", "avg"):
            raise ValueError(f'reduce must be "min" or "avg", found {reduce!r}.')
        if members is None:
            members = torch.randperm(self.q.num_nets, device=latent.device)[:2]
        logits = self.q_logits(latent, action, task, members=members, target=target, dropout=dropout)
        values = self.world_model.codec.decode(logits)
        return values.amin(0) if reduce == "min" else values.mean(0)

    @property
    def termination_head(self) -> nn.Sequential | None:
        """The world model's termination head, if it has one."""
        return self.world_model.termination_network

    def termination_logits(self, latent: Tensor, task: Tensor | int | None = None) -> Tensor:
        """Logits [*, 1] of an episode's end at ``latent`` [*, D]; see :meth:`PWMWorldModel.termination_logits`."""
        return self.world_model.termination_logits(latent, task)

    def action_mask(self, task: Tensor | int | None = None) -> Tensor | None:
        """[*, A]: 1 where the task has an action, 0 in its padding; ``None`` if all have all."""
        masks = self.world_model.action_masks
        return None if masks is None else masks[task if task is not None and self.world_model.num_tasks else 0]

    @torch.no_grad()
    def update_target(self, tau: float = 0.01) -> None:
        """target <- lerp(target, Q, tau)."""
        torch._foreach_lerp_(list(self.target_q.params), list(self.q.params), tau)

    # TensorDict form.

    def set_keys(self, **keys: NestedKey) -> None:
        """Renames the entries that are read and written; see :meth:`PWMWorldModel.set_keys`."""
        self.world_model.set_keys(**keys)
        names = self.world_model.tensor_keys
        self.in_keys = [names.observation, *([names.task] if self.world_model.num_tasks else [])]
        self.out_keys = [names.latent, names.action]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the latent and the policy prior's action."""
        model, keys = self.world_model, self.world_model.tensor_keys
        task = tensordict.get(keys.task, None) if model.num_tasks else None
        observation = require(tensordict, keys.observation, self, "Rename what it reads with model.set_keys(...).")
        latent = model.encode_observation(observation, task)
        if is_greedy():
            # Nothing is drawn for what needs no noise; exported programs could not.
            action = self.act(latent, task, latent.new_zeros(()).expand(*latent.shape[:-1], model.action_dim)).mean
        else:
            action = self.act(latent, task).action
        return tensordict.set(keys.latent, latent).set(keys.action, action)
