"""Normalised scores, the papers' results as data, and a run beside them."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Literal

import numpy as np

from torchrl_pwm.envs.tasks import TaskSet, TaskSpec, get_task_set
from torchrl_pwm.evaluation.statistics import METHODS, aggregate_scores, method_scores, possible_reps

__all__ = [
    "compare_with_published",
    "find_task_spec",
    "normalized_score",
    "published_results",
    "reference_average",
    "reference_score",
    "reference_scores",
]

Method = Literal["pwm", "tdmpc2", "pwm_horizon3"]

_METHOD_KEYS = {"pwm": "pwm", "tdmpc2": "tdmpc2", "td-mpc2": "tdmpc2", "pwm_horizon3": "pwm_horizon3"}
_AVERAGES = {
    "all": "average",
    "dm_control": "average_dm_control",
    "metaworld": "average_metaworld",
    "interquartile_mean": "interquartile_mean",
}
Table = Literal["mt30", "mt80", "dflex", "ablations"]
_TABLES = ("mt30", "mt80", "dflex", "ablations")
_LABELS = {
    "pwm": METHODS["pwm"],
    "tdmpc2": METHODS["tdmpc2"],
    "pwm_horizon3": "published PWM, model of horizon 3",
}
_WHOLE_SET = {"mean": "average", "iqm": "interquartile_mean", "dm_control": "average_dm_control"}
_WHOLE_SET |= {"metaworld": "average_metaworld"}


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
    if part not in _AVERAGES:
        raise ValueError(f"unknown part {part!r}; known are {', '.join(_AVERAGES)}")
    name = _published_set(task_set)
    averages = published_table(name).get(_AVERAGES[part], {})
    if _method(method) not in averages:
        raise ValueError(f"{name} has no {part} average of {_method(method)}; use part='all'")
    return averages[_method(method)]


def _published_set(task_set: str | TaskSet) -> str:
    name = get_task_set(task_set).name
    return name if name in ("mt30", "mt80") else "mt80"


def _method(method: str) -> str:
    key = str(method).lower()
    if key not in _METHOD_KEYS:
        known = ", ".join(dict.fromkeys(_METHOD_KEYS.values()))
        raise ValueError(f"unknown method {method!r}; published scores exist for {known}")
    return _METHOD_KEYS[key]


def published_results(table: Table | None = None) -> dict[str, Any]:
    """The published results of PWM and of what it was compared with, as plain numbers.

    ``"mt30"`` and ``"mt80"``, multi-task with 48M world models, in normalised scores (DMControl: return / 1000,
    Meta-World: success rate): ``tasks``, by name with ``pwm``, ``tdmpc2``, its standard deviation ``tdmpc2_std`` over
    ten evaluation seeds, ``pwm_horizon3`` (PWM in a world model trained with horizon 3) where there is one, and the
    returns ``pwm_return`` and ``tdmpc2_return``; the averages ``average``, ``average_dm_control``,
    ``average_metaworld`` and ``interquartile_mean`` by method; ``pwm_higher_than_tdmpc2``, a number of tasks; and
    ``seconds_per_10k_iterations``, wall time [s] of a policy's extraction.

    ``"dflex"``, single tasks in returns of an episode: ``tasks``, by name with ``ppo_peak``, by which returns are
    divided to normalise them, and ``methods`` (``ppo``, ``sac``, ``shac``, ``tdmpc2``, ``pwm``), each with the
    ``peak`` of its interquartile mean and, where its curves were published, ``final_mean``, ``final_std``,
    ``final_by_seed`` and ``seeds``; and both averages of the normalised returns.

    ``"ablations"``, variants of PWM on DFlex tasks, by the name of their file.

    Args:
        table: one of them; ``None`` for all, with ``source``, ``notes`` and ``units``.

    Returns:
        A copy, which may be changed.

    Raises:
        ValueError: for an unknown table.

    Source: the result files and the notebook published with PWM (arXiv 2407.02466); the MT30 and MT80 tasks and their
    data are TD-MPC2's (arXiv 2310.16828). PWM has one run per task there, with ten evaluation episodes.

    Examples:
        >>> mt80 = published_results("mt80")
        >>> mt80["average"]["pwm"], mt80["tasks"]["walker-run"]["tdmpc2"]
        (0.817942, 0.527329)
        >>> published_results("dflex")["tasks"]["ant"]["methods"]["pwm"]["peak"]
        9672.0
    """
    if table is None:
        return copy.deepcopy(_published())
    return copy.deepcopy(published_table(table))


def published_table(table: str) -> dict[str, Any]:
    """One table of :func:`published_results`, not copied."""
    if table not in _TABLES:
        raise ValueError(f"there is no published table {table!r}; there are {', '.join(_TABLES)}")
    return _published()[table]


@functools.cache
def _published() -> dict[str, Any]:
    text = resources.files("torchrl_pwm.evaluation").joinpath("published.json").read_text("utf-8")
    return json.loads(text)


def compare_with_published(
    rows: Sequence[Mapping[str, Any]],
    task_set: str | TaskSet = "mt80",
    *,
    remarks: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """A run beside the papers' numbers, over the tasks that both have and over the papers' whole set.

    The difference to a published score, which is one fixed number per task, is as uncertain as the run itself: its
    interval is the stratified bootstrap over the run's seeds, and needs several of them and the package rliable. How
    uncertain the published numbers are it does not say.

    Args:
        rows: of a summary, see :func:`~torchrl_pwm.evaluation.make_summary`.
        task_set: ``"mt30"`` or ``"mt80"``.
        remarks: what makes the comparison unequal, as sentences.
        seed: seed of the bootstrap.

    Returns:
        Plain numbers for ``summary.json``: ``task_set``, ``source``, ``remarks``; ``tasks``, by task and method the
        published ``score``, its ``std`` over seeds where there are several, and the ``difference``, run minus
        published; and ``methods``, by method its ``label``, the number of shared ``tasks``, on these ``own`` and
        ``published`` (``mean`` and ``iqm`` each) and the mean ``difference`` (``value``, ``low``, ``high``), in how
        many tasks the run is ``higher``, ``equal`` and ``lower``, and ``whole_set``, the published averages over all
        tasks of the set (``tasks``, ``mean``, ``iqm``, ``dm_control``, ``metaworld``; those that exist). Everything
        is in normalised scores.

    Raises:
        ValueError: for a set without published results, or if no task of the run has one.

    Examples:
        >>> row = dict(task="walker-run", score=0.9)
        >>> pwm = compare_with_published([row], "mt80")["methods"]["pwm"]
        >>> pwm["published"]["mean"], round(pwm["difference"]["value"], 3), pwm["whole_set"]["mean"]
        (0.824062, 0.076, 0.817942)
    """
    name = get_task_set(task_set).name
    if name not in ("mt30", "mt80"):
        raise ValueError(f"there are published results of mt30 and mt80, not of {name}: leave compare=published out")
    table = published_table(name)
    tasks: dict[str, dict[str, Any]] = {}
    methods = {}
    for method, label in _LABELS.items():
        shared = [row for row in rows if method_scores(row, "policy") and method in table["tasks"].get(row["task"], {})]
        if not shared:
            continue
        known = np.array([table["tasks"][row["task"]][method] for row in shared])
        own = np.array([method_scores(row, "policy") for row in shared]).T
        gaps = own.mean(0) - known
        for row, gap in zip(shared, gaps.tolist()):
            entry = table["tasks"][row["task"]]
            spread = {"std": entry[f"{method}_std"]} if f"{method}_std" in entry else {}
            tasks.setdefault(row["task"], {})[method] = {"score": entry[method], **spread, "difference": gap}
        equal = np.isclose(gaps, 0.0, rtol=0.0, atol=1e-9)
        methods[method] = {
            "label": label,
            "tasks": len(shared),
            "own": _averages(own),
            "published": _averages(known[None]),
            "difference": aggregate_scores(own - known, reps=possible_reps(), seed=seed).to_dict()["mean"],
            "higher": int((~equal & (gaps > 0)).sum()),
            "equal": int(equal.sum()),
            "lower": int((~equal & (gaps < 0)).sum()),
            "whole_set": _whole_set(table, method),
        }
    if not methods:
        raise ValueError(f"no task of this run has a published {name} result: leave compare=published out")
    return {
        "task_set": name,
        "source": _published()["source"],
        "remarks": list(remarks),
        "tasks": tasks,
        "methods": methods,
    }


def _averages(scores: np.ndarray) -> dict[str, float]:
    result = aggregate_scores(scores, reps=0)
    return {"mean": result.mean.value, "iqm": result.iqm.value}


def _whole_set(table: Mapping[str, Any], method: str) -> dict[str, float]:
    count = sum(method in row for row in table["tasks"].values())
    parts = {part: table[key][method] for part, key in _WHOLE_SET.items() if method in table.get(key, {})}
    return {"tasks": count, **parts}
