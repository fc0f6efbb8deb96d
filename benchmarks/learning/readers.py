"""Reads the finished runs of a group."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from benchmarks.learning.groups import METHODS, Group
from benchmarks.learning.methods.offline import MODEL_FILES, MODELS, RUNS
from benchmarks.learning.methods.online import SCRIPTS
from benchmarks.learning.records import Curve, Records
from torchrl_pwm.data import EpisodeStore
from torchrl_pwm.envs import get_task_set
from torchrl_pwm.evaluation import read_metrics


def read_records(group: Group, folder: Path, methods: Sequence[str] = (), tasks: Sequence[str] = ()) -> Records:
    """What the finished runs below ``folder`` found.

    Raises:
        FileNotFoundError: if no run is finished.
    """
    records = Records()
    wanted, known = set(methods or group.methods), list(tasks or group.tasks)
    reader = _read_offline if group.offline else _read_online
    for summary in sorted(folder.rglob("summary.json")):
        reader(records, summary.parent, folder, known)
        _read_origin(records, summary)
    records.rows = [
        {**row, "group": group.name} for row in records.rows if row["method"] in wanted and row["task"] in known
    ]
    records.curves = [curve for curve in records.curves if curve.method in wanted and curve.task in (None, *known)]
    if not records.rows:
        raise FileNotFoundError(
            f"no finished run of {', '.join(wanted)} in {folder}: "
            f"python -m benchmarks.learning.suite run --group {group.name} makes them"
        )
    order = {method: place for place, method in enumerate(METHODS)}
    records.rows.sort(key=lambda row: (order[row["method"]], known.index(row["task"]), row["seed"]))
    if not group.offline:
        _normalize(records, group.scale)
    return records


def _read_origin(records: Records, summary: Path) -> None:
    """With what a run was made; where runs differ, all that there was."""
    for name, version in json.loads(summary.read_text()).get("versions", {}).items():
        records.versions[name] = _joined(records.versions.get(name), version)
    job = summary.parent / "job.json"
    made = json.loads(job.read_text()) if job.exists() else {}
    for name, value in made.get("machine", {}).items():
        records.machine[name] = _joined(records.machine.get(name), value)
    if made.get("commit"):
        records.commit = _joined(records.commit, made["commit"])


def _joined(before: str | None, found: str) -> str:
    return found if before is None else before if found in before.split("; ") else f"{before}; {found}"


def _read_offline(records: Records, run: Path, folder: Path, tasks: Sequence[str]) -> None:
    name = run.relative_to(folder).parts[0]
    if name not in RUNS.values():
        return
    config: Any = OmegaConf.load(run / "config.yaml")
    made = json.loads((run / "summary.json").read_text())
    if name.startswith("pwm"):
        _read_pwm(records, run, name, config)
    else:
        _read_tdmpc2(records, run, name, config)
    date = datetime.date.fromtimestamp((run / "summary.json").stat().st_mtime).isoformat()
    for row in records.rows:
        row["made"] = row["made"] or date
    for row in made["tasks"]:
        if row.get("baselines", {}).get("data"):
            records.references.setdefault(row["task"], {})["the data's behaviour"] = row["baselines"]["data"]["score"]


def _read_pwm(records: Records, run: Path, name: str, config: Any) -> None:
    task_set = get_task_set(config.task_set)
    transitions = _transitions(config.data.root, config.task)
    if name == "pwm":
        model_updates, model = config.world_model.iterations, read_metrics(run / "world_model")
    else:
        source = _source(run, name)
        trained: Any = OmegaConf.load(source / "config.yaml")
        settings = trained.training if MODELS[name] == "tdmpc2" else trained.world_model
        model_updates = settings.iterations
        model = read_metrics(source / MODEL_FILES[MODELS[name]].parent)
    seconds = float(model["training_seconds"][1][-1])
    policies = []
    for file in sorted(run.glob("policies/*/*/result.json")):
        result, metrics = json.loads(file.read_text()), read_metrics(file.parent)
        policies.append(metrics)
        records.add(
            name,
            result["task"],
            result["seed"],
            result["returns"],
            **_outcome(task_set[result["task"]], result),
            model_updates=model_updates,
            policy_updates=config.extraction.iterations,
            transitions=transitions,
            seconds_model=seconds,
            seconds_policy=float(metrics["training_seconds"][1][-1]),
        )
    for file in sorted(run.glob("baselines/*.json")):
        for method, runs in json.loads(file.read_text()).items():
            for result in runs:
                updates = config.evaluation.baselines.cloning.updates if method == "cloning" else None
                outcome = _outcome(task_set[file.stem], result)
                records.add(
                    *(method, file.stem, config.seed, result["returns"]),
                    **outcome,
                    policy_updates=updates,
                    transitions=transitions if method == "cloning" else None,
                )
    records.curves += _extraction_curve(name, config.seed, model_updates, seconds, policies)
    what = f"world model of {model_updates} updates of {config.world_model.batch_size} x {config.world_model.slice_len}"
    if name != "pwm":
        what = f"world model of the {METHODS[MODELS[name]][0].split(',')[0]} run"
    records.budgets[name] = (
        f"{what}, then {config.extraction.iterations} updates of {config.extraction.batch_size} imagined rollouts of "
        f"{config.loss.horizon} steps for each task"
    )


def _source(run: Path, name: str) -> Path:
    """The run whose world model this one uses; beside it, wherever both were moved."""
    return run.parents[1] / MODELS[name] / run.name


def _extraction_curve(
    name: str, seed: int, model_updates: int, seconds: float, policies: Sequence[Mapping[str, Any]]
) -> Iterator[Curve]:
    """The mean of all tasks, as if their policies were extracted side by side on one core, after the model."""
    shared = [metrics["real_score"][0] for metrics in policies if "real_score" in metrics]
    if not shared or len(shared) < len(policies):
        return
    steps = sorted(set.intersection(*(set(x.tolist()) for x in shared)))
    spent = [np.interp(steps, *metrics["training_seconds"]) for metrics in policies]
    scores = [np.interp(steps, *metrics["real_score"]) for metrics in policies]
    yield Curve(
        name,
        seed,
        None,
        model_updates + len(policies) * np.asarray(steps),
        (seconds + np.sum(spent, 0)) / 60,
        np.mean(scores, 0),
    )


def _read_tdmpc2(records: Records, run: Path, name: str, config: Any) -> None:
    task_set = get_task_set(config.task_set)
    source = run if name == "tdmpc2" else _source(run, name)
    trained: Any = OmegaConf.load(source / "config.yaml")
    training, metrics = trained.training, read_metrics(source / MODEL_FILES["tdmpc2"].parent)
    for file in sorted(run.glob("tasks/*.json")):
        result = json.loads(file.read_text())
        records.add(
            name,
            result["task"],
            config.seed,
            result["returns"],
            **_outcome(task_set[result["task"]], result),
            model_updates=training.iterations,
            policy_updates=training.iterations,
            transitions=_transitions(trained.data.root, trained.task),
            seconds_model=float(metrics["training_seconds"][1][-1]),
            seconds_policy=0.0,
        )
    planner = config.planner
    records.budgets[name] = f"{training.iterations} updates of {training.batch_size} x {training.slice_len}" + (
        f"; {planner.num_samples} sequences of {planner.horizon} steps, {planner.iterations or '6 or 8'} iterations"
        if config.plan
        else "; acts by the policy prior"
    )
    # The evaluations along the way are of the prior.
    if name == "tdmpc2_prior" and "real_score" in metrics:
        x, y = metrics["real_score"]
        minutes = np.interp(x, *metrics["training_seconds"]) / 60
        records.curves.append(Curve(name, config.seed, None, x, minutes, y))


def _outcome(spec: Any, result: Mapping[str, Any]) -> dict[str, Any]:
    returns = np.array(result["returns"])
    successes = None if result["successes"] is None else np.array(result["successes"])
    success = None if successes is None else float(successes.mean())
    return {"success": success, "score": float(np.mean(spec.score(returns, successes)))}


def _transitions(root: str, tasks: Sequence[str]) -> int | None:
    """Transitions of the tasks in a data set, if it is still there."""
    if not (Path(root) / "manifest.json").exists():
        return None
    found = EpisodeStore(root).statistics()
    return sum(found[task]["transitions"] for task in tasks)


def _read_online(records: Records, run: Path, folder: Path, tasks: Sequence[str]) -> None:
    name = run.relative_to(folder).parts[0]
    if name not in SCRIPTS:
        return
    summary = json.loads((run / "summary.json").read_text())
    config: Any = OmegaConf.load(run / "config.yaml")
    task, seed, outcomes = summary["task"], summary["seed"], summary["outcomes"]
    if task not in tasks:
        return
    common = {"env_steps": summary["steps"], "made": summary["made"]}
    metrics = read_metrics(run)
    seconds = float(metrics["training_seconds"][1][-1]) if "training_seconds" in metrics else summary["seconds"]
    common |= {"seconds_model": 0.0, "seconds_policy": seconds, "policy_updates": _policy_updates(name, config)}
    records.add(name, task, seed, outcomes["policy"]["returns"], **common)
    if "policy without planning" in outcomes:
        records.add("tdmpc2_prior", task, seed, outcomes["policy without planning"]["returns"], **common)
    if ("random", task, seed) not in {(row["method"], row["task"], row["seed"]) for row in records.rows}:
        records.add("random", task, seed, outcomes["random actions"]["returns"])
    levels = records.references.setdefault(task, {})
    for level in ("no action", "hand-written controller"):
        if level in outcomes:
            levels[level] = outcomes[level]["return_mean"]
    amount, minutes, score = env_steps_curve(metrics, summary)
    records.curves.append(Curve(name, seed, task, amount, minutes, score))
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


def _normalize(records: Records, known_scale: float | None) -> None:
    """Scores of returns: 0 is the better of random actions and none, 1 the controller or else the best method.

    With a known scale, 0 is a return of 0 and 1 one of the scale.
    """
    for task in records.tasks():
        levels = records.references.get(task, {})
        means = {
            method: np.mean(records.values(method, task, "return_mean") or -np.inf) for method in records.methods()
        }
        low = max(float(means.get("random", -np.inf)), levels["no action"])
        top = levels.get("hand-written controller", -np.inf)
        scale = float(top if top > low else max(means.values())) - low or 1.0
        if known_scale is not None:
            low, scale = 0.0, known_scale

        def score(value: Any, low: float = low, scale: float = scale) -> Any:
            return (value - low) / scale

        for row in records.rows:
            if row["task"] == task:
                row["score"] = float(score(row["return_mean"]))
        for curve in records.curves:
            if curve.task == task:
                curve.score = score(curve.score)
        records.references[task] = {name: float(score(value)) for name, value in levels.items()}
