"""Extraction of the policies of many tasks from one frozen world model."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from tensordict import TensorDictBase
from torchrl.data import ReplayBuffer, TensorDictReplayBuffer, TensorStorage
from torchrl.objectives.utils import ValueEstimators

from torchrl_pwm._utils.ranges import COUNT, check_choice, check_range
from torchrl_pwm._utils.seeds import kept_generators
from torchrl_pwm._utils.stopwatch import SharedStopwatch
from torchrl_pwm.evaluation.best_policy import BestPolicy
from torchrl_pwm.modules import PWMWorldModel, WorldModelPolicy, make_pwm_actor, make_value_ensemble
from torchrl_pwm.objectives import PWMLoss
from torchrl_pwm.trainers.averaging import PolicyAverage
from torchrl_pwm.trainers.pwm import PWMTrainer
from torchrl_pwm.trainers.pwm import warm_start as begin_warm
from torchrl_pwm.trainers.steppers import PWMOptimizationStepper, first_states
from torchrl_pwm.trainers.together import own_generators, train_together

__all__ = ["extract_policies"]

Task = TypeVar("Task", bound="str | int")
Evaluate = Callable[[Any, WorldModelPolicy], float]
Options = Mapping[str, Any]


def extract_policies(
    model: PWMWorldModel,
    starts: Mapping[Task, TensorDictBase | ReplayBuffer],
    tasks: Iterable[Task] | None = None,
    *,
    iterations: int = 10_000,
    batch_size: int = 512,
    seed: int = 0,
    gamma: float = 0.99,
    lmbda: float | None = 0.95,
    actor: Options | None = None,
    value: Options | None = None,
    loss: Options | None = None,
    stepper: Options | None = None,
    warm_start: Options | None = None,
    average: float = 0.0,
    evaluate: Evaluate | None = None,
    eval_interval: int = 1000,
    select: Literal["last", "best"] = "last",
    save_folder: str | os.PathLike[str] | None = None,
    save_interval: int = 1000,
    device: torch.device | str | None = None,
    progress_bar: bool = True,
) -> dict[Task, WorldModelPolicy]:
    """Extracts the policies of T tasks from one frozen world model, in one program.

    Actors, critics, optimisers and return scales of all tasks are stacked and run as batched matrix products; the
    latents of all go through the model as one batch. Each task nevertheless has the numbers of its single run, which is
    the same call with that task alone: T changes nothing but the time.

    Args:
        model (PWMWorldModel): frozen by the objective.
        starts (mapping): of each task the start states it draws from: a TensorDict [N] with ``observation`` [N, O] and
            what else the objective reads, or a replay buffer that gives [B], or sequences [B, T], of them. Without an
            entry ``task`` (int64), the task's own name must be its index in the model.
        tasks (iterable, optional): names or indices, of those in ``starts``; default: all.

    Keyword Args:
        iterations (int): updates of each task; published: 10,000.
        batch_size (int): start states B drawn from a TensorDict for an update; published: 512.
        seed (int): of networks, start states and policy noise.
        gamma, lmbda (float): of returns and TD(lambda) targets; ``lmbda=None`` for TD(0).
        actor, value, loss, stepper (mapping, optional): options of :func:`~torchrl_pwm.make_pwm_actor`,
            :func:`~torchrl_pwm.make_value_ensemble`, :class:`~torchrl_pwm.PWMLoss` and
            :class:`~torchrl_pwm.trainers.PWMOptimizationStepper`; default: the published ones.
        warm_start (mapping, optional): options of :func:`~torchrl_pwm.trainers.warm_start`; default: none.
        average (float): decay of the moving average of a policy's weights, which is then what is evaluated and kept.
        evaluate (callable, optional): called with task and policy every ``eval_interval`` updates; returns a score.
        select (str): the policy that counts, the ``"last"`` or the ``"best"`` by ``evaluate``.
        save_folder (path, optional): where each task has its checkpoint, in a folder of its name. The same call goes on
            from there, to the same numbers.
        save_interval (int): updates between two checkpoints.
        device (optional): where it runs; default: the model's.
        progress_bar (bool): show one, of the updates of all tasks.

    Returns:
        A :class:`~torchrl_pwm.WorldModelPolicy` for each task, from ``observation`` [*, O] to ``action`` [*, A].

    Raises:
        ValueError: if a task has no start states or no index, or an option is unknown or out of range.
        FloatingPointError: if a number is not finite. The task is named, and the others have gone on to their end:
            with a ``save_folder`` nothing of theirs is lost.

    Source: PWM (arXiv 2407.02466), algorithm 1, for each task.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_pwm import PWMWorldModel
        >>> model = PWMWorldModel(5, 2, latent_dim=16, units=(32, 32), num_tasks=4, task_dim=8)
        >>> starts = {task: TensorDict({"observation": torch.randn(100, 5)}, [100]) for task in range(4)}
        >>> policies = extract_policies(
        ...     model, starts, tasks=[0, 3], iterations=2, batch_size=16, loss={"horizon": 4}, progress_bar=False
        ... )
        >>> policies[3](TensorDict({"observation": torch.randn(5)}))["action"].shape
        torch.Size([2])
    """
    check_range(COUNT, batch_size=batch_size)
    check_choice(("last", "best"), select=select)
    if select == "best" and evaluate is None:
        raise ValueError('select="best" chooses by evaluate=, a function of task and policy: give one, or take "last".')
    names = list(dict.fromkeys(starts if tasks is None else tasks))
    missing = [name for name in names if name not in starts]
    if missing or not names:
        raise ValueError(f"extract_policies needs start states of every task, found none of {missing or 'any'}.")
    place = torch.device(next(model.parameters()).device if device is None else device)
    model.to(place)
    policies, trainers = {}, []
    for name in names:
        # What follows in this process must not depend on the draws of this.
        with kept_generators():
            replay, index = _buffer(name, starts[name], model, batch_size, seed)
            torch.manual_seed(1_000_003 * seed + (index or 0))
            keys = model.tensor_keys
            networks = (
                make_pwm_actor(model.latent_dim, model.action_dim, **{"in_key": keys.latent, **(actor or {})}),
                make_value_ensemble(model.latent_dim, **{"in_key": keys.latent, **(value or {})}),
            )
            objective = PWMLoss(*networks, model, **(loss or {})).to(place)
            objective.set_keys(observation=keys.observation, task=keys.task, latent=keys.latent)
            targets = {} if lmbda is None else {"lmbda": lmbda}
            kind = ValueEstimators.TD0 if lmbda is None else ValueEstimators.TDLambda
            objective.make_value_estimator(kind, gamma=gamma, **targets)
            policies[name] = WorldModelPolicy(model, objective.actor_network, task=index)
            following = PolicyAverage(objective.actor_network, average)
            best = BestPolicy(objective.actor_network)
            trainer = PWMTrainer(
                objective,
                replay,
                iterations=iterations,
                optimization_stepper=PWMOptimizationStepper(objective, **{"iterations": iterations, **(stepper or {})}),
                average=following,
                device=place,
                evaluate=evaluate and partial(_evaluate, evaluate, name, policies[name], following, best),
                eval_interval=eval_interval,
                stopwatch=SharedStopwatch(),
                save_folder=None if save_folder is None else Path(save_folder) / str(name),
                save_interval=save_interval,
                progress_bar=False,
            )
            trainer.components["best_policy"] = best
            own_generators(trainer)
        if save_folder is not None:
            trainer.resume(required=False)
        if warm_start and trainer.iteration == 0:
            with own_generators(trainer):
                begin_warm(objective, trainer.optimization_stepper, replay, **warm_start, device=place)
            following.restart()
        trainers.append(trainer)
    train_together(trainers, name="policies" if progress_bar else "")
    for trainer in trainers:
        if trainer.average is not None:
            trainer.average.restore()
        if select == "best":
            trainer.components["best_policy"].restore()  # type: ignore[attr-defined]
    return policies


def _evaluate(
    evaluate: Evaluate, task: Any, policy: WorldModelPolicy, average: PolicyAverage, best: BestPolicy
) -> dict[str, float]:
    with average.applied():
        score = float(evaluate(task, policy))
        if math.isnan(score):
            raise ValueError(f"evaluate gave NaN for the policy of {task!r}: expected a score, the higher the better.")
        best.offer(score, score)
    return {"score": score}


def _buffer(
    name: str | int, starts: TensorDictBase | ReplayBuffer, model: PWMWorldModel, batch_size: int, seed: int
) -> tuple[ReplayBuffer, int | None]:
    """What gives a task's start states, and its index in the model, if the model has tasks."""
    key = model.tensor_keys.task
    if isinstance(starts, ReplayBuffer):
        given = first_states(starts[:1]).get(key, None)
        if model.num_tasks and given is None:
            raise ValueError(
                f"the replay buffer of {name!r} gives start states without an entry {key!r}: store them with the index "
                "of the task in the model, or give the states themselves."
            )
        return starts, _index(name, given, model)
    index = _index(name, starts.get(key, None), model)
    if index is not None and key not in starts.keys():  # noqa: SIM118, a TensorDict has no `in` of its own
        starts = starts.copy().set(key, torch.full(starts.batch_size, index, device=starts.device))
    generator = torch.Generator().manual_seed(seed)
    return TensorDictReplayBuffer(storage=TensorStorage(starts), batch_size=batch_size, generator=generator), index


def _index(name: str | int, given: torch.Tensor | None, model: PWMWorldModel) -> int | None:
    """The task of start states.

    Raises:
        ValueError: if they have none, or several.
    """
    if not model.num_tasks:
        return None
    if given is None:
        if isinstance(name, int):
            return name
        raise ValueError(
            f"the start states of {name!r} have no entry {model.tensor_keys.task!r}: add one with the index of the "
            "task in the model, or name the task by its index."
        )
    found = given.unique().tolist()
    if len(found) != 1:
        raise ValueError(f"the start states of {name!r} should be of one task, found {found}: give each task its own.")
    return int(found[0])
