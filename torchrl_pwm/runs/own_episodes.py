"""Own episodes of policies: their collection in a round, and the updates of a model that learns from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_pwm._utils.seeds import kept_generators
from torchrl_pwm.data import EpisodeStore, ReplayMixture, TDMPC2ExperienceReplay, collect_dataset, write_episodes
from torchrl_pwm.data.collect.behaviors import Noise, checked_noise
from torchrl_pwm.envs import get_task_set
from torchrl_pwm.runs.data import family

_ENDLESS = 100_000  # steps: an episode of more is an error where it is written


def round_seed(seed: int, number: int) -> int:
    """Of the episodes of a round: apart from those of every other round and seed, and from evaluations."""
    return 1_000_003 * (seed + 1) + 10_007 * number


def play(
    config: DictConfig,
    root: Path,
    policies: Mapping[str, TensorDictModuleBase],
    *,
    seed: int,
    transform: Any = None,
) -> EpisodeStore:
    """``rounds.episodes`` of each task's policy, with the levels ``rounds.noise``, or what is left of them.

    Args:
        config: of the run.
        root: folder of the data set.
        policies: by task.
        seed: of the episodes.
        transform: makes what the policies read.
    """
    settings, table = config.rounds, get_task_set(config.task_set)
    return collect_dataset(
        list(policies),
        root,
        episodes={task: settings.episodes[family(table[task].suite)] for task in policies},
        behavior="policy",
        policy=policies,
        transform=transform,
        noise=list(settings.noise),
        task_set=config.task_set,
        seed=seed,
        workers=config.workers,
        progress=config.progress,
    )


def play_env(
    config: DictConfig, root: Path, policy: TensorDictModuleBase, *, task: str, seed: int, device: str
) -> EpisodeStore:
    """The same in the env that the configuration names, where a policy has the name of the task in its data."""
    if root.exists():
        return EpisodeStore(root)
    env = instantiate(config.env, num_envs=1, device=device)
    try:
        return write_episodes(
            root, _episodes(env, policy, config.rounds, seed, task), name=task, source={"kind": "played"}
        )
    finally:
        env.close()


def _episodes(
    env: EnvBase, policy: TensorDictModuleBase, settings: DictConfig, seed: int, task: str
) -> Iterator[TensorDictBase]:
    levels = checked_noise("policy", list(settings.noise))
    for number in range(settings.episodes):
        label = f"episode {number} of {task}"
        noisy = _NoisyPolicy(policy, levels[number % len(levels)], np.random.default_rng([seed, number]), label)
        with kept_generators(), torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            env.set_seed(seed + number)
            (episode,) = env.rollout(_ENDLESS, noisy, auto_cast_to_device=True)
        yield episode.select("observation", "action", "next")


class _NoisyPolicy(TensorDictModuleBase):
    """A policy with normal noise of a standard deviation on its actions in [-1, 1], or uniform actions.

    What it reads and writes must be finite; an error names it, ``label`` and the step.
    """

    def __init__(self, policy: TensorDictModuleBase, level: Noise, draws: np.random.Generator, label: str) -> None:
        super().__init__()
        self.policy, self.level, self.draws, self.label, self.steps = policy, level, draws, label, 0
        self.in_keys, self.out_keys = policy.in_keys, policy.out_keys

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        # The clamp would make an infinity the largest action.
        for key in [key for key in self.in_keys if tensordict.get(key, None) is not None]:
            self._refuse(key, tensordict.get(key), "the env, which has diverged")
        action = self.policy(tensordict)["action"]
        self._refuse("action", action, "the policy: look for a NaN in its weights")
        self.steps += 1
        if self.level == "random":
            chosen = self.draws.uniform(-1.0, 1.0, action.shape)
        else:
            chosen = action.cpu().numpy() + self.level * self.draws.standard_normal(action.shape)
        return tensordict.set("action", torch.as_tensor(chosen).to(action).clamp(-1.0, 1.0))

    def _refuse(self, key: Any, value: torch.Tensor, cause: str) -> None:
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(
                f"{key} of {self.label} must be finite, found {value.flatten().tolist()} at step {self.steps}; it is "
                f"from {cause}. Episodes of this round are not kept"
            )


def mix(
    settings: DictConfig,
    data: Path,
    own: Sequence[Path],
    *,
    batch_size: int,
    slice_len: int,
    tasks: list[str],
    seed: int,
    episodes: Any = None,
    **options: Any,
) -> ReplayMixture:
    """Sequences of a data set and of own episodes, which are ``rounds.share`` of each batch.

    Of this share ``rounds.newest`` is from the last round and the rest divided among those before; by default all have
    the same.

    Args:
        settings: ``rounds`` of the configuration.
        data: folder of the data set.
        own: folders of own episodes, by round.
        batch_size, slice_len: of a sample.
        tasks: that are learned.
        seed: of the draws.
        episodes: numbers of those of the data set that are learned from, default all.
        options: of the replays.
    """
    newest = settings.get("newest")  # which runs of before have not
    parts = np.full(len(own), 1.0 / len(own))
    if newest is not None and len(own) > 1:
        parts[:] = (1.0 - newest) / (len(own) - 1)
        parts[-1] = newest
    found = [data_sets(root) for root in own]
    sizes = [
        (root, max(round(float(settings.share * batch_size * part) / len(roots)), 1))
        for roots, part in zip(found, parts)
        for root in roots
    ]
    sizes.insert(0, (data, max(batch_size - sum(size for _, size in sizes), 1)))
    return ReplayMixture(
        [
            TDMPC2ExperienceReplay(
                root,
                size,
                slice_len=slice_len,
                tasks=tasks,
                seed=seed,
                episodes=episodes if root == data else None,
                **options,
            )
            for root, size in sizes
        ]
    )


def earlier_data(settings: DictConfig) -> tuple[Path, ...]:
    """The folders ``rounds.earlier``, of own episodes of earlier runs."""
    given = settings.get("earlier") or []  # which runs of before have not
    return tuple(map(Path, [given] if isinstance(given, str) else given))


def check_earlier(settings: DictConfig, task_set: str, tasks: list[str]) -> None:
    """Raises FileNotFoundError or ValueError if ``rounds.earlier`` are not data sets of these tasks of a set."""
    for folder in earlier_data(settings):
        found = data_sets(folder)
        if not found:
            raise FileNotFoundError(
                f"rounds.earlier names {folder}, which holds no data set: expected the folder of one, or of several, "
                "such as the rounds/ of an earlier run"
            )
        for own in map(EpisodeStore, found):
            if own.manifest.task_set != task_set:
                raise ValueError(
                    f"rounds.earlier={own.root} is of {own.manifest.task_set}, the run of task_set={task_set}: give "
                    "own episodes of the same task set"
                )
            missing = [task for task in tasks if task not in own.tasks]
            if missing:
                raise ValueError(
                    f"rounds.earlier={own.root} holds no episodes of {', '.join(missing)}: give own episodes of every "
                    "task, those of several runs in one data set (torchrl_pwm.data.join_datasets)"
                )


def data_sets(folder: Path) -> list[Path]:
    """Those in the folder of a round's episodes, one for each seed."""
    return sorted(found.parent for found in folder.rglob("manifest.json"))


def with_rate(config: DictConfig, stepper: str) -> DictConfig:
    """The configuration of a round's updates, whose learning rate begins at ``rounds.lr``.

    It falls to the ``final_lr`` of the stepper of that name in each round anew, where there is one.
    """
    lr, settings = config.rounds.lr, config[stepper]
    if lr is None:
        return config
    final = None if settings.final_lr is None else min(lr, settings.final_lr)
    return OmegaConf.merge(config, {stepper: {"lr": lr, "final_lr": final}})  # type: ignore[return-value]
