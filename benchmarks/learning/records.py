"""Rows and learning curves of a group, read from its finished runs."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from benchmarks.learning.groups import METHODS, Group
from benchmarks.learning.plans import MODEL_FILES, MODELS, RUNS, SCRIPTS
from torchrl_pwm.data import EpisodeStore
from torchrl_pwm.envs import get_task_set
from torchrl_pwm.evaluation import read_metrics
from torchrl_pwm.evaluation.statistics import SELECT

#: Of the CSV. The policy that counts is the last or the best, as select says; both have a return and a score, the best
#: having been chosen on other start states or seeds than these. Seconds are wall-clock ones of one thread, without
#: evaluations; all tasks of a run share the model's.
COLUMNS = (
    *("group", "method", "task", "seed", "return_mean", "return_std", "success", "score", "episodes"),
    *("select", "return_last", "score_last", "return_best", "score_best"),
    *("model_updates", "policy_updates", "transitions", "env_steps", "seconds_model", "seconds_policy"),
    *("ms_per_decision", "ms_per_decision_of_8", "made"),
)


@dataclass
class Curve:
    """Scores along a training, of all tasks together or of one.

    Args:
        method, seed: of the run.
        task: of the run; None for the mean of all tasks.
        amount: updates of an offline method, env steps of an online one [n].
        minutes: of training until then [n].
        score: in evaluations along the way, on seeds apart from the final ones [n].
    """

    method: str
    seed: int
    task: str | None
    amount: np.ndarray
    minutes: np.ndarray
    score: np.ndarray


@dataclass
class Records:
    """Rows with the keys :data:`COLUMNS`, curves, and what they were made with.

    Args:
        rows: of the CSV.
        curves: of all runs.
        references: by task, the scores of what is no method: the data's behaviour, a hand-written controller.
        budgets: by run, its updates or steps, in words.
        versions: of the packages that the runs were made with.
        machine: on which they were made, where they say it.
        commit: of the code that made them, likewise.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    references: dict[str, dict[str, float]] = field(default_factory=dict)
    budgets: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    commit: str | None = None

    def add(self, method: str, task: str, seed: int, returns: Sequence[float], **further: Any) -> None:
        """A row, from the returns of its episodes."""
        row = {"method": method, "task": task, "seed": seed, "episodes": len(returns)}
        row |= {"return_mean": float(np.mean(returns)), "return_std": float(np.std(returns))}
        row = {**dict.fromkeys(COLUMNS), **row, **further}
        if select := row["select"]:
            row |= {f"return_{select}": row["return_mean"], f"score_{select}": row["score"]}
        self.rows.append(row)

    def methods(self) -> list[str]:
        """Those that have rows, in the order of tables."""
        return [method for method in METHODS if any(row["method"] == method for row in self.rows)]

    def tasks(self) -> list[str]:
        """Tasks of the rows."""
        return list(dict.fromkeys(row["task"] for row in self.rows))

    def values(self, method: str, task: str, key: str = "score") -> list[float]:
        """A column of a method's seeds in a task."""
        rows = [row for row in self.rows if (row["method"], row["task"]) == (method, task) and row[key] is not None]
        return [row[key] for row in sorted(rows, key=lambda row: row["seed"])]

    def select(self, method: str) -> str | None:
        """Which of a method's policies counts; None where there is no choice, or another one from run to run."""
        found = {row["select"] for row in self.rows if row["method"] == method}
        return found.pop() if len(found) == 1 else None

    def matrix(self, method: str, key: str = "score") -> np.ndarray | None:
        """Scores [seeds, tasks] of the seeds that have every task; None if there are none."""
        seeds: dict[int, dict[str, float]] = {}
        for row in self.rows:
            if row["method"] == method and row[key] is not None:
                seeds.setdefault(row["seed"], {})[row["task"]] = row[key]
        tasks = self.tasks()
        whole = [[scores[task] for task in tasks] for _, scores in sorted(seeds.items()) if len(scores) == len(tasks)]
        return np.array(whole) if whole else None


