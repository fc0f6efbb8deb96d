"""Policy extraction: one task and seed, and many of them in worker processes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tensordict.nn import TensorDictModule
from torchrl.data import ReplayBuffer, TensorDictReplayBuffer, TensorStorage
from torchrl.objectives.utils import ValueEstimators
from tqdm import tqdm

from torchrl_pwm._utils.checkpoint import save_tensors
from torchrl_pwm._utils.devices import choose_device, torch_threads
from torchrl_pwm._utils.evaluations import BackgroundEvaluation
from torchrl_pwm._utils.files import replace_file
from torchrl_pwm._utils.processes import run_jobs
from torchrl_pwm._utils.seeds import kept_generators
from torchrl_pwm._utils.stopwatch import Stopwatch, rounded
from torchrl_pwm._utils.tensor_files import read_tensors
from torchrl_pwm.data import EpisodeStore, TDMPC2ExperienceReplay, start_states
from torchrl_pwm.data.starts import encoded_starts
from torchrl_pwm.envs import get_task_set
from torchrl_pwm.modules import DynamicsEnsemble, PWMWorldModel, load_quickstart
from torchrl_pwm.objectives import PWMLoss
from torchrl_pwm.runs.evaluator import BestPolicy, copy_state
from torchrl_pwm.runs.folder import make_logger
from torchrl_pwm.runs.policy_evaluation import RealEpisodes, predicted_return, real_metrics, task_episodes
from torchrl_pwm.runs.world_model import disagreement_file, load_disagreement, load_world_model
from torchrl_pwm.trainers.averaging import PolicyAverage
from torchrl_pwm.trainers.pwm import PWMTrainer, warm_start
from torchrl_pwm.trainers.steppers import first_states
from torchrl_pwm.trainers.trainer import Metrics

Report = Callable[[str, int, Metrics], object]
_SHOWN = ("loss_actor", "predicted_return", "real_return")  # beside the progress bar


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

    @property
    def result_file(self) -> Path:
        """Where the result is written when all is done."""
        return self.folder / "result.json"


def extract_policy(job: ExtractionJob, report: Report | None = None) -> dict[str, Any]:
    """Extracts and evaluates one policy; goes on where an interrupted run stopped, and returns at once when done.

    Returns:
        ``task``, ``seed``, ``returns`` and ``successes`` of the evaluation's episodes, ``last`` and ``best`` with these
        of the last and of the best policy, of which ``extraction.select`` counts, ``seconds``, and those of each phase,
        ``phases``.
    """
    if job.result_file.exists():
        return json.loads(job.result_file.read_text())
    # What follows in this process must not depend on whether jobs run in it.
    with torch_threads(job.threads), kept_generators():
        return _extract(job, report)


def _extract(job: ExtractionJob, report: Report | None) -> dict[str, Any]:
    config, begin = OmegaConf.create(job.config), time.perf_counter()
    task_set = get_task_set(config.task_set)
    index = task_set[job.task].index
    torch.manual_seed(1_000_003 * job.seed + index)
    model = load_world_model(config, job.world_model).to(job.device)
    replay = make_starts(job, config, model)
    disagreement = None
    if config.loss.disagreement_coef:
        disagreement = load_disagreement(disagreement_file(job.world_model), model).to(job.device)
    loss = make_loss(config, model, task_set.action_dim, disagreement).to(job.device)
    stepper = instantiate(config.stepper, loss, iterations=config.extraction.iterations)
    shown = first_states(replay.sample()).to(job.device)
    best = BestPolicy(loss.actor_network)
    average = PolicyAverage(loss.actor_network, config.extraction.average)
    played = task_episodes(config, job.task, model)

    def snapshot() -> dict[str, Any]:
        with average.applied():
            predicted = predicted_return(loss, shown, task_set[job.task].episode_length)
            weights = {name: weight.cpu() for name, weight in copy_state(loss.actor_network).items()}
        return {"predicted_return": predicted, "weights": weights}

    def joined(taken: Mapping[str, Any], real: Mapping[str, Any]) -> dict[str, float]:
        best.offer(real["real_score"], real["real_return"], taken["weights"])
        return {"predicted_return": taken["predicted_return"], **real}

    def evaluate() -> dict[str, float]:
        with average.applied():
            real = real_metrics(loss.actor_network, played, config)
        return joined(snapshot(), real)

    background = BackgroundEvaluation(
        snapshot, RealEpisodes(job.config, job.task, job.world_model, job.threads), joined=joined
    )
    loading, stopwatch = time.perf_counter() - begin, Stopwatch()
    trainer = PWMTrainer(
        loss,
        replay,
        iterations=config.extraction.iterations,
        optimization_stepper=stepper,
        average=average,
        device=job.device,
        logger=make_logger(config, job.folder),
        log_interval=config.extraction.log_interval,
        evaluate=background if job.evaluator else evaluate,
        eval_interval=config.extraction.eval_interval,
        stopwatch=stopwatch,
        save_folder=job.folder / "checkpoint",
        save_interval=config.extraction.save_interval,
        progress_bar=False,
        on_log=None if report is None else partial(_report, report, job),
    )
    trainer.components["best_policy"] = best
    with background:
        trainer.resume(required=False)
        if trainer.iteration == 0:
            with stopwatch.phase("cloning before the updates"):
                warm_start(loss, stepper, replay, **config.extraction.warm_start, device=job.device)
            average.restart()
            if config.extraction.warm_start.behavior_updates:
                trainer.log_evaluation(now=True)
        trainer.train()
    seconds = stopwatch.seconds
    stopwatch.phases["updates"] = seconds - sum(stopwatch.phases.values())
    average.restore()
    final = config.evaluation
    with played, stopwatch.phase("final evaluation"):
        both = best.choose(
            config.extraction.select, lambda: played.evaluate(loss.actor_network, final.episodes, final.seed).record()
        )
    save_policy(loss, job.folder / "policy.pt")
    chosen = both[config.extraction.select] or {}
    result = {"task": job.task, **chosen, "seed": job.seed, "seconds": seconds, **both}
    result["phases"] = rounded({"loading": loading, **stopwatch.phases})
    replace_file(job.result_file, json.dumps(result, indent=2).encode())
    return result


def make_starts(job: ExtractionJob, config: Any, model: PWMWorldModel) -> ReplayBuffer:
    """The start states of a job: drawn uniformly from all data as published, or from a few chosen ones.

    Of chosen ones the frozen model's latents are kept, so that no update has to encode them again.
    """
    settings = config.extraction
    if job.data is not None and not settings.starts:
        return TDMPC2ExperienceReplay(
            job.data, settings.batch_size, slice_len=1, tasks=[job.task], seed=job.seed, check_finite=False
        )
    if job.data is None:
        chosen = load_quickstart().starts[job.task]
    else:
        chosen = start_states(EpisodeStore(job.data), job.task, seed=job.seed, **settings.starts)
    return TensorDictReplayBuffer(
        storage=TensorStorage(encoded_starts(chosen, model)),
        batch_size=settings.batch_size,
        generator=torch.Generator().manual_seed(job.seed),
    )


def make_loss(
    config: Any, model: PWMWorldModel, action_dim: int, disagreement: DynamicsEnsemble | None = None
) -> PWMLoss:
    """A new actor and critics, and the objective, as configured."""
    actor = instantiate(config.actor, latent_dim=model.latent_dim, action_dim=action_dim)
    value = instantiate(config.value, latent_dim=model.latent_dim)
    loss = instantiate(config.loss, actor, value, model, disagreement=disagreement)
    hyperparameters = {"gamma": config.extraction.gamma}
    value_type = ValueEstimators[config.extraction.value_estimator]
    if value_type is ValueEstimators.TDLambda:
        hyperparameters["lmbda"] = config.extraction.lmbda
    return loss.make_value_estimator(value_type, **hyperparameters)


def save_policy(loss: PWMLoss, path: Path) -> None:
    """Writes actor and critics of a loss, as their own state dicts, to a file of tensors only."""
    save_tensors(path, {name: getattr(loss, f"{name}_network").state_dict() for name in ("actor", "value")})


def load_actor(
    config: Any, model: PWMWorldModel, folder: Path, task: str, *, seed: int | None = None
) -> TensorDictModule:
    """The policy of a task and seed, by default the first, from the folder of a run."""
    actor = instantiate(config.actor, latent_dim=model.latent_dim, action_dim=model.action_dim)
    saved = folder / "policies" / task / f"seed-{config.seed if seed is None else seed}" / "policy.pt"
    actor.load_state_dict(read_tensors(saved, what="policy")["actor"])
    return actor


def extract_policies(
    config: DictConfig, folder: Path, data: Path | None, model_file: Path, tasks: list[str]
) -> list[dict[str, Any]]:
    """Extracts a policy for every task and seed, several at a time where there are several cores."""
    device = choose_device(config.device)
    count = len(tasks) * config.seeds
    cores = os.cpu_count() or 1
    processes = config.workers or cores
    workers = min(count, processes) if device == "cpu" else 1
    plain: Any = OmegaConf.to_container(config, resolve=True)
    jobs = [
        ExtractionJob(
            config=plain,
            task=task,
            seed=config.seed + number,
            folder=folder / "policies" / task / f"seed-{config.seed + number}",
            data=data,
            world_model=model_file,
            # One thread each also makes the numbers independent of how many run at once.
            threads=1 if device == "cpu" else cores,
            device=device,
            # where there are processes for it beside those that train
            evaluator=processes >= 2 * workers,
        )
        for task in tasks
        for number in range(config.seeds)
    ]
    total = count * config.extraction.iterations
    with tqdm(total=total, desc="policies", unit="update", disable=not config.progress) as bar:
        return run_jobs(extract_policy, jobs, workers=workers, report=_Progress(bar))


def _report(report: Report, job: ExtractionJob, iteration: int, metrics: Metrics) -> None:
    report(f"{job.task}/{job.seed}", iteration, {key: metrics[key] for key in _SHOWN if key in metrics})


class _Progress:
    """Adds what the workers report to one progress bar."""

    def __init__(self, bar: tqdm) -> None:
        self.bar, self.done = bar, {}  # type: ignore[var-annotated]

    def __call__(self, name: str, done: int, metrics: Metrics) -> None:
        self.bar.update(done - self.done.get(name, 0))
        self.done[name] = done
        shown = (f"{key}={value:.4g}" for key, value in metrics.items())
        self.bar.set_postfix_str(" ".join((name, *shown)))
