"""Policy extraction: one task and seed, several in one program, and many by the engine of a run."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torchrl import torchrl_logger

from torchrl_pwm._utils.devices import is_host, torch_threads
from torchrl_pwm._utils.evaluations import BackgroundEvaluation
from torchrl_pwm._utils.files import replace_file
from torchrl_pwm._utils.processes import LazyPool
from torchrl_pwm._utils.seeds import kept_generators
from torchrl_pwm._utils.stopwatch import SharedStopwatch, Stopwatch, rounded
from torchrl_pwm.envs import get_task_set
from torchrl_pwm.evaluation.best_policy import BestPolicy, copy_state
from torchrl_pwm.modules import DynamicsEnsemble, PWMWorldModel
from torchrl_pwm.runs.engines import make_engine
from torchrl_pwm.runs.engines.work import Work
from torchrl_pwm.runs.folder import make_logger
from torchrl_pwm.runs.policies import config_of_task, load_policy, make_loss, policy_file, save_policy
from torchrl_pwm.runs.policy_evaluation import RealEpisodes, probed, real_metrics, task_episodes
from torchrl_pwm.runs.policy_table import PolicyTable, progress_bars
from torchrl_pwm.runs.saved import read_result
from torchrl_pwm.runs.starts import FRESH, Before, make_recorded, make_starts
from torchrl_pwm.runs.world_model import disagreement_file, load_disagreement, load_world_model
from torchrl_pwm.trainers.averaging import PolicyAverage
from torchrl_pwm.trainers.pwm import PWMTrainer, warm_start
from torchrl_pwm.trainers.trainer import Metrics

Report = Callable[[str, int, Metrics], object]
_SHOWN = ("loss_actor", "predicted_return", "real_return")  # beside the progress bar
_RESULT = "result.json"  # in the folder of a policy


@dataclass(frozen=True)
class ExtractionJob:
    """One policy to extract.

    Args:
        config: the run's configuration as a plain dictionary.
        task: name of the task.
        seed: seed of the networks, the samples and the policy noise.
        folder: where checkpoint, metrics and result go.
        data: folder of the data set that gives start states; None for those of the quickstart.
        world_model: file of the frozen model.
        threads: torch threads of the process.
        device: where it runs.
        evaluator: evaluate along the way in a process of its own, while the training goes on.
        before: what the policy begins with.
    """

    config: dict[str, Any]
    task: str
    seed: int
    folder: Path
    data: Path | None
    world_model: Path
    threads: int
    device: str
    evaluator: bool = False
    before: Before = FRESH

    @property
    def result_file(self) -> Path:
        """Where the result is written when all is done."""
        return self.folder / _RESULT


def extract_policy(job: ExtractionJob, report: Report | None = None) -> dict[str, Any]:
    """Extracts and evaluates one policy; goes on where an interrupted run stopped, and returns at once when done.

    Returns:
        ``task``, ``seed``, ``returns`` and ``successes`` of the evaluation's episodes, ``last`` and ``best`` with these
        of the last and of the best policy, of which ``extraction.select`` counts, ``seconds``, and those of each phase,
        ``phases``.
    """
    if job.result_file.exists():
        return read_result(job.result_file)
    # What follows in this process must not depend on whether jobs run in it.
    with torch_threads(job.threads), kept_generators():
        return _extract(job, report)


def _extract(job: ExtractionJob, report: Report | None) -> dict[str, Any]:
    extraction = Extraction(job, report)
    with extraction.evaluation:
        extraction.begin()
        if not job.before.finished:
            extraction.trainer.train()
    return extraction.finish()


class Extraction:
    """The training of one policy in its folder, with all that it needs.

    Torch's global generators are seeded for it.

    Args:
        job: what is extracted.
        report: gets the metrics of each log.
        shared: the model and disagreement ensemble of another extraction of the same run, to use in place of loading
            them once more.
        stopwatch: of the training; default: a new one.
        policies: that are trained in this process at once.
        pool: of the evaluations of several of them.
    """

    def __init__(
        self,
        job: ExtractionJob,
        report: Report | None = None,
        *,
        shared: Extraction | None = None,
        stopwatch: Stopwatch | None = None,
        policies: int = 1,
        pool: LazyPool | None = None,
    ) -> None:
        config, start = OmegaConf.create(job.config), time.perf_counter()
        task_set = get_task_set(config.task_set)
        self.job, self.config, self.settings = job, config, config.extraction
        torch.manual_seed(1_000_003 * job.seed + task_set[job.task].index)
        # Loaded in any case: what is drawn for its first weights decides what is drawn next.
        loaded = load_world_model(config, job.world_model)
        self.model: PWMWorldModel = loaded.to(job.device) if shared is None else shared.model
        places: dict[str, Any] = {"data": job.data, "before": job.before, "device": job.device}
        self.replay = make_starts(config, job.task, job.seed, self.model, **places)
        self.disagreement: DynamicsEnsemble | None = None
        if config.loss.disagreement_coef:
            ensemble = load_disagreement(disagreement_file(job.world_model), self.model)
            self.disagreement = ensemble.to(job.device) if shared is None else shared.disagreement
        chosen = config_of_task(config, task_set[job.task])
        self.loss = make_loss(chosen, self.model, task_set.action_dim, self.disagreement).to(job.device)
        self.stepper = instantiate(chosen.stepper, self.loss, iterations=self.settings.iterations)
        recorded = make_recorded(job.task, job.seed, self.loss.horizon, job.before, job.device)
        self.replay.sample()  # what is drawn here has always decided what the updates draw
        self.best = BestPolicy(self.loss.actor_network)
        self.average = PolicyAverage(self.loss.actor_network, self.settings.average)
        self.played = task_episodes(config, job.task, self.model, data=job.data, policies=policies)
        threads = job.threads if is_host(job.device) else 1
        real = RealEpisodes(job.config, job.task, job.world_model, threads, policies, data=job.data)
        here = None if job.evaluator else self.evaluate
        self.evaluation = BackgroundEvaluation(self.snapshot, real, joined=self.joined, here=here, pool=pool)
        self.loading, self.stopwatch = time.perf_counter() - start, stopwatch or Stopwatch()
        self.trainer = PWMTrainer(
            self.loss,
            self.replay,
            iterations=self.settings.iterations,
            optimization_stepper=self.stepper,
            average=self.average,
            recorded=recorded,
            device=job.device,
            logger=make_logger(config, job.folder),
            log_interval=self.settings.log_interval,
            evaluate=self.evaluation,
            eval_interval=self.settings.eval_interval,
            stopwatch=self.stopwatch,
            save_folder=job.folder / "checkpoint",
            save_interval=self.settings.save_interval,
            progress_bar=False,
            on_log=None if report is None else partial(_report, report, job),
        )
        self.trainer.components["best_policy"] = self.best

    def evaluate(self) -> dict[str, float]:
        """What the averaged policy earns, beside what model and critics promise."""
        with self.average.applied():
            return real_metrics(self.loss.actor_network, self.played, self.config, self.loss.value_network)

    def snapshot(self) -> dict[str, Any]:
        """The averaged policy and its critics, for an evaluation elsewhere."""
        with self.average.applied():
            weights = _on_host(self.loss.actor_network)
        return {"weights": weights, "critics": _on_host(self.loss.value_network)}

    def joined(self, snapshot: Mapping[str, Any], real: Mapping[str, Any]) -> dict[str, float]:
        """What is logged of a snapshot whose real episodes have ended."""
        self.best.offer(real["real_score"], real["real_return"], snapshot["weights"])
        return dict(real)

    def begin(self) -> None:
        """Goes on from the checkpoint; without one, the policy begins with the data's behaviour as configured."""
        self.trainer.resume(required=False)
        if self.trainer.iteration == 0:
            warm, before = self.settings.warm_start, self.job.before.folder
            if before is not None:
                load_policy(self.loss, policy_file(before, self.job.task, self.job.seed))
            else:
                with self.stopwatch.phase("cloning before the updates"):
                    warm_start(self.loss, self.stepper, self.replay, **warm, device=self.job.device)
            self.average.restart()
            if self.job.before.finished:
                self.best.offer(0.0, 0.0)
            elif warm.behavior_updates or before is not None:
                self.trainer.log_evaluation(now=True)

    def finish(self) -> dict[str, Any]:
        """Evaluates the trained policy, writes its files, and returns the result."""
        job = self.job
        seconds, phases = self.stopwatch.seconds, self.stopwatch.phases
        phases["updates"] = seconds - sum(phases.values())
        self.average.restore()
        critics = iter([self.loss.value_network])  # of the last policy, which is evaluated first
        with self.played, self.stopwatch.phase("final evaluation"):
            both = self.best.choose(self.settings.select, lambda: self._final(next(critics, None)))
        save_policy(self.loss, job.folder / "policy.pt")
        chosen = both[self.settings.select] or {}
        result = {"task": job.task, **chosen, "seed": job.seed, "seconds": seconds, **both}
        result["phases"] = rounded({"loading": self.loading, **phases})
        replace_file(job.result_file, json.dumps(result, indent=2).encode())
        return result

    def _final(self, value_network: nn.Module | None) -> dict[str, Any]:
        """Outcome of the final evaluation, with what the trust probe says of it."""
        final = self.config.evaluation
        probe = probed(self.loss.actor_network, self.played, self.config, final.episodes, final.seed, value_network)
        torchrl_logger.info(f"{self.job.task}, seed {self.job.seed}: {probe.line}")
        return {**probe.result.record(), "trust": probe.record()}