def read_records(group: Group, folder: Path, methods: Sequence[str] = (), tasks: Sequence[str] = ()) -> Records:
    """Rows and curves of the finished runs below ``folder``.

    Raises:
        FileNotFoundError: if no run is finished.
    """
    records = Records()
    wanted, known = list(methods or group.methods), list(tasks or group.tasks)
    names: Any = RUNS.values() if group.offline else SCRIPTS
    for file in sorted(folder.rglob("summary.json")):
        run, name = file.parent, file.relative_to(folder).parts[0]
        summary = json.loads(file.read_text())
        _read_origin(records, run, summary)
        if name in names and (group.offline or summary["task"] in known):
            config: Any = OmegaConf.load(run / "config.yaml")
            read = _read_online if not group.offline else _read_pwm if name.startswith("pwm") else _read_tdmpc2
            read(records, run, name, config, summary)
    rows = [{**row, "group": group.name} for row in records.rows if row["method"] in wanted and row["task"] in known]
    order = {method: place for place, method in enumerate(METHODS)}
    records.rows = sorted(rows, key=lambda row: (order[row["method"]], known.index(row["task"]), row["seed"]))
    records.curves = [curve for curve in records.curves if curve.method in wanted and curve.task in (None, *known)]
    if not records.rows:
        raise FileNotFoundError(
            f"no finished run of {', '.join(wanted)} in {folder}: "
            f"python -m benchmarks.learning.suite run --group {group.name} makes them"
        )
    if not group.offline:
        _normalize(records, group.scale)
    return records


def _read_origin(records: Records, run: Path, summary: Mapping[str, Any]) -> None:
    """Versions, machine and commit; where runs differ, all that there were."""
    job = run / "job.json"
    made = json.loads(job.read_text()) if job.exists() else {}
    for kept, further in ((records.versions, summary.get("versions")), (records.machine, made.get("machine"))):
        for name, value in (further or {}).items():
            kept[name] = _joined(kept.get(name), value)
    if made.get("commit"):
        records.commit = _joined(records.commit, made["commit"])


def _joined(before: str | None, value: str) -> str:
    return value if before is None else before if value in before.split("; ") else f"{before}; {value}"


def _date(run: Path) -> str:
    return datetime.date.fromtimestamp((run / "summary.json").stat().st_mtime).isoformat()


def _source(run: Path, name: str) -> Path:
    """The run whose world model this one uses; beside it, wherever both were moved."""
    return run.parents[1] / MODELS[name] / run.name if name in MODELS else run


def _read_pwm(records: Records, run: Path, name: str, config: Any, summary: Mapping[str, Any]) -> None:
    """Policies, the baselines that were measured beside them, and the curve of their mean."""
    task_set, made = get_task_set(config.task_set), _date(run)
    transitions = _transitions(config.data.root, config.task)
    source, kind = _source(run, name), MODELS.get(name, "pwm")
    trained: Any = OmegaConf.load(source / "config.yaml")
    model_updates = (trained.training if kind == "tdmpc2" else trained.world_model).iterations
    seconds = float(read_metrics(source / MODEL_FILES[kind].parent)["training_seconds"][1][-1])
    policies = []
    for file in sorted(run.glob("policies/*/*/result.json")):
        result, metrics = json.loads(file.read_text()), read_metrics(file.parent)
        policies.append(metrics)
        records.add(
            *(name, result["task"], result["seed"], result["returns"]),
            **success_and_score(task_set[result["task"]], result),
            **_last_and_best(task_set[result["task"]], result, config.extraction.select),
            model_updates=model_updates,
            policy_updates=config.extraction.iterations,
            transitions=transitions,
            seconds_model=seconds,
            seconds_policy=float(metrics["training_seconds"][1][-1]),
            made=made,
        )
    for file in sorted(run.glob("baselines/*.json")):
        for method, results in json.loads(file.read_text()).items():
            learned: dict[str, Any] = {}
            if method == "cloning":
                learned = {"transitions": transitions, "policy_updates": config.evaluation.baselines.cloning.updates}
            for result in results:
                outcome = success_and_score(task_set[file.stem], result)
                if method == "cloning":
                    select = OmegaConf.select(config, "evaluation.baselines.cloning.select") or "last"
                    outcome |= _last_and_best(task_set[file.stem], result, select)
                records.add(method, file.stem, config.seed, result["returns"], **outcome, **learned, made=made)
    for row in summary["tasks"]:
        if row.get("baselines", {}).get("data"):
            records.references.setdefault(row["task"], {})["the data's behaviour"] = row["baselines"]["data"]["score"]
    shared = [set(metrics["real_score"][0].tolist()) for metrics in policies if "real_score" in metrics]
    if shared and len(shared) == len(policies):
        # As if the policies were extracted side by side on one core, after the model.
        steps = np.array(sorted(set.intersection(*shared)))
        spent = seconds + np.sum([np.interp(steps, *metrics["training_seconds"]) for metrics in policies], 0)
        score = np.mean([np.interp(steps, *metrics["real_score"]) for metrics in policies], 0)
        amount = model_updates + len(policies) * steps
        records.curves.append(Curve(name, config.seed, None, amount, spent / 60, score))
    batch = f"{config.world_model.batch_size} x {config.world_model.slice_len}"
    what = f"world model of {model_updates} updates of {batch}"
    if name != "pwm":
        what = f"world model of the {METHODS[kind][0].split(',')[0]} run"
    records.budgets[name] = (
        f"{what}, then {config.extraction.iterations} updates of {config.extraction.batch_size} imagined rollouts of "
        f"{config.loss.horizon} steps for each task"
    )


