"""Extraction of many policies, several at a time in processes of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from torchrl_pwm.data.processes import end_with_parent
from torchrl_pwm.trainers.extraction import ExtractionJob, Report, extract_policy
from torchrl_pwm.trainers.models import choose_device


def extract_policies(
    config: DictConfig, folder: Path, data: Path | None, model_file: Path, tasks: list[str]
) -> list[dict[str, Any]]:
    """Extracts a policy for every task and seed, several at a time where there are several cores."""
    device = choose_device(config.device)
    count = len(tasks) * config.seeds
    cores = os.cpu_count() or 1
    workers = 1 if device != "cpu" else max(1, min(config.workers or cores, count))
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
        )
        for task in tasks
        for number in range(config.seeds)
    ]
    total = count * config.extraction.iterations
    with tqdm(total=total, desc="policies", unit="update", disable=not config.progress) as bar:
        if workers == 1:
            return [extract_policy(job, _Progress(bar)) for job in jobs]
        return list(run_jobs(jobs, workers, _Progress(bar)))


class _Progress:
    """Adds what the workers report to one progress bar."""

    def __init__(self, bar: tqdm) -> None:
        self.bar, self.done = bar, {}  # type: ignore[var-annotated]

    def __call__(self, name: str, done: int, metrics: Any) -> None:
        self.bar.update(done - self.done.get(name, 0))
        self.done[name] = done
        self.bar.set_postfix_str(f"{name} " + " ".join(f"{key}={value:.4g}" for key, value in metrics.items()))


def run_jobs(jobs: list[ExtractionJob], workers: int, report: Report) -> Iterator[dict[str, Any]]:
    """Runs the jobs, ``workers`` at a time, and yields their results in order; what a failure leaves is kept."""
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(messages,)) as pool:
        futures: list[Future[dict[str, Any]]] = [pool.submit(_work, job) for job in jobs]
        waiting = set(futures)
        try:
            while waiting:
                finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                with contextlib.suppress(queue.Empty):
                    while True:
                        report(*messages.get_nowait())
                for future in finished:
                    future.result()
        except BaseException:
            # What runs goes on to its end, so that finished policies are kept; what waits does not start.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        for future in futures:
            yield future.result()


_messages: Any = None  # queue to the parent, in a worker


def _start_worker(messages: Any) -> None:
    global _messages
    _messages = messages
    end_with_parent()


def _work(job: ExtractionJob) -> dict[str, Any]:
    return extract_policy(job, lambda *message: _messages.put(message))
