"""TD-MPC2 on offline data of many tasks: training, and evaluation of a model of one's own or a published one."""

from __future__ import annotations

import filecmp
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from torchrl_pwm._utils.devices import choose_device, torch_threads
from torchrl_pwm._utils.files import replace_file, replaced_file
from torchrl_pwm.envs import TaskSet, get_task_set
from torchrl_pwm.evaluation import EvaluationResult, compare_with_published, plot_scores, write_summary
from torchrl_pwm.evaluation.statistics import SELECT
from torchrl_pwm.evaluation.task_envs import TaskEnvs
from torchrl_pwm.modules import PWMWorldModel, TDMPC2Model
from torchrl_pwm.planners import TDMPC2Planner
from torchrl_pwm.runs.clock import RunClock
from torchrl_pwm.runs.data import check_simulators, collect_data, open_data, select_tasks
from torchrl_pwm.runs.deviations import check_comparison, other_data, other_size
from torchrl_pwm.runs.folder import claim_folder
from torchrl_pwm.runs.saved import read_result
from torchrl_pwm.runs.tdmpc2_training import MODEL, play_rounds, train_tdmpc2
from torchrl_pwm.runs.world_model import check_sizes, unsaid_sizes


def run_offline_tdmpc2(config: DictConfig, folder: Path) -> Path:
    """Runs what is left of the run in ``folder`` and returns the path of its ``summary.json``.

    With a ``checkpoint`` it is evaluated. Without, a model is trained on the configured data first; the folder then
    holds ``model/model.pt``, a checkpoint in TD-MPC2's current layout (with ``training.normalize_observations`` of
    statistics too, which only this package reads), beside metrics and what a resume needs. It is the last model or,
    with ``training.select=best``, the one whose policy prior did best in an evaluation during training; the other one
    is kept beside it, as ``last.pt`` or ``best.pt``. Rounds leave the same in ``rounds/NUMBER/model``, of which the
    last counts. The summary has return, success and normalised score of every task, of both models; with
    ``evaluation.prior`` the episodes of the policy prior alone are in ``tasks/prior`` too.

    Raises:
        FileNotFoundError, ValueError, ImportError: if something that the configuration names is missing, unknown or
            does not fit, before the folder is made.
        FloatingPointError: if a number is not finite.
    """
    with torch_threads(config.threads), TaskEnvs() as envs, RunClock(folder) as clock:
        return _run_stages(config, folder, envs, clock)


