"""Normalised scores, and the published scores to hold them against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torchrl_pwm.envs.tasks import TaskSet, TaskSpec, get_task_set
from torchrl_pwm.evaluation.published import published_table

__all__ = [
    "find_task_spec",
    "normalized_score",
    "reference_average",
    "reference_score",
    "reference_scores",
]

Method = Literal["pwm", "tdmpc2", "pwm_horizon3"]

_METHODS = {"pwm": "pwm", "tdmpc2": "tdmpc2", "td-mpc2": "tdmpc2", "pwm_horizon3": "pwm_horizon3"}
_PARTS = {
    "all": "average",
    "dm_control": "average_dm_control",
    "metaworld": "average_metaworld",
    "interquartile_mean": "interquartile_mean",
}


def normalized_score(task: str, return_: Any, success: Any = None, *, task_set: str | TaskSet = "mt80") -> Any:
    """Score of an episode in [0, 1] as in the TD-MPC2 and PWM papers.

    DMControl: return / 1000. Meta-World: success at the last step.

    Args:
        task: task name, such as ``"walker-run"``.
        return_: undiscounted return of the episode; a number, array or tensor (elementwise).
        success: success at the last step of the episode; needed for Meta-World.
        task_set: the table that holds the task.

    Returns:
        The score, of the shape of ``return_`` (DMControl) or ``success`` (Meta-World).

    Raises:
        ValueError: for an unknown task, or if a task that is scored by success comes without it.

    Examples:
        >>> normalized_score("walker-run", 824.0)
        0.824
        >>> normalized_score("mw-reach", 1500.0, success=True)
        1.0
    """
    return get_task_set(task_set)[task].score(return_, success)


def find_task_spec(task: str, task_set: str | TaskSet | None = None) -> TaskSpec | None:
    """The row of a task in ``task_set`` (default MT80); None for an env that is in no table."""
    table = get_task_set("mt80" if task_set is None else task_set)
    return next((spec for spec in table if spec.name == task), None)


def reference_score(task: str, task_set: str | TaskSet = "mt80", method: Method = "pwm") -> float:
    """Published multi-task score of one task (48M world model).

    The published runs used other data than a run of yours (345 to 545 million transitions), one run per task for
    PWM, and ten evaluation seeds with planning for TD-MPC2.

    Args:
        task: task name.
        task_set: ``"mt30"`` or ``"mt80"``: which of the two published world models. A table of your own
            (:class:`~torchrl_pwm.envs.TaskSet`) is answered from MT80.
        method: ``"pwm"``, ``"tdmpc2"``, or ``"pwm_horizon3"``, PWM in a world model trained with horizon 3.

    Returns:
        Normalised score in [0, 1].

    Raises:
        ValueError: for an unknown task, task set or method, or a task for which the method has no published score
            (four tasks with horizon 3).

    Source: PWM (arXiv 2407.02466), published result files.

    Examples:
        >>> reference_score("walker-run", "mt30", "pwm")
        0.857758
    """
    spec = get_task_set(_published_set(task_set))[task]
    known = reference_scores(task_set, method)
    if spec.name not in known:
        raise ValueError(f"there is no published score of {_method(method)} in {spec.name}; use method='pwm'")
    return known[spec.name]


def reference_scores(task_set: str | TaskSet = "mt80", method: Method = "pwm") -> Mapping[str, float]:
    """Published scores of a whole set, by task name; tasks without one are left out. See :func:`reference_score`."""
    key, table = _method(method), published_table(_published_set(task_set))
    return {task: row[key] for task, row in table["tasks"].items() if key in row}


def reference_average(
    task_set: str | TaskSet = "mt80",
    method: Method = "pwm",
    *,
    part: Literal["all", "dm_control", "metaworld", "interquartile_mean"] = "all",
) -> float:
    """Published average score of a set.

    Args:
        task_set: ``"mt30"`` or ``"mt80"``.
        method: as in :func:`reference_score`.
        part: mean over all tasks, over the tasks of one suite, or the interquartile mean over all tasks.

    Raises:
        ValueError: for an unknown set, method or part, or a part that the set does not have.

    Examples:
        >>> reference_average("mt80", "pwm"), reference_average("mt80", "tdmpc2")
        (0.817942, 0.677877)
    """
    if part not in _PARTS:
        raise ValueError(f"unknown part {part!r}; known are {', '.join(_PARTS)}")
    name = _published_set(task_set)
    found = published_table(name).get(_PARTS[part], {})
    if _method(method) not in found:
        raise ValueError(f"{name} has no {part} average of {_method(method)}; use part='all'")
    return found[_method(method)]


def _published_set(task_set: str | TaskSet) -> str:
    name = get_task_set(task_set).name
    return name if name in ("mt30", "mt80") else "mt80"


def _method(method: str) -> str:
    key = str(method).lower()
    if key not in _METHODS:
        known = ", ".join(dict.fromkeys(_METHODS.values()))
        raise ValueError(f"unknown method {method!r}; published scores exist for {known}")
    return _METHODS[key]
