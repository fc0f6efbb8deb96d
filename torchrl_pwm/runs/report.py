"""Report of a run: summary.json, one HTML page, plots and film strips."""

from __future__ import annotations

import datetime
import functools
import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from torchrl_pwm._utils.stopwatch import added, rounded
from torchrl_pwm.data import EpisodeStore
from torchrl_pwm.envs import get_task_set
from torchrl_pwm.envs.rendering import rendering_available
from torchrl_pwm.envs.tasks import TaskSpec
from torchrl_pwm.evaluation import (
    EvaluationResult,
    FilmStrip,
    collapse_warning,
    compare_with_published,
    evaluate_policy,
    film_pictures,
    film_strip,
    plot_scores,
    plot_training,
    reference_score,
    write_html_report,
    write_summary,
)
from torchrl_pwm.evaluation.curves import Series
from torchrl_pwm.evaluation.statistics import METHODS, SELECT
from torchrl_pwm.evaluation.trust import trust_line
from torchrl_pwm.evaluation.video import film_steps
from torchrl_pwm.modules import Quickstart
from torchrl_pwm.runs.baselines import baseline_settings, measure_baselines
from torchrl_pwm.runs.clock import RunClock
from torchrl_pwm.runs.deviations import protocol_deviations
from torchrl_pwm.runs.policies import load_actor
from torchrl_pwm.runs.rounds import policy_metrics
from torchrl_pwm.runs.world_model import kept_world_model, load_world_model, read_representation


def write_report(
    config: DictConfig,
    folder: Path,
    store: EpisodeStore | Quickstart,
    model_file: Path,
    results: list[dict[str, Any]],
    *,
    clock: RunClock,
) -> Path:
    """Measures the baselines, and writes the summary, the report and the pictures.

    The results of several seeds of a task are one row: all their episodes together, the mean extraction time, and each
    seed by itself.

    Returns:
        The path of ``summary.json``.
    """
    task_set = get_task_set(config.task_set)
    behavior = store.statistics()
    tasks = list(dict.fromkeys(result["task"] for result in results))
    data = Path(store.root) if isinstance(store, EpisodeStore) else None
    baselines = measure_baselines(config, folder, data, tasks)
    seconds, rows = clock.seconds, []
    for task in tasks:
        spec, runs = task_set[task], [result for result in results if result["task"] == task]
        row = EvaluationResult.from_records(spec, runs).summary_row(
            behavior_return_mean=behavior[task]["behavior_return_mean"],
            seconds_extraction=round(float(np.mean([run["seconds"] for run in runs])), 1),
            seeds=_by_seed(spec, runs),
            baselines={
                # further shares that are cloned stand in the file of the baselines alone
                **{name: _outcome(spec, found) for name, found in baselines.get(task, {}).items() if name in METHODS},
                "data": _data_outcome(spec, behavior[task]),
            },
            published={method: reference_score(task, task_set, method) for method in ("pwm", "tdmpc2")},
            trust=_trust(runs),
            **_last_and_best(spec, runs),
        )
        rows.append(row)
    begin = time.perf_counter()
    models = {task: kept_world_model(folder, task) or model_file for task in tasks}
    films = _films(config, folder, models)
    phases = [run.get("phases", {}) for run in results]
    phases += [run.get("phases", {}) for found in baselines.values() for runs in found.values() for run in runs]
    phases.append({"films": time.perf_counter() - begin})
    path = folder / "summary.json"
    notes = [*_notes(config, folder, store, rows), *_representation_notes(models), *_trust_notes(rows)]
    comparison = None
    if OmegaConf.select(config, "compare"):
        remarks = protocol_deviations(config, store, model_file)
        comparison = compare_with_published(rows, task_set, remarks=remarks)
    summary = write_summary(
        path,
        rows,
        seed=config.seed,
        seconds_total=round(seconds, 1),
        notes=notes,
        comparison=comparison,
        select=config.extraction.select,
        phases=rounded(added(phases)),
    )
    plot_scores(summary, folder / "scores.png", task_set=task_set)
    write_html_report(
        summary,
        folder / "report.html",
        task_set=task_set,
        title=f"PWM on {', '.join(tasks)}" if len(tasks) <= 3 else None,
        curves=_curves(config, folder, results, behavior),
        films=films,
        config=OmegaConf.to_yaml(config),
        made=datetime.date.today().isoformat(),
    )
    return path


def _notes(config: DictConfig, folder: Path, store: EpisodeStore | Quickstart, rows: list[dict[str, Any]]) -> list[str]:
    """What the policies had and the baselines did not."""
    notes, cloned = [], [row["baselines"]["cloning"] for row in rows if "cloning" in row["baselines"]]
    cloning, settings = bool(cloned), (baseline_settings(config) or {}).get("cloning") or {}
    counts = settings.get("select") if all("best" in entry for entry in cloned) else "last"
    select = config.extraction.select
    if cloning and counts != select:
        notes.append(
            f"Of the policies the {select} one counts (extraction.select={select}), of behaviour cloning the {counts} "
            "one: compare columns of one name."
        )
    if isinstance(store, EpisodeStore):  # rounds may have ended before they were as many as wanted
        played = len(list(folder.glob("rounds/*/data")))
        rounds: Any = {"count": played, "earlier": config.get("rounds", {}).get("earlier")}
    else:
        rounds = store.source.get("rounds", {})
    seen = [f"{rounds['count']} round(s) of its policies' own episodes"] if rounds.get("count") else []
    seen += ["episodes that policies of earlier runs played"] if rounds.get("earlier") else []
    if cloning and seen:
        notes.append(f"The world model also saw {' and '.join(seen)}; behaviour cloning has the data before them.")
    top = settings.get("top", 1.0)
    if cloning and not isinstance(store, EpisodeStore):
        notes.append(
            "Behaviour cloning has the start states and actions of good episodes that come with the world model, not "
            "all of its data."
        )
    elif cloning and top < 1.0:
        notes.append(f"Behaviour cloning copies the {top:.0%} of the episodes that have the highest return.")
    return notes


