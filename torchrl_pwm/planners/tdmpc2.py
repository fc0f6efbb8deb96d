"""TD-MPC2's planner as a TorchRL policy."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor

from torchrl_pwm._utils.devices import readable
from torchrl_pwm.modules.policy import is_greedy
from torchrl_pwm.modules.tdmpc2 import TDMPC2Model
from torchrl_pwm.planners.mppi import PlannerNoise, PlannerSettings, draw_noise, plan_actions


class TDMPC2Planner(TensorDictModuleBase):
    """Acts by planning in a :class:`~torchrl_pwm.TDMPC2Model`: policy-seeded MPPI (arXiv 2310.16828, section 3.2).

    At every step ``num_samples`` action sequences, some of them rollouts of the policy prior, are tried in the model,

        v = sum_h g^h r_h + g^H Q(z_H, pi(z_H)),   score = softmax(temperature (v - max v)) over the best,

    and a Gaussian is refitted to the best ones; it starts from the previous plan, moved on by one step, with standard
    deviation ``max_std``. The first action of one of them, drawn by score, is taken, with the Gaussian's noise unless
    ``set_exploration_type(ExplorationType.DETERMINISTIC)`` asks for none.

    Any batch of envs is planned in one call, and each may have its own task. Plans are kept from call to call, env
    by env: one whose ``is_init`` is true starts afresh, and so do all when their number changes. So every batch
    of envs needs a planner of its own, one to collect and one to evaluate; planners may share a model. Nothing has a
    gradient, and dropout is off.

    Args:
        model (TDMPC2Model): the model; its parameters are the planner's.

    Keyword Args:
        horizon (int): steps H that are planned.
        iterations (int, optional): of the search. Default: 6, and 8 from 20 action entries on.
        num_samples, num_policy_rollouts, num_elites (int): sequences tried, how many of them are rollouts of the
            policy prior, and how many count.
        temperature (float): of the scores, an inverse one.
        min_std, max_std (float): limits of the Gaussian's standard deviation.
        plan (bool): False acts with the policy prior alone, by the same keys.
        generator (torch.Generator, optional): of all draws, on the model's device; saved with the planner. Default:
            torch's global one.
        init_key (NestedKey): entry that is true where an episode begins, from TorchRL's ``InitTracker``.

    Raises:
        ValueError: if sizes do not fit together; at a call, if an entry is missing or has another shape.
        FloatingPointError: at a call, if a plan is not finite; the envs and tasks are named.

    Reads ``observation`` [*, O], ``task`` [*] of a multi-task model and ``is_init`` [*, 1]; writes ``action`` [*, A] in
    [-1, 1], zero in the padding of a task.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_pwm import PWMWorldModel, TDMPC2Model
        >>> model = TDMPC2Model(PWMWorldModel(5, 2, latent_dim=16, units=(32, 32), num_bins=11))
        >>> planner = TDMPC2Planner(model, num_samples=32, num_policy_rollouts=4, num_elites=8)
        >>> td = TensorDict({"observation": torch.randn(4, 5), "is_init": torch.ones(4, 1, dtype=torch.bool)}, [4])
        >>> planner(td)["action"].shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        model: TDMPC2Model,
        *,
        horizon: int = 3,
        iterations: int | None = None,
        num_samples: int = 512,
        num_policy_rollouts: int = 24,
        num_elites: int = 64,
        temperature: float = 0.5,
        min_std: float = 0.05,
        max_std: float = 2.0,
        plan: bool = True,
        generator: torch.Generator | None = None,
        init_key: NestedKey = "is_init",
    ) -> None:
        super().__init__()
        if iterations is None:
            iterations = 8 if model.world_model.action_dim >= 20 else 6
        self.settings = PlannerSettings(
            horizon, iterations, num_samples, num_policy_rollouts, num_elites, temperature, min_std, max_std
        )
        self.model, self.plan, self.generator = model, plan, generator
        self.init_key = unravel_key(init_key)
        #: mean [H, B, A] of the last plans, of the envs in the order of the flattened batch; None before a first plan.
        self.previous_mean: Tensor | None = None
        # In a place of its own, so that a compiled function can stand here.
        self.plan_actions = plan_actions
        keys = model.world_model.tensor_keys
        self.in_keys = [*model.in_keys, *([self.init_key] if plan else [])]
        self.out_keys = [keys.action]

    @property
    def exported_form(self) -> TDMPC2Model:
        """What :func:`~torchrl_pwm.export_policy` exports in place of it: the policy prior.

        Raises:
            ValueError: for a planner that plans.
        """
        if self.plan:
            raise ValueError(
                "TD-MPC2's planner searches with random numbers at every step and is not exported; export its policy "
                "prior instead: planner.model, or load_policy(run, plan=False)."
            )
        return self.model

    def reset(self) -> None:
        """Forgets all plans."""
        self.previous_mean = None

    def get_extra_state(self) -> dict[str, Any]:
        """The plans and the generator, for ``state_dict()``."""
        state = None if self.generator is None else self.generator.get_state()
        return {"previous": None if self.previous_mean is None else self.previous_mean.clone(), "generator": state}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores both.

        Raises:
            ValueError: if one of the two planners has a generator of its own and the other has none.
        """
        if (state["generator"] is None) != (self.generator is None):
            raise ValueError(
                "The saved planner and this one must agree on whether they have a generator of their own; found "
                f"{'none' if self.generator is None else 'one'} here. Build it as the saved one was."
            )
        if self.generator is not None:
            self.generator.set_state(state["generator"])
        self.previous_mean = None if state["previous"] is None else state["previous"].clone()

    @dispatch(auto_batch_size=False)
    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase, noise: PlannerNoise | None = None) -> TensorDictBase:
        """Writes the action; ``noise`` replaces all random draws, with B the number of envs."""
        world_model, keys = self.model.world_model, self.model.world_model.tensor_keys
        batch = self._batch(tensordict)
        observation = self._read(tensordict, keys.observation, batch, world_model.observation_shape)
        task = self._read(tensordict, keys.task, batch, ()) if world_model.num_tasks else None
        latent = world_model.encode_observation(observation, task)
        if self.plan:
            begins = self._read(tensordict, self.init_key, batch, (1,))
            action = self._search(begins, latent, task, noise)
        else:
            sample = self.model.act(latent, task, self._policy_noise(latent, noise))
            action = sample.mean if is_greedy() else sample.action
        return tensordict.set(keys.action, action.reshape(*batch, -1))

    def _search(self, begins: Tensor, latent: Tensor, task: Tensor | None, noise: PlannerNoise | None) -> Tensor:
        previous = self._warm_start(begins, latent)
        if noise is None:
            noise = draw_noise(self.settings, self.model, latent, self.generator)
        greedy, explored, plan = self.plan_actions(self.model, latent, task, previous, noise, self.settings)
        finite = plan.mean.isfinite().all(-1).all(0) & plan.value.isfinite().all(0)
        if readable(finite) and not finite.all():
            self._refuse(~finite, latent, task)
        self.previous_mean = plan.mean.clone()
        return greedy if is_greedy() else explored

    def _warm_start(self, begins: Tensor, latent: Tensor) -> Tensor:
        """The previous plan [H, B, A], zero where an episode begins or nothing is known."""
        shape = (self.settings.horizon, latent.shape[0], self.model.world_model.action_dim)
        previous = self.previous_mean
        if previous is None or previous.shape != shape:
            return latent.new_zeros(shape)
        return torch.where(begins, 0.0, previous.to(latent))

    def _policy_noise(self, latent: Tensor, noise: PlannerNoise | None) -> Tensor:
        if noise is not None:
            return noise.action
        shape = (latent.shape[0], self.model.world_model.action_dim)
        return torch.randn(shape, generator=self.generator, dtype=latent.dtype, device=latent.device)

    def _batch(self, tensordict: TensorDictBase) -> torch.Size:
        """The batch of envs; plain tensors come in a TensorDict without one."""
        world_model = self.model.world_model
        observation = tensordict.get(world_model.tensor_keys.observation, None)
        if observation is None or tensordict.batch_size:
            return tensordict.batch_size
        return observation.shape[: observation.ndim - len(world_model.observation_shape)]

    def _read(self, tensordict: TensorDictBase, key: NestedKey, batch: torch.Size, event: tuple[int, ...]) -> Tensor:
        """The entry [*batch, *event] as [B, *event]."""
        value = tensordict.get(key, None)
        if value is None:
            advice = (
                "append TorchRL's InitTracker() to the env" if key == self.init_key else "model.set_keys renames it"
            )
            entries = sorted(map(str, tensordict.keys(True, True)))
            raise ValueError(f"TDMPC2Planner needs the entry {key!r}, found {entries}: {advice}.")
        if value.shape != (*batch, *event):
            raise ValueError(
                f"TDMPC2Planner needs {key!r} of shape {(*batch, *event)} in a batch of {tuple(batch)}, found "
                f"{tuple(value.shape)}."
            )
        return value.reshape(-1, *event)

    def _refuse(self, failed: Tensor, latent: Tensor, task: Tensor | None) -> None:
        where = failed.nonzero().flatten().tolist()
        tasks = "" if task is None else f" of task {sorted(set(task[failed].tolist()))}"
        cause = (
            "model or values have diverged" if latent[failed].isfinite().all() else "their observations are not finite"
        )
        raise FloatingPointError(f"Expected a finite plan, found none for envs {where[:8]}{tasks}: {cause}.")