def _read_tdmpc2(records: Records, run: Path, name: str, config: Any, summary: Mapping[str, Any]) -> None:
    """Evaluations with or without planning; the curve is that of the prior, which is evaluated along the way."""
    task_set, source = get_task_set(config.task_set), _source(run, name)
    trained: Any = OmegaConf.load(source / "config.yaml")
    training, metrics = trained.training, read_metrics(source / MODEL_FILES["tdmpc2"].parent)
    rows = {row["task"]: row for row in summary["tasks"]}
    for file in sorted(run.glob("tasks/*.json")):
        result = json.loads(file.read_text())
        records.add(
            *(name, result["task"], config.seed, result["returns"]),
            **success_and_score(task_set[result["task"]], result),
            **{
                f"{key}_{which}": rows[result["task"]][which][entry]
                for which in SELECT
                if which in rows[result["task"]]
                for key, entry in (("return", "return_mean"), ("score", "score"))
            },
            # Before there was a choice, the last one counted.
            select=summary.get("select", "last"),
            model_updates=training.iterations,
            policy_updates=training.iterations,
            transitions=_transitions(trained.data.root, trained.task),
            seconds_model=float(metrics["training_seconds"][1][-1]),
            seconds_policy=0.0,
            made=_date(run),
        )
    planner, acting = config.planner, "; acts by the policy prior"
    if config.plan:
        samples, iterations = planner.num_samples, planner.iterations or "6 or 8"
        acting = f"; {samples} sequences of {planner.horizon} steps, {iterations} iterations"
    records.budgets[name] = f"{training.iterations} updates of {training.batch_size} x {training.slice_len}{acting}"
    if name == "tdmpc2_prior" and "real_score" in metrics:
        steps, score = metrics["real_score"]
        minutes = np.interp(steps, *metrics["training_seconds"]) / 60
        records.curves.append(Curve(name, config.seed, None, steps, minutes, score))


def success_and_score(spec: Any, result: Mapping[str, Any]) -> dict[str, Any]:
    """Success rate and mean normalised score of a result's ``returns`` and ``successes``.

    Args:
        spec: of the task.
        result: of an evaluation.
    """
    returns = np.array(result["returns"])
    successes = None if result["successes"] is None else np.array(result["successes"])
    success = None if successes is None else float(successes.mean())
    return {"success": success, "score": float(np.mean(spec.score(returns, successes)))}


def _last_and_best(spec: Any, result: Mapping[str, Any], select: str) -> dict[str, Any]:
    """Mean return and score of a result's ``last`` and ``best`` policy, as far as it has them, and which counts."""
    found: dict[str, Any] = {"select": select}
    for which in SELECT:
        if result.get(which):
            found[f"return_{which}"] = float(np.mean(result[which]["returns"]))
            found[f"score_{which}"] = success_and_score(spec, result[which])["score"]
    return found


def _transitions(root: str, tasks: Sequence[str]) -> int | None:
    """Transitions of the tasks in a data set, if it is still there."""
    if not (Path(root) / "manifest.json").exists():
        return None
    statistics = EpisodeStore(root).statistics()
    return sum(statistics[task]["transitions"] for task in tasks)


