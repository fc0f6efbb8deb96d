"""The whole of PWM in one run: data, world model, policies, evaluation, report.

A run lives in a folder with its configuration, metrics, checkpoints and results; each stage is skipped when its result
is there and goes on from its checkpoint when it was interrupted.
"""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig

from torchrl_pwm._utils.devices import choose_device, torch_threads
from torchrl_pwm.envs import get_task_set
from torchrl_pwm.modules import QUICKSTART_FILE, load_quickstart
from torchrl_pwm.runs.baselines import baseline_jobs, baseline_settings, baseline_works
from torchrl_pwm.runs.clock import RunClock
from torchrl_pwm.runs.data import check_simulators, collect_data, open_data, select_tasks
from torchrl_pwm.runs.deviations import check_comparison
from torchrl_pwm.runs.engines import make_engine
from torchrl_pwm.runs.engines.work import Work
from torchrl_pwm.runs.extraction import extract_all
from torchrl_pwm.runs.folder import claim_folder, finished
from torchrl_pwm.runs.own_episodes import check_earlier, earlier_data
from torchrl_pwm.runs.policies import config_of_task
from torchrl_pwm.runs.report import write_report
from torchrl_pwm.runs.round_loop import beginning
from torchrl_pwm.runs.rounds import LastExtraction, add_earlier, run_rounds
from torchrl_pwm.runs.world_model import (
    given_world_model,
    load_world_model,
    make_world_model,
    prepare_disagreement,
    prepare_world_model,
)


def run_pipeline(config: DictConfig, folder: Path) -> Path:
    """Runs what is left of the run in ``folder`` and returns the path of its ``summary.json``.

    Raises:
        FileNotFoundError, ValueError, ImportError: if something that the configuration names is missing, unknown or
            does not fit, before the folder is made.
    """
    with torch_threads(config.threads), RunClock(folder) as clock:
        return _run_stages(config, folder, clock)


def _run_stages(config: DictConfig, folder: Path, clock: RunClock) -> Path:
    tasks = check_config(config, folder)
    source = config.data.source
    store = open_data(config, tasks) if source in ("published", "open") else None
    claim_folder(config, folder)
    if source == "collect":
        store = collect_data(config, folder, tasks)
    model_file = prepare_world_model(config, folder, store, tasks)
    begun, before = beginning(config, [], False)
    left = [LastExtraction(tasks, begun, model_file, before)]
    if config.rounds.count and store is not None:
        left = run_rounds(config, folder, store, model_file, tasks)
    root = None if store is None else Path(store.root)
    further, results = _baselines(config, folder, root, tasks), []
    for last in left:
        if config.loss.disagreement_coef and store is not None:
            prepare_disagreement(config, store, last.world_model, last.tasks)
        places = folder, root, last.world_model
        results += extract_all(last.config, *places, last.tasks, last.before, further=further)
        further = []
    results = sorted(add_earlier(results, folder), key=lambda result: tasks.index(result["task"]))
    behavior, file = load_quickstart() if store is None else store, left[-1].world_model
    return write_report(config, folder, behavior, file, results, clock=clock)


def _baselines(config: DictConfig, folder: Path, data: Path | None, tasks: list[str]) -> list[Work]:
    """What is left to be measured of them by the processes that extract; beside a GPU the report has some of its own.

    One that is interrupted begins anew.
    """
    if choose_device(config.device) != "cpu":
        return []
    return baseline_works(baseline_jobs(config, folder, data, tasks))


def check_config(config: DictConfig, folder: Path) -> list[str]:
    """The run's tasks, if its names, packages and checkpoint are right.

    Raises:
        FileNotFoundError, ValueError, ImportError: if one is not.
    """
    task_set = get_task_set(config.task_set)
    tasks = select_tasks(config.task, task_set)
    check_comparison(config)
    baseline_settings(config)
    check_simulators(tasks, task_set)
    left = finished(config, folder) is None
    if left:
        make_engine(config)
    # which runs of before have not
    continued = max(config_of_task(config, task_set[task]).stepper.get("continued", 0.0) for task in tasks)
    if continued and config.tasks_per_batch > 1:
        raise ValueError(
            "policies that are extracted as one program begin at recorded states alone, found tasks_per_batch="
            f"{config.tasks_per_batch} with stepper.continued={continued}: set one to 1, or the other to 0."
        )
    if config.data.source == "quickstart":
        _check_quickstart(config, tasks)
    if left:
        check_earlier(config.rounds, config.task_set, tasks)
    if config.checkpoint == "quickstart":
        load_world_model(config, QUICKSTART_FILE)
    elif config.checkpoint:
        load_world_model(config, given_world_model(config, folder))
    else:
        with torch.device("meta"):
            make_world_model(config)
    return tasks


def _check_quickstart(config: DictConfig, tasks: list[str]) -> None:
    quickstart = load_quickstart()
    missing = [task for task in tasks if task not in quickstart.tasks]
    if missing or config.task_set != quickstart.task_set:
        raise ValueError(
            f"The world model that comes with the package knows {', '.join(quickstart.tasks)} of "
            f"{quickstart.task_set}, not {', '.join(missing) or config.task_set}. Choose among these, or train a "
            "model: preset=from_scratch, or data=published with the published data."
        )
    earlier = list(map(str, earlier_data(config.rounds)))
    if config.checkpoint != "quickstart" or config.rounds.count or earlier or config.loss.disagreement_coef:
        raise ValueError(
            "data=quickstart has start states and no episodes: it goes with checkpoint=quickstart, rounds.count=0, "
            f"rounds.earlier=[] and loss.disagreement_coef=0, found {config.checkpoint}, {config.rounds.count}, "
            f"{earlier} and {config.loss.disagreement_coef}."
        )
