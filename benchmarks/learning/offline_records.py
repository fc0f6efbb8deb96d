"""Rows and curves of the runs of an offline group: PWM with its baselines, TD-MPC2, IQL, and SAC from the data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from benchmarks.learning.groups import SAC_EPISODES
from benchmarks.learning.plans import CLONES
from benchmarks.learning.recorded import behavior, episode_returns
from benchmarks.learning.rows import Curve, Records, date_of, last_and_best, success_and_score
from torchrl_pwm.data import EpisodeStore
from torchrl_pwm.envs import get_task_set
from torchrl_pwm.evaluation import read_metrics
from torchrl_pwm.evaluation.curves import Series
from torchrl_pwm.evaluation.statistics import SELECT
from torchrl_pwm.runs.policies import policy_file

Metrics = Mapping[str, Series]


def read_offline(records: Records, run: Path, name: str, config: Any, summary: Mapping[str, Any]) -> None:
    """Adds what is known of a run.

    Args:
        records: gets rows and curves.
        run: its folder.
        name: of the run, see :data:`~benchmarks.learning.plans.RUNS`.
        config: its configuration.
        summary: its summary.
    """
    read = {"tdmpc2": _read_tdmpc2, "iql": _read_iql}.get(name, _read_pwm)
    read(records, run, name, config, summary)


def _read_pwm(records: Records, run: Path, name: str, config: Any, summary: Mapping[str, Any]) -> None:
    """Policies, the baselines that were measured beside them, and the curve of their mean."""
    task_set, made, store = get_task_set(config.task_set), date_of(run), _store(config.data.root)
    transitions, rounds = _transitions(store, config.task), config.rounds
    results = [json.loads(file.read_text()) for file in sorted(run.glob("policies/*/*/result.json"))]
    learned_from = {row["task"]: row.get("baselines", {}).get("data", {}).get("score") for row in summary["tasks"]}
    stages = [_Stage(run, number, config.rounds.count, results) for number in range(rounds.count + 1)]
    for number, result in enumerate(results):
        records.add(
            *(name, result["task"], result["seed"], result["returns"]),
            **success_and_score(task_set[result["task"]], result),
            **last_and_best(task_set[result["task"]], result, config.extraction.select),
            score_data=learned_from.get(result["task"]),
            model_updates=config.world_model.iterations + rounds.count * rounds.iterations,
            policy_updates=config.extraction.iterations + rounds.count * rounds.policy_iterations,
            transitions=transitions,
            seconds_model=sum(stage.model[1] for stage in stages),
            seconds_policy=sum(_spent(stage.policies[number])[1] for stage in stages),
            made=made,
        )
    for file in sorted(run.glob("baselines/*.json")):
        for found, cloned in json.loads(file.read_text()).items():
            _add_baselines(records, CLONES.get(found, found), file.stem, cloned, config, transitions, made)
    for row in summary["tasks"]:
        if name == "pwm" and row.get("trust"):
            records.trust |= {(row["task"], each["seed"]): each["line"] for each in row["trust"]["seeds"]}
    if store is not None and name == "pwm":
        add_sac(records, store, config.task)
    records.parts += _pwm_curve(name, config.seed, _only(config.task), stages)
    batch = f"{config.world_model.batch_size} x {config.world_model.slice_len}"
    records.budgets[name] = (
        f"world model of {config.world_model.iterations} updates of {batch}, then {config.extraction.iterations} "
        f"updates of {config.extraction.batch_size} imagined rollouts of {config.loss.horizon} steps for each task"
    )
    if rounds.count:
        records.budgets[name] += (
            f"; {rounds.count} rounds of {_episodes(rounds)}, {rounds.iterations} updates of the model and "
            f"{rounds.policy_iterations} of each policy"
        )


class _Stage:
    """What was spent before the rounds, or in one of them, on the model, and the metrics of each policy."""

    def __init__(self, run: Path, number: int, count: int, results: Sequence[Mapping[str, Any]]) -> None:
        self.model = _spent(_metrics(run / "rounds" / str(number) / "world_model" if number else run / "world_model"))
        place = run if number == count else run / "rounds" / str(number)
        self.policies = [_metrics(policy_file(place, found["task"], found["seed"]).parent) for found in results]


def _pwm_curve(name: str, seed: int, task: str | None, stages: Sequence[_Stage]) -> list[Curve]:
    """The mean over a run's tasks, as if the policies were extracted side by side on one core, after each model."""
    amount, minutes, score, updates, seconds = [], [], [], 0.0, 0.0
    before_rounds = None
    for number, stage in enumerate(stages):
        if number == 1:
            before_rounds = updates
        updates, seconds = updates + stage.model[0], seconds + stage.model[1]
        shared = [set(metrics["real_score"][0].tolist()) for metrics in stage.policies if "real_score" in metrics]
        if not shared or len(shared) < len(stage.policies):
            continue
        for step in sorted(set.intersection(*shared)):
            at = {key: [np.interp(step, *metrics[key]) for metrics in stage.policies] for key in _CURVE}
            amount.append(updates + len(shared) * step)
            minutes.append((seconds + sum(at["training_seconds"])) / 60)
            score.append(np.mean(at["real_score"]))
        updates += sum(_spent(metrics)[0] for metrics in stage.policies)
        seconds += sum(_spent(metrics)[1] for metrics in stage.policies)
    if not score:
        return []
    return [Curve(name, seed, task, np.array(amount), np.array(minutes), np.array(score), before_rounds)]