def _on_host(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight.cpu() for name, weight in copy_state(module).items()}


def extract_all(
    config: DictConfig,
    folder: Path,
    data: Path | None,
    model_file: Path,
    tasks: list[str],
    before: Before | None = None,
    *,
    further: Sequence[Work] = (),
) -> list[dict[str, Any]]:
    """Extracts a policy for every task and seed, several at a time where the engine of the run can.

    Up to ``tasks_per_batch`` of them are trained as one program. Their folders are those of policies that are trained
    one by one, so that a run may go on with another number, and on another engine. ``policies.csv`` in the folder has
    a row for each policy that is done.

    Keyword Args:
        further: other work, for processes that have no policy left to extract; each says when it is done.
    """
    policies = [(task, config.seed + number) for task in tasks for number in range(config.seeds)]
    places = [folder / "policies" / task / f"seed-{seed}" for task, seed in policies]
    results = [place / _RESULT for place in places]
    table = PolicyTable(folder, get_task_set(config.task_set), results)
    if not further and all(file.exists() for file in results):
        return [read_result(file) for file in results]  # no engine is made: one may start a cluster
    engine = make_engine(config)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    jobs = [
        ExtractionJob(
            config=plain,
            task=task,
            seed=seed,
            folder=place,
            data=data,
            world_model=model_file,
            threads=engine.threads,
            device=engine.device,
            before=before or FRESH,
        )
        for (task, seed), place in zip(policies, places, strict=True)
    ]
    if left := [job for job in jobs if not job.result_file.exists()]:
        groups = _groups(left, config.get("tasks_per_batch", 1), engine.batches)
        evaluators = engine.evaluators(len(groups))
        groups = [[replace(job, evaluator=evaluators > 0) for job in group] for group in groups]
        further = [*(_work(group, evaluators) for group in groups), *further]
    updates, others = len(jobs) * config.extraction.iterations, sum(not work.trains for work in further)
    if further:
        with progress_bars(updates, others, shown=config.progress) as report:
            engine.run(further, folder, report=report, ended=lambda work: table.update())
    return [read_result(file) for file in results]