def _representation_notes(models: Mapping[str, Path]) -> list[str]:
    """What the training of each task's world model found of its latents."""
    known = {file: read_representation(file) for file in set(models.values())}
    found = {task: known[file][task] for task, file in models.items() if task in known[file]}
    measured = {task: each for task, each in found.items() if "observation_explained" in each}
    if not measured:
        return []
    worst = min(measured, key=lambda task: measured[task]["observation_explained"])
    mean = float(np.mean([each["observation_explained"] for each in measured.values()]))
    note = (
        f"From the world model's latents a small network reads {mean:.0%} of the observations' variance (least: "
        f"{measured[worst]['observation_explained']:.0%}, {worst}; standard deviation of the latent there "
        f"{measured[worst]['latent_spread']:.3g})."
    )
    return [note, *filter(None, [collapse_warning(found)])]


def _trust(runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What the trust probe says of the policies of a task, with the means of their figures; None of runs without it."""
    found = [{"seed": run["seed"], **run["trust"]} for run in runs if run.get("trust")]
    if not found:
        return None

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    exploited = [each["seed"] for each in found if each["exploited"]]
    gap = mean([each["value_gap"] and each["value_gap"]["closed"] for each in found])
    real = float(np.mean([each["real_return"] for each in found]))
    line = trust_line(bool(exploited), mean([each["imagined_return"] for each in found]), real, gap)
    share = f" (means of {len(found)} seeds, of which {len(exploited)} show it)" if len(found) > 1 and exploited else ""
    return {"exploited": bool(exploited), "line": line + share, "seeds": found}


def _trust_notes(rows: list[dict[str, Any]]) -> list[str]:
    """One alarm line for each task whose policies exploit the model, or one for all."""
    probed = [row for row in rows if "trust" in row]
    bad = [f"{row['task']} {row['trust']['line']}." for row in probed if row["trust"]["exploited"]]
    return bad or (["Trust probe: no policy shows a sign that it exploits its model."] if probed else [])


def _by_seed(spec: TaskSpec, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"seed": run["seed"], **EvaluationResult.from_records(spec, [run]).outcome()} for run in runs]


def _outcome(spec: TaskSpec, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The episodes of several policies together, and by seed; those of the last and the best ones too."""
    outcome = {**EvaluationResult.from_records(spec, runs).outcome(), "seeds": _by_seed(spec, runs)}
    return {**outcome, **_last_and_best(spec, runs)}


def _last_and_best(spec: TaskSpec, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The last and the best policies of all runs, where both were evaluated."""
    return {
        which: _outcome(spec, [{**run[which], "seed": run["seed"]} for run in runs])
        for which in SELECT
        if all(run.get(which) for run in runs)
    }


def _data_outcome(spec: TaskSpec, behavior: dict[str, Any]) -> dict[str, Any]:
    """What the episodes of the data earned; where their success was not recorded, they have no score."""
    success = behavior["success_mean"]
    scored = spec.score_rule == "return" or success is not None
    return {
        "return_mean": behavior["behavior_return_mean"],
        "return_std": behavior["behavior_return_std"],
        "success": success if spec.score_rule == "success" else None,
        "score": spec.score(behavior["behavior_return_mean"], success) if scored else None,
        "episodes": None,
    }


def _curves(
    config: DictConfig, folder: Path, results: list[dict[str, Any]], behavior: dict[str, dict[str, Any]]
) -> dict[str, dict[int, dict[str, Series]]]:
    """The metrics of each policy, whose picture is drawn beside them."""
    curves: dict[str, dict[int, dict[str, Series]]] = {}
    for result in results if config.logger == "csv" else ():
        task, seed = result["task"], result["seed"]
        place = folder / "policies" / task / f"seed-{seed}"
        curves.setdefault(task, {})[seed] = metrics = policy_metrics(folder, result)
        plot_training(
            metrics,
            place / "training.png",
            references={"mean of the data": behavior[task]["behavior_return_mean"]},
            title=f"{task}, seed {seed}",
        )
    return curves


def _films(config: DictConfig, folder: Path, models: Mapping[str, Path]) -> dict[str, FilmStrip]:
    """An episode of the first seed's policy in each of the first tasks, and a picture of all of them.

    Each in the world model that its policy was extracted from, which rounds may have left different ones of.
    """
    if not (config.evaluation.film and rendering_available()):
        return {}
    load = functools.cache(functools.partial(load_world_model, config))
    films, strips, shown = {}, {}, {}
    for task, file in itertools.islice(models.items(), config.evaluation.film):
        model = load(file)
        steps = film_steps(get_task_set(config.task_set)[task].episode_length + 1)
        result = evaluate_policy(
            load_actor(config, model, folder, task),
            task,
            task_set=config.task_set,
            world_model=model,
            episodes=1,
            seed=config.evaluation.seed,
            record=1,
            record_steps=steps,
            pixel_size=(128, 128),
        )
        ending = "" if result.success is None else f", {'success' if result.success else 'no success'} at its last step"
        label = f"{task}: return {result.return_mean:.0f}"
        strips[label], shown[label] = result.frames[0], steps
        films[task] = FilmStrip(
            film_pictures(result.frames[0], steps=steps),
            f"First evaluation episode of seed {config.seed}: return {result.return_mean:.0f}{ending}.",
        )
    film_strip(strips, folder / "film.png", steps=shown)
    return films