def _run_stages(config: DictConfig, folder: Path, envs: TaskEnvs, clock: RunClock) -> Path:
    task_set = get_task_set(config.task_set)
    tasks = select_tasks(config.task, task_set)
    check_simulators(tasks, task_set)
    check_comparison(config)
    check_parts(config)
    source, store, file = config.data.source, None, None
    if config.checkpoint:
        file = given_checkpoint(config, folder)
        model = load_tdmpc2(config, file, tasks)
    elif source in ("published", "open"):
        store = open_data(config, tasks)
    elif source != "collect":
        raise ValueError(
            f"data={source} has start states and no episodes to train on: choose data=published, data=open or "
            "data=collect, or evaluate a model with checkpoint=..."
        )
    claim_folder(config, folder)
    if config.checkpoint:
        keep_checkpoint(config, folder)
    if file is None:
        store = store or collect_data(config, folder, tasks)
        scores = partial(_scores, envs)
        file = train_tdmpc2(config, folder / "model", store, tasks, scores)
        if OmegaConf.select(config, "rounds.count"):
            file = play_rounds(config, folder, store, tasks, scores)
        model = load_tdmpc2(config, file, tasks)
        envs.close()  # those of the evaluations along the way, of fewer episodes side by side
    select, which, other = _other_model(Path(file))
    other_model = None
    if other is not None and not filecmp.cmp(file, other, shallow=False):
        other_model = load_tdmpc2(config, other, tasks)
    results, others = _evaluate_both(config, folder / "tasks", model, which, other_model, tasks, envs)
    both = {select: results, which: others} if select else {}
    if OmegaConf.select(config, "evaluation.prior") and config.plan:
        prior: DictConfig = OmegaConf.merge(config, {"plan": False})  # type: ignore[assignment]
        _evaluate_both(prior, folder / "tasks" / "prior", model, which, other_model, tasks, envs)
    behavior = {} if store is None else store.statistics()
    rows = []
    for number, result in enumerate(results):
        spec = task_set[result["task"]]
        data_mean = behavior[spec.name]["behavior_return_mean"] if behavior else None
        row = EvaluationResult.from_records(spec, [result]).summary_row(behavior_return_mean=data_mean)
        further = {name: EvaluationResult.from_records(spec, [found[number]]) for name, found in both.items()}
        rows.append({**row, **{name: evaluation.outcome() for name, evaluation in further.items()}})
    way = "Planned actions" if config.plan else "Actions of the policy prior, without planning"
    path = folder / "summary.json"
    comparison = None
    if OmegaConf.select(config, "compare"):
        remarks = [*(other_data(store) if store else []), *other_size(config, model.world_model)]
        if select == "best":
            remarks.append("The best of the evaluations counts (training.select=best), of the published runs the last.")
        comparison = compare_with_published(rows, task_set, remarks=remarks)
    notes = [f"TD-MPC2. {way}."]
    if not config.checkpoint and OmegaConf.select(config, "rounds.count"):
        notes.append(f"It also learnt from {config.rounds.count} round(s) of its own episodes.")
    summary = write_summary(
        path,
        rows,
        seed=config.evaluation.seed,
        seconds_total=round(clock.seconds, 1),
        notes=notes,
        comparison=comparison,
        select=select,
    )
    plot_scores(summary, folder / "scores.png", task_set=task_set)
    return path


def check_parts(config: Any) -> None:
    """Builds heads, loss, optimisation and planner around a model of one unit: they fit together, or say why not.

    Raises:
        ValueError: if a number is out of its range, or they do not fit together.
    """
    world_model = PWMWorldModel(1, 1, latent_dim=8, encoder_units=(1,), units=(1,), num_bins=config.model.num_bins)
    model = instantiate(config.heads, world_model, units=[1], episode_lengths=500)
    instantiate(config.stepper, instantiate(config.loss, model), iterations=1)
    instantiate(config.planner, model, plan=config.plan)


def load_tdmpc2(config: Any, file: str | Path, tasks: list[str]) -> TDMPC2Model:
    """A model from a checkpoint in one of TD-MPC2's layouts, with the discounts of the configured tasks.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its layout is not known, or its sizes are not those of the task set, or of the one task that a
            single-task checkpoint is for.
    """
    task_set, unsaid = get_task_set(config.task_set), unsaid_sizes(config)
    world_model = PWMWorldModel.from_tdmpc2(file, **unsaid)
    if world_model.num_tasks:
        check_sizes(world_model, task_set, file)
        lengths = [task.episode_length for task in task_set]
        model = TDMPC2Model.from_checkpoint(
            file, action_dims=task_set.action_dims, episode_lengths=lengths, dropout=config.heads.dropout, **unsaid
        )
        return model.requires_grad_(False)
    if len(tasks) != 1:
        raise ValueError(
            f"The checkpoint {file} is of a single task: say which with task=..., found {len(tasks)} tasks."
        )
    spec = task_set[tasks[0]]
    check_sizes(world_model, TaskSet(spec.name, [spec]), file, num_tasks=0)
    model = TDMPC2Model.from_checkpoint(file, episode_lengths=spec.episode_length, **unsaid)
    return model.requires_grad_(False)


def given_checkpoint(config: Any, folder: Path) -> Path:
    """The checkpoint that a run was given: the copy that it keeps, or before that the file itself."""
    kept = folder / "model" / Path(config.checkpoint).name
    return kept if kept.exists() else Path(config.checkpoint)


