"""Baselines in the same episodes: random actions, and behaviour cloning on the same data."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase
from torchrl.data import ReplayBuffer, TensorDictReplayBuffer, TensorStorage
from tqdm import tqdm

from torchrl_pwm._utils.devices import one_thread
from torchrl_pwm._utils.door import read_json
from torchrl_pwm._utils.files import replace_file
from torchrl_pwm._utils.processes import run_jobs
from torchrl_pwm._utils.seeds import uniform_actions
from torchrl_pwm._utils.stopwatch import Stopwatch, rounded
from torchrl_pwm.data import EpisodeStore, TDMPC2ExperienceReplay, start_states
from torchrl_pwm.envs import TaskSpec, get_task_set
from torchrl_pwm.evaluation.best_policy import BestPolicy
from torchrl_pwm.evaluation.task_episodes import TaskEpisodes
from torchrl_pwm.modules import load_quickstart
from torchrl_pwm.runs.engines.work import Work
from torchrl_pwm.runs.saved import DELETE
from torchrl_pwm.trainers.imitation import clone_behavior

__all__ = ["DEFAULT_BASELINES", "BaselineJob", "measure_baselines"]

# Options of clone_behavior; updates=0 leaves behaviour cloning out. top is the share of the episodes, those of the
# highest return, that are cloned; by default that of the run's start states, all where it has none. also names further
# shares, each cloned beside it as a baseline of its own, cloning_top_SHARE. evaluations along the way, by default as
# many as those of the policies, of eval_episodes each, find the best clone; select says whether that one counts or the
# last.
DEFAULT_BASELINES: dict[str, Any] = {
    "random": True,
    "cloning": {
        **{"updates": 2000, "batch_size": 256, "units": [256, 256], "lr": 1e-3, "top": None, "also": []},
        **{"evaluations": None, "eval_episodes": 8, "select": "last"},
    },
}
_CHOSEN = 30_000  # transitions of the best episodes
_EVALUATIONS = 5  # along the way, where there are no policies to be compared with


@dataclasses.dataclass(frozen=True)
class BaselineJob:
    """The baselines of one task.

    Args:
        settings: as :data:`DEFAULT_BASELINES`.
        task: name of the task.
        task_set: task set of the data.
        data: folder of the data set; None for the start states and actions of the quickstart.
        seeds: seeds of the cloned policies.
        episodes: evaluation episodes.
        seed: seed of the evaluation's env.
        file: where the result is kept.
    """

    settings: dict[str, Any]
    task: str
    task_set: str
    data: Path | None
    seeds: tuple[int, ...]
    episodes: int
    seed: int
    file: Path

    def run(self) -> dict[str, Any]:
        """Measures what has not been measured before.

        Returns:
            For ``"random"`` and ``"cloning"``, where they are wanted, a list of runs with ``seed``, ``returns`` and
            ``successes``; those of ``"cloning"``, and of further shares that are cloned, with ``last``, ``best`` and
            ``phases`` too, see :func:`~torchrl_pwm.runs.extraction.extract_policy`.
        """
        if self.file.exists():
            return read_json(self.file, what="record of baselines", keys=[], advice=DELETE)
        # without the task set: these policies read the task's own observation and write its own action
        with one_thread(), TaskEpisodes(self.task) as played:
            results = dict(self._measure(played))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.file, json.dumps(results, indent=2).encode())
        return results

    def _measure(self, played: TaskEpisodes) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        spec = get_task_set(self.task_set)[self.task]
        if self.settings["random"]:
            policy = RandomEpisodes(spec, self.episodes, self.seed)
            yield "random", [played.evaluate(policy, self.episodes, self.seed).record()]
        options = dict(self.settings["cloning"] or {"updates": 0})
        top, further = options.pop("top", None), options.pop("also", ())
        shares = {"cloning": 1.0 if top is None else top, **{f"cloning_top_{share:g}": share for share in further}}
        for name, share in shares.items() if options["updates"] else ():
            yield name, [self._clone(played, spec, seed, share, **options) for seed in self.seeds]

    def _clone(
        self,
        played: TaskEpisodes,
        spec: TaskSpec,
        seed: int,
        top: float,
        *,
        select: str = "last",
        evaluations: int | None = None,
        eval_episodes: int = 8,
        **options: Any,
    ) -> dict[str, Any]:
        best: list[BestPolicy] = []
        stopwatch = Stopwatch()

        def evaluate(actor: Any) -> None:
            # On the start states of the policies' evaluations along the way.
            with stopwatch.evaluating():
                result = played.evaluate(actor, eval_episodes, self.seed + 1)
            if not best:
                best.append(BestPolicy(actor))
            best[0].offer(0.0 if result.score is None else result.score, result.return_mean)

        interval = -(-options["updates"] // (evaluations or _EVALUATIONS))
        sizes = spec.observation_dim, spec.action_dim
        actor = clone_behavior(
            self.replay(seed, top), *sizes, seed=seed, evaluate=evaluate, eval_interval=interval, **options
        )
        stopwatch.phases["behaviour cloning"] = stopwatch.training_seconds
        with stopwatch.phase("final evaluation"):
            both = best[0].choose(select, lambda: played.evaluate(actor, self.episodes, self.seed).record())
        return {**(both[select] or {}), "seed": seed, **both, "phases": rounded(stopwatch.phases)}

    def replay(self, seed: int, top: float) -> ReplayBuffer:
        """What is cloned: all data of the task, or its best episodes."""
        if self.data is not None and top == 1.0:
            return TDMPC2ExperienceReplay(self.data, slice_len=1, tasks=[self.task], seed=seed, check_finite=False)
        if self.data is not None:
            states = start_states(EpisodeStore(self.data), self.task, _CHOSEN, resets=0.0, top=top, seed=seed)
        else:
            quickstart = load_quickstart()
            states = quickstart.starts[self.task][: quickstart.recorded[self.task]]
        return TensorDictReplayBuffer(storage=TensorStorage(states), generator=torch.Generator().manual_seed(seed))


class RandomEpisodes:
    """Uniform actions of episodes side by side: those that a :class:`~torchrl_pwm.envs.random_policy.RandomPolicy`
    draws as it plays them one after the other.

    Args:
        spec: row of the task.
        episodes: number of episodes.
        seed: seed of the draws.
    """

    def __init__(self, spec: TaskSpec, episodes: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.actions = uniform_actions(episodes, spec.episode_length, spec.action_dim, generator=generator)
        self.steps = 0

    def __call__(self, td: TensorDictBase) -> TensorDictBase:
        length, num_envs = self.actions.shape[1], len(td)
        rounds, step = divmod(self.steps, length)
        self.steps += 1
        # envs of the last round that are not counted repeat the last episode
        playing = (rounds * num_envs + torch.arange(num_envs)).clamp_max(len(self.actions) - 1)
        return td.set("action", self.actions[playing, step])


def measure_baselines(
    config: DictConfig, folder: Path, data: Path | None, tasks: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """Measures the baselines of a run's tasks, several at a time where there are several cores.

    ``config.evaluation.baselines`` has the form of :data:`DEFAULT_BASELINES`; null leaves all of them out, and a run
    that does not name it has the defaults. What has been measured is read from ``<folder>/baselines``.

    Args:
        config: the run's configuration: seeds and evaluation are the policies' own.
        folder: the run's folder.
        data: folder of the data set; None for the quickstart.
        tasks: names of the tasks.

    Returns:
        By task, what :meth:`BaselineJob.run` returns.
    """
    jobs = baseline_jobs(config, folder, data, tasks)
    waiting = sum(not job.file.exists() for job in jobs)
    workers = max(1, min(config.workers or os.cpu_count() or 1, waiting))
    with tqdm(total=len(jobs), desc="baselines", unit="task", disable=not (config.progress and waiting)) as bar:
        results = run_jobs(measure, jobs, workers=workers, report=bar.update)
    return {job.task: result for job, result in zip(jobs, results, strict=True)}


def baseline_jobs(config: DictConfig, folder: Path, data: Path | None, tasks: Iterable[str]) -> list[BaselineJob]:
    """The jobs of :func:`measure_baselines`, also those that are done."""
    settings = baseline_settings(config)
    if settings is None:
        return []
    return [
        BaselineJob(
            settings=settings,
            task=task,
            task_set=config.task_set,
            data=data,
            seeds=tuple(config.seed + number for number in range(config.seeds)),
            episodes=config.evaluation.episodes,
            seed=config.evaluation.seed,
            file=folder / "baselines" / f"{task}.json",
        )
        for task in tasks
    ]


def baseline_works(jobs: Iterable[BaselineJob]) -> list[Work]:
    """What is left of the jobs, for an engine."""
    return [
        Work(
            measure,
            job,
            name=f"baselines of {job.task}",
            needs=() if job.data is None else (job.data,),
            files=(job.file,),
            trains=False,
        )
        for job in jobs
        if not job.file.exists()
    ]


def measure(job: BaselineJob, report: Callable[[], object]) -> dict[str, Any]:
    """The job's result, after which something is reported."""
    result = job.run()
    report()
    return result