def _work(jobs: Sequence[ExtractionJob], evaluators: int) -> Work:
    """The extraction of a batch, for an engine."""
    first = jobs[0]
    names = [f"{job.task}/{job.seed}" for job in jobs]
    places = (first.data, first.before.folder, *first.before.own)
    return Work(
        partial(extract_group, evaluators=evaluators),
        list(jobs),
        name=names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}",
        reads=tuple(file for file in (first.world_model, disagreement_file(first.world_model)) if file.exists()),
        needs=tuple(place for place in places if place is not None),
        folders=tuple(job.folder for job in jobs),
    )


def extract_group(jobs: Sequence[ExtractionJob], report: Report, *, evaluators: int = 1) -> None:
    """Extracts the policies of one run's jobs that are not there yet: of several, in one program.

    Args:
        jobs: the jobs.
        report: gets the metrics of each log.
        evaluators: processes for the evaluations of jobs that are to have one.

    Raises:
        FloatingPointError: if a number is not finite; the other jobs have been done then.
    """
    jobs = [job for job in jobs if not job.result_file.exists()]
    if len(jobs) == 1 or any(job.before.finished for job in jobs):
        for job in jobs:
            extract_policy(job, report)
    elif jobs:
        # What follows in this process must not depend on whether jobs run in it.
        with torch_threads(jobs[0].threads), kept_generators():
            _extract_together(jobs, report, max(1, min(evaluators, len(jobs))))


def _extract_together(jobs: Sequence[ExtractionJob], report: Report, evaluators: int) -> None:
    from torchrl_pwm.trainers.together import own_generators, train_together

    extractions: dict[PWMTrainer, Extraction] = {}
    with contextlib.ExitStack() as stack:
        # of one process each, so that a task's simulators are built in one of them alone
        pools = [stack.enter_context(LazyPool(1)) for _ in range(evaluators)]
        for number, job in enumerate(jobs):
            extraction = Extraction(
                job,
                report,
                shared=next(iter(extractions.values()), None),
                stopwatch=SharedStopwatch(),
                policies=len(jobs),
                pool=pools[number % evaluators],
            )
            with own_generators(extraction.trainer):
                extraction.begin()
            extractions[extraction.trainer] = extraction
        train_together(list(extractions), at_end=lambda trainer: extractions[trainer].finish())


def _groups(jobs: Sequence[ExtractionJob], most: int, workers: int) -> list[list[ExtractionJob]]:
    """Jobs in groups of at most ``most``, of about one size, no fewer than there are workers."""
    count = max(math.ceil(len(jobs) / most), min(workers, len(jobs)))
    ends = [round(len(jobs) * number / count) for number in range(count + 1)] if count else []
    return [list(jobs[start:end]) for start, end in pairwise(ends)]


def _report(report: Report, job: ExtractionJob, iteration: int, metrics: Metrics) -> None:
    report(f"{job.task}/{job.seed}", iteration, {key: metrics[key] for key in _SHOWN if key in metrics})
