"""Rows of a collector's batch: the next steps of one env each, as a replay of consecutive steps needs them."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.collectors import BaseCollector, MultiAsyncCollector, MultiSyncCollector
from torchrl.data import ReplayBuffer

from torchrl_pwm.data.parallel import ParallelSliceSampler

_TRAJECTORIES = ("collector", "traj_ids")


def check_collector(collector: BaseCollector) -> None:
    """Raises ValueError for a collector whose batches cannot be taken apart into rows of single envs."""
    if isinstance(collector, MultiAsyncCollector):
        raise ValueError(
            "Online training needs the steps of all envs in every batch, in the same order: use Collector or "
            "MultiSyncCollector, found MultiAsyncCollector."
        )
    if not isinstance(collector, MultiSyncCollector):
        return
    frames = {collector.frames_per_batch_worker(worker_idx=worker) for worker in range(collector.num_workers)}
    if len(frames) > 1:
        raise ValueError(
            f"The workers of the collector add {sorted(frames)} steps to a batch: give all of them the same "
            "frames_per_batch, so that the batch can be taken apart into one row for each env."
        )
    if getattr(collector, "interruptor", None) is not None:
        raise ValueError(
            "preemptive_threshold lets workers stop early, so that rows of a batch have other lengths: leave it out."
        )


def as_rows(batch: TensorDictBase, collector: BaseCollector) -> TensorDictBase:
    """A batch as ``[N, T]``, the next T steps of each of the N envs, whichever way the collector joins its workers.

    Raises:
        ValueError: where a row holds steps of several trajectories without an end between them.
    """
    if ("collector", "mask") in batch.keys(True):
        raise ValueError("The collector splits trajectories: build it with split_trajs=False.")
    if isinstance(collector, MultiSyncCollector) and (batch.ndim == 1 or collector.cat_results == -1):
        # Joined along time, which for envs without a batch is what cat_results=0 does, too.
        batch = torch.stack(batch.chunk(collector.num_workers, -1))
    # Of one env, or of several processes with batched envs: time is last.
    batch = batch.unsqueeze(0) if batch.ndim == 1 else batch.reshape(-1, batch.shape[-1])
    trajectory: Any = batch.get(_TRAJECTORIES, None)
    if trajectory is not None:
        trajectory = trajectory.reshape(batch.shape)
        changes = trajectory[:, 1:] != trajectory[:, :-1]
        unmarked = int((changes & ~batch.get(("next", "done"))[:, :-1].reshape(changes.shape)).sum())
        if unmarked:
            raise ValueError(
                f"A row of the collector's batch {list(batch.shape)} must be the next steps of one env, found "
                f"{unmarked} places where another trajectory begins without a done: build MultiSyncCollector with "
                'cat_results="stack", and leave the batch as it is.'
            )
    return batch


def end_rows(steps: TensorDictBase) -> TensorDictBase:
    """Marks the last of the steps ``[N, T]`` as done, in place, where what comes next is not their continuation."""
    done = steps.get(("next", "done"), None)
    if done is not None:
        done = done.clone()
        done[:, -1] = True
        steps.set(("next", "done"), done)
    return steps


def end_newest_steps(replay_buffer: ReplayBuffer) -> None:
    """Marks the newest step of each env in a replay of ``[time, envs]`` as done: new episodes follow."""
    sampler, storage = replay_buffer.sampler, replay_buffer.storage
    if not isinstance(sampler, ParallelSliceSampler) or not len(storage):
        return
    done = storage.get(sampler.newest).get(("next", "done"), None)  # a view
    if done is not None:
        done.fill_(True)