def baseline_settings(config: DictConfig) -> dict[str, Any] | None:
    """The settings of a run's baselines, completed by the defaults; None for no baselines.

    Raises:
        ValueError: for a setting that there is none of.
    """
    given: Any = config.evaluation.get("baselines", DEFAULT_BASELINES)
    if given is None:
        return None
    if unknown := sorted(set(given) - set(DEFAULT_BASELINES)):
        raise ValueError(f"evaluation.baselines has {sorted(DEFAULT_BASELINES)}, not {unknown}")
    named: Any = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given
    settings = {**DEFAULT_BASELINES, **named}
    if settings["cloning"]:
        settings["cloning"] = cloning = {**DEFAULT_BASELINES["cloning"], **settings["cloning"]}
        if cloning["top"] is None:
            # policies that stay near the best episodes are to beat their clone, not that of all
            cloning["top"] = OmegaConf.select(config, "extraction.starts.top", default=1.0)
        if cloning["evaluations"] is None and "eval_interval" in config.get("extraction", {}):
            # Policies that begin as a clone are evaluated before their first update too.
            begins = bool(OmegaConf.select(config, "extraction.warm_start.behavior_updates"))
            cloning["evaluations"] = begins + -(-config.extraction.iterations // config.extraction.eval_interval)
    return settings
