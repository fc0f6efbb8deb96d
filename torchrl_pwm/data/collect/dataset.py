"""Collects data sets from the simulators."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensordict.nn import TensorDictModuleBase
from torchrl import torchrl_logger
from tqdm import tqdm

from torchrl_pwm._utils.devices import one_thread
from torchrl_pwm._utils.files import locked, refuse_existing
from torchrl_pwm._utils.processes import run_jobs
from torchrl_pwm._utils.versions import versions
from torchrl_pwm.data.collect.behaviors import (
    BEHAVIORS,
    PADDING,
    Behavior,
    Noise,
    TaskJob,
    checked_noise,
    task_episodes,
)
from torchrl_pwm.data.collect.sac import SACConfig
from torchrl_pwm.data.store.join import write_rows
from torchrl_pwm.data.store.store import EpisodeStore
from torchrl_pwm.data.store.writer import EpisodeStoreWriter
from torchrl_pwm.envs.tasks import TaskSet, get_task_set

__all__ = ["collect_dataset"]


def collect_dataset(
    tasks: str | Sequence[str],
    root: str | os.PathLike[str],
    *,
    episodes: int | Mapping[str, int],
    behavior: Behavior | Mapping[str, Behavior] = "random",
    seed: int = 0,
    task_set: str | TaskSet = "mt80",
    noise: Sequence[Noise] | None = None,
    sac: SACConfig | None = None,
    policy: TensorDictModuleBase | Mapping[str, TensorDictModuleBase] | None = None,
    transform: Any = None,
    workers: int | None = None,
    progress: bool = True,
) -> EpisodeStore:
    """Collects a data set for :class:`~torchrl_pwm.data.TDMPC2ExperienceReplay` from the simulators.

    Each task's episodes depend on the seed, the task and its settings only, not on the other tasks or the number of
    workers. A task that is finished is kept in ``<root>.partial``, so that a collection that was interrupted goes on
    with the tasks that are missing and ends with the same bytes; called again when all is done, it returns the data
    set. Rows have the length of the set's shortest episodes, as in the published sets: with MT80 an episode of
    DMControl is five rows of 100 transitions, with MT30 one row of 500. Entries beyond a task's own observation are
    zero, those beyond its own action random, as in the published data.

    Behaviours:

    - ``"random"``: uniform actions;
    - ``"scripted"``: the Meta-World experts with the hold rule, episodes cycling through the noise levels;
    - ``"sac"``: TorchRL's soft actor-critic trained on the task; every episode of its training is kept, from random to
      as good as it gets. One update a step makes about 60 to 100 steps a second on a core. With one seed, kinds of
      processor give other episodes (cartpole-swingup: mean return 628 with AVX-512, 675 without);
    - ``"policy"``: a policy of yours with its deterministic action, plus noise.

    Args:
        tasks: one or more task names.
        root: folder of the data set to make.
        episodes: whole episodes of each task (500 steps DMControl, 100 Meta-World), one number or one per task.
        behavior: one behaviour, or one per task.
        seed: seed of everything.
        task_set: set whose sizes and indices are stored.
        noise: levels for ``"scripted"`` (default 0, 0.1, 0.3, 0.6 and ``"random"``) and ``"policy"`` (default 0):
            standard deviations, or ``"random"`` for an episode of uniform actions.
        sac: settings of SAC.
        policy: for ``"policy"``: reads the TensorDict of the env and writes ``action``; one, or one per task.
        transform: for ``"policy"``: env transform that makes the policy's input, such as
            :class:`~torchrl_pwm.WorldModelWrapper`.
        workers: processes; default one per core, at most one per task. With one, the work is done in this process.
            More are started with *spawn*: a script needs ``if __name__ == "__main__":``.
        progress: whether progress is shown.

    Returns:
        The opened data set. Its ``statistics()`` hold the mean and spread of the behaviour's returns.

    Raises:
        ValueError: for an unknown task, behaviour or noise level, or a collection to go on with that had other
            settings.
        FileExistsError: if ``root`` holds anything but this data set.
        BlockingIOError: if another process is collecting it.
        ImportError: without the ``mt80`` extra.

    Examples:
        >>> import tempfile
        >>> from torchrl_pwm import TDMPC2ExperienceReplay, collect_dataset
        >>> root = tempfile.mkdtemp() + "/data"
        >>> store = collect_dataset("pendulum-swingup", root, episodes=2, seed=1, workers=1, progress=False)
        >>> store.num_rows, store.row_length
        (10, 100)
        >>> TDMPC2ExperienceReplay(root, batch_size=4).sample().shape
        torch.Size([4, 17])
    """
    table = get_task_set(task_set)
    jobs = _jobs(tasks, table, episodes, behavior, seed, noise, sac or SACConfig(), policy, transform)
    row_length = min(spec.episode_length for spec in table)
    for job in jobs:
        if job.spec.episode_length % row_length:
            raise ValueError(
                f"episodes of {job.task} have {job.spec.episode_length} steps, which cannot be cut into rows of "
                f"{row_length}, the shortest of {table.name}"
            )
    target = Path(root)
    partial = target.with_name(f"{target.name}.partial")
    if target.is_dir() and any(target.iterdir()):
        return _finished(target, jobs, partial)
    refuse_existing(target)
    partial.mkdir(parents=True, exist_ok=True)
    with locked(partial) as free:
        if free is False:
            raise BlockingIOError(
                f"another process is collecting into {partial}: wait until it has ended, or give another folder"
            )
        return _collect(jobs, partial, target, row_length, workers=workers, progress=progress)


def _collect(
    jobs: list[TaskJob], partial: Path, target: Path, row_length: int, *, workers: int | None, progress: bool
) -> EpisodeStore:
    """Collects the tasks that are missing, and joins all of them."""
    missing = [job for job in jobs if not _has_part(partial / job.task, job)]
    if len(missing) < len(jobs):
        torchrl_logger.info(f"going on with {partial}: {len(jobs) - len(missing)} of {len(jobs)} tasks are there")
    # the longest first, so that no worker is left with one at the end
    missing.sort(key=lambda job: (job.behavior != "sac", -job.episodes * job.spec.episode_length))
    total = sum(job.episodes for job in missing)
    with tqdm(total=total, desc="collecting", unit="episode", disable=not progress) as bar:

        def report(task: str, episode_return: float) -> None:
            bar.set_postfix_str(f"{task} return {episode_return:.0f}", refresh=False)
            bar.update()

        run_jobs(functools.partial(_collect_task, partial, row_length), missing, workers=workers, report=report)
    return _assemble(jobs, partial, target, row_length)


def _jobs(
    tasks: str | Sequence[str],
    table: TaskSet,
    episodes: int | Mapping[str, int],
    behavior: Behavior | Mapping[str, Behavior],
    seed: int,
    noise: Sequence[Noise] | None,
    sac: SACConfig,
    policy: TensorDictModuleBase | Mapping[str, TensorDictModuleBase] | None,
    transform: Any,
) -> list[TaskJob]:
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"tasks must name at least one task and each once, found {names}")
    jobs = []
    for name in sorted(names, key=lambda name: table[name].index):
        kind = _of_task(behavior, name, "behavior")
        if kind not in BEHAVIORS:
            raise ValueError(f"unknown behavior {kind!r}; known are {', '.join(BEHAVIORS)}")
        if kind == "scripted" and table[name].suite != "metaworld":
            raise ValueError(f"{name} has no scripted expert, only the Meta-World tasks have; use 'sac' or 'random'")
        if kind == "policy" and policy is None:
            raise ValueError("behavior='policy' needs policy=, a TensorDict module that writes 'action'")
        number = _of_task(episodes, name, "episodes")
        if number < 1:
            raise ValueError(f"episodes of {name} must be at least 1, found {number}")
        jobs.append(
            TaskJob(
                task=name,
                table=table,
                behavior=kind,
                episodes=number,
                seed=seed,
                noise=checked_noise(kind, noise),
                sac=sac,
                policy=_of_task(policy, name, "policy") if kind == "policy" else None,
                transform=transform if kind == "policy" else None,
            )
        )
    return jobs


def _of_task(value: Any, task: str, name: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    if task not in value:
        raise ValueError(f"{name} says nothing about {task}; it names {sorted(value)}")
    return value[task]


def _collect_task(folder: Path, row_length: int, job: TaskJob, report: Callable[[str, float], object]) -> None:
    """Writes the part of one task: a data set of its own."""
    rows = job.episodes * (job.spec.episode_length // row_length)
    with one_thread(), _writer(folder / job.task, [job], {job.task: rows}, row_length) as writer:
        for number, episode in enumerate(task_episodes(job)):
            draws = np.random.default_rng(job.stream(PADDING, number))
            writer.write(job.task, *episode.rows(job.table, job.spec.action_dim, row_length, draws))
            report(job.task, float(episode.reward.sum()))


def _writer(root: Path, jobs: list[TaskJob], rows: Mapping[str, int], row_length: int) -> EpisodeStoreWriter:
    return EpisodeStoreWriter(
        root, jobs[0].table, rows, row_length=row_length, success=True, whole_episodes=True, source=_source(jobs)
    )


def _source(jobs: list[TaskJob]) -> dict[str, Any]:
    return {"kind": "collected", "tasks": {job.task: job.record() for job in jobs}, "versions": versions()}


def _has_part(part: Path, job: TaskJob) -> bool:
    """Whether a task was finished before, with the same settings."""
    if not part.exists():
        return False
    record = EpisodeStore(part, verify=True).manifest.source.get("tasks", {}).get(job.task)
    if record != job.record():
        raise ValueError(
            f"{part} was collected with other settings: wanted {job.record()}, found {record}; go on with the same "
            f"settings, or delete {part.parent} to start again"
        )
    return True


def _assemble(jobs: list[TaskJob], partial: Path, target: Path, row_length: int) -> EpisodeStore:
    """Joins the parts and publishes the data set."""
    parts = {job.task: EpisodeStore(partial / job.task) for job in jobs}
    rows = {name: part.num_rows for name, part in parts.items()}
    with _writer(target, jobs, rows, row_length) as writer:
        for part in parts.values():
            for task_rows in part.select():
                write_rows(writer, part, task_rows)
    del parts
    shutil.rmtree(partial)
    return EpisodeStore(target)


def _finished(target: Path, jobs: list[TaskJob], partial: Path) -> EpisodeStore:
    """The data set, if it is what the jobs make."""
    wanted = _source(jobs)["tasks"]
    try:
        store = EpisodeStore(target)
    except (FileNotFoundError, ValueError) as error:
        raise FileExistsError(f"{target} exists already and is no data set that can be used ({error})") from error
    if store.manifest.source.get("tasks") != wanted:
        raise FileExistsError(
            f"{target} holds a data set made in another way (tasks {list(store.tasks)}); give another folder, or "
            "delete it to collect again"
        )
    if partial.is_dir():
        shutil.rmtree(partial)
    return store