def _read_online(records: Records, run: Path, name: str, config: Any, summary: Mapping[str, Any]) -> None:
    """One task: the final evaluation of the policy and of what it is compared with, and the curve."""
    task, seed, outcomes, metrics = summary["task"], summary["seed"], summary["outcomes"], read_metrics(run)
    seconds = float(metrics["training_seconds"][1][-1]) if "training_seconds" in metrics else summary["seconds"]
    common = {"env_steps": summary["steps"], "made": summary["made"], "policy_updates": _policy_updates(name, config)}
    common |= {"seconds_model": 0.0, "seconds_policy": seconds}
    # The first runs of SHAC had no choice: the last one counted.
    common["select"] = config.get("select", "last")
    for method, policy in ((name, "policy"), ("tdmpc2_prior", "policy without planning")):
        if policy in outcomes:
            known = {which: outcomes[f"{which} {policy}"] for which in SELECT if f"{which} {policy}" in outcomes}
            both = {f"return_{which}": outcome["return_mean"] for which, outcome in known.items()}
            records.add(method, task, seed, outcomes[policy]["returns"], **common, **both)
    if not any((row["method"], row["task"], row["seed"]) == ("random", task, seed) for row in records.rows):
        records.add("random", task, seed, outcomes["random actions"]["returns"])
    levels = records.references.setdefault(task, {})
    for level in ("no action", "hand-written controller"):
        if level in outcomes:
            levels[level] = outcomes[level]["return_mean"]
    records.curves.append(Curve(name, seed, task, *env_steps_curve(metrics, summary)))
    records.budgets[f"{name}, {task}"] = f"{summary['iterations']} iterations, {summary['steps']:,} env steps"


def env_steps_curve(metrics: Mapping[str, Any], summary: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
    """Env steps, minutes and returns of the evaluations along an online run."""
    x, y = (np.asarray(values, dtype=float) for values in metrics["real_return"])
    share = x / summary["iterations"]
    # SHAC's windows have as many steps each; others say how many they took, those of the warm-up included.
    steps = np.interp(x, *metrics["env_steps"]) if "env_steps" in metrics else share * summary["steps"]
    timed = metrics.get("training_seconds")
    seconds = share * summary["seconds"] if timed is None else np.interp(x, *timed)
    return steps, seconds / 60, y


def _policy_updates(name: str, config: Any) -> int:
    each = {"pwm": "online.policy_updates", "tdmpc2": "online.updates", "sac": "updates"}
    if name == "ppo":
        return config.iterations * config.epochs * -(-config.env.num_envs * config.collector.steps // config.batch_size)
    return config.iterations * (OmegaConf.select(config, each[name]) if name in each else 1)


def progress_to_controller(outcomes: Mapping[str, Mapping[str, Any]]) -> float:
    """Share of the way from the better of random actions and none (0) to the hand-written controller (1).

    Args:
        outcomes: of an online run's summary.
    """
    low = max(outcomes["random actions"]["return_mean"], outcomes["no action"]["return_mean"])
    return (outcomes["policy"]["return_mean"] - low) / (outcomes["hand-written controller"]["return_mean"] - low)


def _normalize(records: Records, known_scale: float | None) -> None:
    """Scores of returns: 0 is the better of random actions and none, 1 the controller or else the best method.

    With a known scale, 0 is a return of 0 and 1 one of the scale.
    """
    for task in records.tasks():
        levels, low, scale = records.references.get(task, {}), 0.0, known_scale
        if scale is None:
            returns = {method: records.values(method, task, "return_mean") for method in records.methods()}
            means = {method: float(np.mean(values)) for method, values in returns.items() if values}
            low = max(means.get("random", -np.inf), levels["no action"])
            top = levels.get("hand-written controller", -np.inf)
            scale = (top if top > low else max(means.values())) - low or 1.0
        for row in (row for row in records.rows if row["task"] == task):
            row["score"] = (row["return_mean"] - low) / scale
            for which in SELECT:
                if row[f"return_{which}"] is not None:
                    row[f"score_{which}"] = (row[f"return_{which}"] - low) / scale
        for curve in records.curves:
            if curve.task == task:
                curve.score = (curve.score - low) / scale
        records.references[task] = {name: (value - low) / scale for name, value in levels.items()}