_CURVE = ("training_seconds", "real_score")


def _add_baselines(
    records: Records,
    method: str,
    task: str,
    results: Sequence[Mapping[str, Any]],
    config: Any,
    transitions: int | None,
    made: str,
) -> None:
    """Rows of cloned policies, or of random actions."""
    spec, learned, settings = (
        get_task_set(config.task_set)[task],
        method in CLONES.values(),
        config.evaluation.baselines,
    )
    for result in results:
        further: dict[str, Any] = success_and_score(spec, result)
        if learned:
            select = OmegaConf.select(settings, "cloning.select") or "last"
            further |= last_and_best(spec, result, select)
            further |= {"transitions": transitions, "policy_updates": settings.cloning.updates}
        records.add(method, task, config.seed, result["returns"], **further, made=made)


def add_sac(records: Records, store: EpisodeStore, tasks: Sequence[str]) -> None:
    """SAC in the tasks whose data are the steps of its training: one row, as there is one training."""
    for task in tasks:
        if task in store.tasks and behavior(store, task) == "sac" and not records.values("sac", task):
            returns = episode_returns(store, task)[-SAC_EPISODES:].tolist()
            result = {"returns": returns, "successes": None}
            steps = _transitions(store, [task])
            records.add(
                *("sac", task, store.manifest.source["tasks"][task]["seed"], returns),
                **success_and_score(store.task_set[task], result),
                **{"select": "last", "transitions": steps, "env_steps": steps},
            )


def _read_tdmpc2(records: Records, run: Path, name: str, config: Any, summary: Mapping[str, Any]) -> None:
    """Evaluations with and without planning; the curve is that of the prior, which is evaluated along the way."""
    task_set, training, rounds = get_task_set(config.task_set), config.training, config.rounds
    stages = [_metrics(run / "model")]
    stages += [_metrics(run / "rounds" / str(number) / "model") for number in range(1, rounds.count + 1)]
    updates, select = training.iterations + rounds.count * rounds.iterations, summary.get("select", "last")
    transitions = _transitions(_store(config.data.root), config.task)
    for method, place in (("tdmpc2" if config.plan else "tdmpc2_prior", "tasks"), ("tdmpc2_prior", "tasks/prior")):
        for file in sorted((run / place).glob("*.json")):
            result = json.loads(file.read_text())
            both = {select: result}
            if "select" in summary:
                other = file.parent / SELECT[select == "last"] / file.name
                both[other.parent.name] = json.loads(other.read_text()) if other.exists() else result
            records.add(
                *(method, result["task"], config.seed, result["returns"]),
                **success_and_score(task_set[result["task"]], result),
                **last_and_best(task_set[result["task"]], both, select),
                model_updates=updates,
                policy_updates=updates,
                transitions=transitions,
                seconds_model=sum(_spent(stage)[1] for stage in stages),
                seconds_policy=0.0,
                made=date_of(run),
            )
    planner = config.planner
    records.budgets[name] = (
        f"{training.iterations} updates of {training.batch_size} x {training.slice_len}; plans with "
        f"{planner.num_samples} sequences of {planner.horizon} steps, {planner.iterations or '6 or 8'} iterations"
    )
    if rounds.count:
        acting = "planning" if rounds.plan else "by the policy prior"
        records.budgets[name] += (
            f"; {rounds.count} rounds of {_episodes(rounds)}, played {acting}, and {rounds.iterations} updates"
        )
    if all("real_score" in stage for stage in stages):
        ends = np.cumsum([(0.0, 0.0), *(_spent(stage) for stage in stages[:-1])], 0)
        parts = [
            (x + end[0], (np.interp(x, *stage["training_seconds"]) + end[1]) / 60, y)
            for stage, end in zip(stages, ends)
            for x, y in [stage["real_score"]]
        ]
        amount, minutes, score = (np.concatenate(each) for each in zip(*parts))
        before_rounds = float(training.iterations) if rounds.count else None
        records.parts.append(
            Curve("tdmpc2_prior", config.seed, _only(config.task), amount, minutes, score, before_rounds)
        )