def keep_checkpoint(config: Any, folder: Path) -> None:
    """Copies the checkpoint that a run was given into its folder, so that the run is opened wherever it is.

    With it goes the other model of its training, first, since from then on the copy is what counts.
    """
    source = given_checkpoint(config, folder)
    _, _, other = _other_model(source)
    for file in (other, source):
        if file is not None and file.parent != folder / "model":
            with replaced_file(folder / "model" / file.name) as temporary:
                shutil.copyfile(file, temporary)


def model_of_run(config: Any, folder: Path) -> Path:
    """The file of the model that a run trained or was given.

    Raises:
        FileNotFoundError: if it has not ended its training.
    """
    number = OmegaConf.select(config, "rounds.count")
    trained = folder / "rounds" / str(number) if number else folder
    file = given_checkpoint(config, folder) if config.checkpoint else trained / "model" / MODEL
    if not file.exists():
        raise FileNotFoundError(
            f"No policy in {folder}: expected the folder of a finished run, with its model {file}. A run that was "
            f"interrupted goes on with: torchrl-pwm tdmpc2-mt80 resume={folder}"
        )
    return file


def _other_model(file: Path) -> tuple[str | None, str, Path | None]:
    """Whether a model is the last or the best of its training, and the other one that is kept beside it, if there is.

    Returns:
        The first is None where that is not known.
    """
    for own, which in (SELECT, SELECT[::-1]):
        other = file.with_name(f"{which}.pt")
        if file.name == MODEL and other.exists():
            return own, which, other
    return None, "", None


def _evaluate_both(
    config: DictConfig,
    folder: Path,
    model: TDMPC2Model,
    which: str,
    other: TDMPC2Model | None,
    tasks: list[str],
    envs: TaskEnvs,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The model that counts in ``folder``, and the other one, where it differs, in the folder below that says which."""
    results = evaluate_tasks(config, folder, model, tasks, envs)
    return results, results if other is None else evaluate_tasks(config, folder / which, other, tasks, envs)


def evaluate_tasks(
    config: DictConfig, folder: Path, model: TDMPC2Model, tasks: list[str], envs: TaskEnvs
) -> list[dict[str, Any]]:
    """Returns and successes of whole episodes in each task, kept in a file of each, so that none is run again."""
    device = choose_device(config.device)
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    bar = tqdm(tasks, desc="evaluation", unit="task", disable=not config.progress)
    for task in bar:
        file = folder / f"{task}.json"
        if not file.exists():
            # Of its own for each task, so that the numbers do not depend on which were evaluated before.
            generator = torch.Generator(device).manual_seed(config.evaluation.seed)
            planner: TDMPC2Planner = instantiate(
                config.planner, model.to(device), plan=config.plan, generator=generator
            )
            result = _evaluate(config, envs, planner, task, config.evaluation.episodes, config.evaluation.seed)
            replace_file(
                file,
                json.dumps({"task": task, **result.record(), "seconds": round(result.seconds, 1)}, indent=2).encode(),
            )
            bar.set_postfix_str(f"{task} {result.score:.3f}")
        results.append(read_result(file))
    return results


def _evaluate(config: DictConfig, envs: TaskEnvs, policy: TDMPC2Planner, task: str, episodes: int, seed: int) -> Any:
    """Whole episodes side by side: a planner plans for all rows at once."""
    task_set = config.task_set if policy.model.world_model.num_tasks else None
    rows = min(config.evaluation.num_envs, episodes)
    return envs.evaluate(policy, task, task_set=task_set, episodes=episodes, num_envs=rows, seed=seed)


def _scores(envs: TaskEnvs, config: DictConfig, model: TDMPC2Model, tasks: list[str]) -> dict[str, float]:
    """Normalised scores of the policy prior, which costs no planning, on seeds apart from the final evaluation's."""
    prior: TDMPC2Planner = instantiate(config.planner, model, plan=False)
    episodes, seed = config.training.eval_episodes, config.evaluation.seed + 1
    scores = {task: _evaluate(config, envs, prior, task, episodes, seed).score for task in tasks}
    return {"real_score": sum(scores.values()) / len(scores), **{f"score_{task}": s for task, s in scores.items()}}
