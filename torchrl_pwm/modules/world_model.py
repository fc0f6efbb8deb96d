"""PWM's world model: encoder, latent dynamics and reward head, with SimNorm latents and task embeddings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.modules import symlog

from torchrl_pwm._utils.ranges import COUNT, check_range
from torchrl_pwm.modules.arguments import build_for
from torchrl_pwm.modules.checkpoints import layout_of, read_quickstart, read_world_model, untold_arguments
from torchrl_pwm.modules.decoder import ObservationDecoder
from torchrl_pwm.modules.heads import StackedMLP
from torchrl_pwm.modules.hub import Pretrained
from torchrl_pwm.modules.latent_steps import LatentSteps
from torchrl_pwm.modules.layers import ResetsItself, ResidualLatent, SimNorm, initialize, make_mlp
from torchrl_pwm.modules.multitask import action_masks
from torchrl_pwm.modules.new_task import GrowingTasks
from torchrl_pwm.modules.own_encoder import OwnEncoder, observation_shape
from torchrl_pwm.modules.presets import Preset, preset_sizes
from torchrl_pwm.modules.stacks import Form
from torchrl_pwm.modules.standardization import Standardization
from torchrl_pwm.modules.two_hot import RewardSpace, TwoHotCodec
from torchrl_pwm.modules.world_model_entries import WorldModelEntries


class PWMWorldModel(
    ResetsItself, Pretrained, Standardization, GrowingTasks, LatentSteps, ObservationDecoder, WorldModelEntries
):
    """The multi-task world model of PWM and TD-MPC2, a :class:`torchrl.modules.WorldModel`.

    z = enc(o, e),  z' = dyn(z, e, a),  r = rew(z, e, a), with e the task's embedding (PWM, arXiv 2407.02466,
    section 4; TD-MPC2, arXiv 2310.16828, section 3). Latents end in SimNorm. With bins the reward head is a
    distribution over two-hot bins in symlog space; without, a scalar. Where episodes can end, a termination head gives
    the probability that one has ended at a latent, end(z', e) (TD-MPC2's episodic form; DreamerV3, arXiv 2301.04104,
    has its complement). The state dict has the published layout.

    Args:
        observation_dim (int): size O of ``observation`` [*, O] (padded to the largest task); with an ``encoder`` of
            your own the shape of one observation, such as ``(3, 64, 64)``.
        action_dim (int): size A of ``action`` [*, A] in [-1, 1] (padded likewise).

    Keyword Args:
        latent_dim (int): size D of ``latent`` [*, D], a multiple of ``simnorm_dim``.
        encoder_units, units (sequence of int): hidden layers of the encoder, and of dynamics and reward head.
        simnorm_dim (int): SimNorm group size; 0 for plain Mish latents.
        residual (bool): whether the dynamics network gives the change of the latent, see :class:`.ResidualLatent`, in
            place of the next one. Not in the paper. Where a step changes little it needs far fewer updates.
        encoder_norm (bool): of a residual model, whether its encoder ends in a LayerNorm, as that of others always
            does. Without it its latents begin close to uniform. Default: False.
        num_heads (int): number of dynamics and reward heads on the one encoder, trained on every batch. In
            imagination a state keeps one of them, drawn at random (trajectory sampling of PETS, arXiv 1805.12114);
            elsewhere their mean counts, see :meth:`task_context`. Default: 1, as published.
        decoder (bool): whether to have an observation decoder, an MLP of the encoder's layers in reverse, which
            :class:`~torchrl_pwm.PWMWorldModelLoss` trains with the model; see :meth:`decode_observation`. It keeps the
            latent readable where rewards are rare. Default: False, as published; :meth:`add_decoder` adds it later.
        num_bins (int, optional): number K of reward bins; ``None`` for a scalar head.
        vmin, vmax (float): range of the bins, in symlog space.
        num_tasks (int): number of tasks; ``0`` for a single-task model, which has no embedding.
        task_dim (int): size E of the task embedding.
        action_dims (sequence of int, optional): action size of each task, for ``action_masks`` [num_tasks, A].
        observation_dims (sequence of int, optional): observation size of each task, for ``observation_masks``
            [num_tasks, O], the entries that the decoder learns. Default: all.
        normalize_rewards (bool): the scalar head predicts (r - mean) / sqrt(var + 1e-5) by running moments, which
            :class:`~torchrl_pwm.PWMWorldModelLoss` updates in training (published single-task runs). Default: False.
        observation_clip (float, optional): largest absolute value of an observation that statistics standardised (see
            :meth:`set_observation_statistics`). Published single-task runs with statistics: 5. Default: none.
        termination (bool): whether to have a termination head, for tasks that end before their time is over. Default:
            False, as published; :meth:`add_termination_head` adds it later.
        encoder (nn.Module, optional): your own, from observations ``[n, *shape]`` (and embeddings ``[n, E]`` of a model
            with tasks) to features ``[n, D]``, which are then normalised as every latent is. It trains with the model.
            Default: the published MLP with ``encoder_units``.

    Raises:
        ValueError: if sizes do not fit together; at a call, if an input has the wrong size or the task is missing, of
            another shape or dtype, or none of the model's.

    Observations and actions of another dtype are cast to the model's: float64 and whole numbers are read as they are.

    Keys (see :meth:`set_keys`): reads ``observation``, ``action`` and, with tasks, ``task`` [*] (int64); writes
    ``latent``, ``("next", "latent")``, ``("next", "reward")`` [*, 1] in raw units, with bins
    ``("next", "reward_logits")`` [*, K] and, with a termination head, ``("next", "termination_logits")`` [*, 1].

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> td = model(TensorDict({"observation": torch.randn(4, 5), "action": torch.zeros(4, 2)}, [4]))
        >>> td["next", "latent"].shape, td["next", "reward"].shape
        (torch.Size([4, 16]), torch.Size([4, 1]))
    """

    action_masks: Tensor | None

    def __init__(
        self,
        observation_dim: int | Sequence[int],
        action_dim: int,
        *,
        latent_dim: int = 512,
        encoder_units: Sequence[int] = (256,),
        units: Sequence[int] = (512, 512),
        simnorm_dim: int = 8,
        residual: bool = False,
        encoder_norm: bool = False,
        num_heads: int = 1,
        decoder: bool = False,
        num_bins: int | None = None,
        vmin: float = -10.0,
        vmax: float = 10.0,
        num_tasks: int = 0,
        task_dim: int = 0,
        action_dims: Sequence[int] | None = None,
        observation_dims: Sequence[int] | None = None,
        normalize_rewards: bool = False,
        observation_clip: float | None = None,
        termination: bool = False,
        encoder: nn.Module | None = None,
    ) -> None:
        # WorldModel's own constructor registers each part three times, which would triple the state dict.
        TensorDictModuleBase.__init__(self)
        self._remember_arguments(locals())
        check_range(COUNT, action_dim=action_dim, latent_dim=latent_dim, num_heads=num_heads)
        if simnorm_dim and latent_dim % simnorm_dim:
            raise ValueError(f"latent_dim must be a multiple of simnorm_dim={simnorm_dim}, found {latent_dim}.")
        if encoder_norm and (not residual or not simnorm_dim or encoder is not None):
            raise ValueError(
                "encoder_norm=True is for residual=True with SimNorm and the published encoder, found "
                f"residual={residual}, simnorm_dim={simnorm_dim}, encoder={type(encoder).__name__}: other latents are "
                "normalised there already, and an encoder of your own may end in a norm. Leave it out."
            )
        if bool(num_tasks) != bool(task_dim):
            raise ValueError(
                f"num_tasks and task_dim go together, found num_tasks={num_tasks} and task_dim={task_dim}: "
                "give both, or neither for a single-task model."
            )
        if normalize_rewards and num_bins:
            raise ValueError(
                f"normalize_rewards needs a scalar reward head (num_bins=None), found num_bins={num_bins}: bins in "
                "symlog space cover every scale as they are."
            )
        self.observation_shape = observation_shape(observation_dim)
        vectors = len(self.observation_shape) == 1
        if encoder is None and not vectors:
            raise ValueError(
                f"The published encoder reads vectors, found observation_dim={observation_dim}: give encoder=, a "
                f"network from [n, {', '.join(map(str, self.observation_shape))}] to [n, {latent_dim}], or put "
                "TorchRL's FlattenObservation in front."
            )
        self.observation_dim: Any = self.observation_shape[0] if vectors else self.observation_shape
        self.action_dim, self.latent_dim = action_dim, latent_dim
        self.num_tasks, self.task_dim = num_tasks, task_dim
        self.encoder_units = tuple(encoder_units)
        self.num_bins, self.units, self.num_heads = num_bins, tuple(units), num_heads
        self.codec = TwoHotCodec(num_bins or 0, vmin, vmax)
        joint = latent_dim + task_dim + action_dim
        shape = (lambda: SimNorm(simnorm_dim)) if simnorm_dim else nn.Mish
        self._latents = ResidualLatent(simnorm_dim) if residual else None
        self._indices_seen = False  # of a task, on a GPU
        # In the published order, so that state dicts and optimiser states line up.
        self._task_emb = nn.Embedding(num_tasks, task_dim, max_norm=1) if num_tasks else None
        # A residual encoder with a norm ends as the published one does, in its own SimNorm.
        self._normalizes_features = residual and not encoder_norm
        last = None if self._normalizes_features else shape()
        if encoder is None:
            inputs = self.observation_shape[0] + task_dim
            self._encoder: nn.Module = make_mlp(inputs, encoder_units, latent_dim, last)
        else:
            self._encoder = OwnEncoder(encoder, self.observation_shape, latent_dim, last or nn.Identity())
        self._dynamics: nn.Sequential
        self._reward: nn.Sequential
        if num_heads == 1:
            self._dynamics = make_mlp(joint, units, latent_dim, None if residual else shape())
            self._reward = make_mlp(joint, units, max(num_bins or 0, 1))
        else:
            form = Form() if residual else Form("norm_simplex", size=simnorm_dim) if simnorm_dim else Form("norm_mish")
            self._dynamics = StackedMLP(num_heads, joint, units, latent_dim, form)
            self._reward = StackedMLP(num_heads, joint, units, max(num_bins or 0, 1))
        self._termination = make_mlp(latent_dim + task_dim, units, 1) if termination else None
        self._set_up_decoder(decoder, observation_dims)
        self.register_buffer("action_masks", action_masks(action_dims, num_tasks, action_dim), persistent=False)
        self._set_up_standardization(normalize_rewards, observation_clip)
        self.reset_parameters()
        self.tensor_keys = self._AcceptedKeys()
        self.set_keys()

    @classmethod
    def from_preset(
        cls,
        preset: Preset,
        *,
        observation_dim: int,
        action_dim: int,
        num_tasks: int = 0,
        task_dim: int | None = None,
        num_bins: int | None = 101,
        **kwargs: Any,
    ) -> PWMWorldModel:
        """A model of a published size: ``"5M"``, ``"19M"``, ``"48M"`` or ``"317M"``.

        ``task_dim`` defaults to the published sizes: 64 up to 30 tasks, 96 beyond and for 317M.

        Raises:
            ValueError: if the preset is unknown.

        Examples:
            >>> model = PWMWorldModel.from_preset("5M", observation_dim=39, action_dim=6, num_tasks=80)
            >>> sum(p.numel() for p in model.parameters())
            1650277
        """
        sizes = preset_sizes(preset, num_tasks)
        if task_dim is not None:
            sizes["task_dim"] = task_dim
        return cls(observation_dim, action_dim, **{**sizes, "num_bins": num_bins, **kwargs})

    @classmethod
    def from_tdmpc2(
        cls,
        path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any],
        *,
        action_dims: Sequence[int] | None = None,
        simnorm_dim: int = 8,
        vmin: float = -10.0,
        vmax: float = 10.0,
    ) -> PWMWorldModel:
        """A model with the weights of a published TD-MPC2 or PWM checkpoint.

        Every size is inferred from the weights; both TD-MPC2 layouts and PWM's are read, single- and multi-task. A
        state dict of this package says how its model was built; see also :func:`~torchrl_pwm.load_world_model`.

        Args:
            path_or_state_dict: a ``.pt`` file (loaded without executing any pickled code), ``{"model": ...}`` or
                the state dict itself.

        Keyword Args:
            action_dims: action size of each task; default: what the checkpoint says, if it does.
            simnorm_dim, vmin, vmax: what the weights do not tell.

        Raises:
            DamagedFileError: if the file is no checkpoint.
            ValueError: if the layout is not known (with the offending keys), its parts do not fit together, or
                ``action_dims`` does not fit.
            FileNotFoundError: if the path does not exist.

        Examples:
            >>> source = PWMWorldModel(5, 2, latent_dim=16, units=(32, 32))
            >>> PWMWorldModel.from_tdmpc2(source.state_dict()).latent_dim
            16
        """
        sizes, weights = read_world_model(path_or_state_dict, action_dims=action_dims)
        arguments = untold_arguments(sizes, simnorm_dim=simnorm_dim, vmin=vmin, vmax=vmax)
        with layout_of(path_or_state_dict):
            try:
                model: PWMWorldModel = build_for(weights, cls, arguments)
                model.load_state_dict(weights)
            except (RuntimeError, TypeError, OverflowError) as error:
                raise ValueError(f"Inconsistent checkpoint: its parts do not fit together. {error}") from error
        return model

    @classmethod
    def from_quickstart(cls, file: str | os.PathLike[str] | None = None) -> PWMWorldModel:
        """The small, frozen model of a few MT80 tasks that comes with the package; see :func:`.load_quickstart`.

        Examples:
            >>> PWMWorldModel.from_quickstart().num_tasks
            80
        """
        contents = read_quickstart(file)
        return cls.from_tdmpc2(contents.weights, **contents.options).requires_grad_(False)

    def reset_parameters(self) -> None:
        """Truncated normal weights (std 0.02), zero biases, embedding in [-0.02, 0.02], last reward weight 0.

        A residual model begins with dynamics that change nothing. An encoder of your own stays as it is.
        """
        initialize(self, leave=self._encoder if isinstance(self._encoder, OwnEncoder) else None)
        for head in (self._reward, self._dynamics) if self._latents is not None else (self._reward,):
            nn.init.zeros_(head.get_parameter(f"{len(head) - 1}.weight"))

    def add_termination_head(self) -> None:
        """Adds a termination head, untrained, to a model that has none; the other weights stay as they are."""
        if self._termination is None:
            head = make_mlp(self.latent_dim + self.task_dim, self.units, 1)
            initialize(head)
            self._termination = head.to(next(self.parameters()))
            self._change_arguments(termination=True)
            self.set_keys()

    @property
    def termination(self) -> bool:
        """Whether the model has a termination head."""
        return self._termination is not None

    @property
    def _untold(self) -> tuple[str, ...]:
        return ("simnorm_dim", "residual", "observation_clip", *(("vmin", "vmax") if self.num_bins else ()))

    @property
    def encoder_network(self) -> nn.Module:
        """The layers of the encoder, with their parameters."""
        return self._encoder

    @property
    def dynamics_network(self) -> nn.Sequential:
        """The layers of the dynamics, with their parameters."""
        return self._dynamics

    @property
    def reward_network(self) -> nn.Sequential:
        """The layers of the reward head, with their parameters."""
        return self._reward

    @property
    def termination_network(self) -> nn.Sequential | None:
        """The layers of the termination head, with their parameters, if there is one."""
        return self._termination

    # Tensor forms, used in hot loops.

    def encode_observation(self, observation: Tensor, task: Tensor | int | None = None) -> Tensor:
        """z = enc(o, e): ``[*, O]`` to ``[*, D]``. ``task`` is an index or indices that broadcast to ``[*]``."""
        observation = self._read("observation", observation, self.observation_shape)
        if self.num_tasks and task is not None:
            task = self._known(task, observation.shape[: observation.ndim - len(self.observation_shape)])
        observation = self.standardize_observation(observation, task)
        if isinstance(self._encoder, OwnEncoder):
            embedding = None if self._task_emb is None else self._embed(task, device=observation.device)
            latent = self._encoder(observation, embedding)
        else:
            latent = self._encoder(self.join(observation, task))
        return self._latents(latent) if self._latents is not None and self._normalizes_features else latent

    def decode_reward(self, logits: Tensor, space: RewardSpace = "raw") -> Tensor:
        """Logits ``[*, K]`` to rewards ``[*, 1]``, in raw units or as the head has them: in symlog space with bins,
        normalised with ``normalize_rewards``, else the same.

        With a termination head a normalised reward is the raw one over its root mean square, without a shift: an
        episode that has ended earns 0, which must stay 0.
        """
        reward, moments = self.codec.decode(logits, space), self.reward_moments
        if moments is None or (space != "raw" and not self.termination):
            return reward
        raw = moments.unnormalize(reward)
        return raw if space == "raw" else raw / (moments.std.square() + moments.mean.square()).sqrt()

    def encode_reward(self, reward: Tensor, space: RewardSpace = "raw") -> Tensor:
        """Raw rewards ``[*]`` in the units in which :meth:`decode_reward` gives predicted ones."""
        moments = self.reward_moments
        if space == "raw" or (moments is None and not self.num_bins):
            return reward
        if moments is None:
            return symlog(reward)
        if self.termination:
            return reward / (moments.std.square() + moments.mean.square()).sqrt()
        return moments.normalize(reward)

    def termination_logits(self, latent: Tensor, task: Tensor | int | None = None) -> Tensor:
        """Logits ``[*, 1]`` of the probability that an episode has ended at the latent ``[*, D]`` just reached.

        Raises:
            ValueError: if the model has no termination head.
        """
        if self._termination is None:
            raise ValueError("This model has no termination head: build it with termination=True.")
        return self._termination(self.join(latent, task))