def _read_iql(records: Records, run: Path, name: str, config: Any, summary: Mapping[str, Any]) -> None:
    """One task: its policies and its curve."""
    spec, metrics = get_task_set(config.task_set)[summary["task"]], _metrics(run)
    records.add(
        *(name, spec.name, config.seed, summary["returns"]),
        **success_and_score(spec, summary),
        **last_and_best(spec, summary, summary["select"]),
        policy_updates=config.iterations,
        transitions=_transitions(_store(config.data.root), [spec.name]),
        seconds_model=0.0,
        seconds_policy=_spent(metrics)[1],
        made=summary["made"],
    )
    if "real_score" in metrics:
        x, y = metrics["real_score"]
        minutes = np.interp(x, *metrics["training_seconds"]) / 60
        records.parts.append(Curve(name, config.seed, spec.name, np.asarray(x, dtype=float), minutes, np.asarray(y)))
    records.budgets[name] = f"{config.iterations} updates of {config.batch_size} transitions for each task"


def join_curves(parts: Sequence[Curve], tasks: Sequence[str]) -> list[Curve]:
    """The curves of all tasks together, and the mean over the tasks of those of single ones, of seeds that have all."""
    curves = [part for part in parts if part.task is None]
    for method, seed in dict.fromkeys((part.method, part.seed) for part in parts if part.task is not None):
        own = [part for part in parts if (part.method, part.seed) == (method, seed) and part.task in tasks]
        if len(own) == len(tasks) and len({tuple(part.amount) for part in own}) == 1:
            amount, minutes = len(own) * own[0].amount, np.sum([part.minutes for part in own], 0)
            score, begin = np.mean([part.score for part in own], 0), own[0].before_rounds
            begin = None if begin is None else len(own) * begin
            curves.append(Curve(method, seed, None, amount, minutes, score, begin))
    return curves


def _only(tasks: Sequence[str]) -> str | None:
    """The task of a run of one; None of several."""
    return tasks[0] if len(tasks) == 1 else None


def _metrics(folder: Path) -> Metrics:
    """The metrics of a training; nothing where there was none."""
    return read_metrics(folder) if any(folder.glob("scalars/*.csv")) else {}


def _spent(metrics: Metrics) -> tuple[float, float]:
    """Updates and seconds of a training."""
    if "training_seconds" not in metrics:
        return 0.0, 0.0
    x, y = metrics["training_seconds"]
    return float(x[-1]), float(y[-1])


def _episodes(rounds: Any) -> str:
    return " or ".join(map(str, dict.fromkeys(rounds.episodes.values()))) + " episodes of each task"


def _store(root: str) -> EpisodeStore | None:
    """The data set, if it is still there."""
    return EpisodeStore(root) if (Path(root) / "manifest.json").exists() else None


def _transitions(store: EpisodeStore | None, tasks: Sequence[str]) -> int | None:
    if store is None:
        return None
    statistics = store.statistics()
    return sum(statistics[task]["transitions"] for task in tasks)
