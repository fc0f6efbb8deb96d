"""The world model of a run: given, or trained on its data, and improved in rounds with its policies' own episodes."""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict, TensorDictBase
from torchrl import torchrl_logger

from torchrl_pwm._utils.checkpoint import save_tensors
from torchrl_pwm._utils.devices import choose_device, reads_ahead
from torchrl_pwm._utils.door import load_weights, read_json
from torchrl_pwm._utils.files import replace_file
from torchrl_pwm._utils.stopwatch import Stopwatch
from torchrl_pwm.data import EpisodeSliceSampler, EpisodeStore, ReplayMixture, TDMPC2ExperienceReplay, start_states
from torchrl_pwm.data.store.statistics import observation_statistics
from torchrl_pwm.envs import TaskSet, get_task_set
from torchrl_pwm.evaluation import RepresentationWatch
from torchrl_pwm.modules import DynamicsEnsemble, PWMWorldModel, load_quickstart
from torchrl_pwm.modules import load_world_model as read_model
from torchrl_pwm.modules.arguments import network_of_file
from torchrl_pwm.modules.checkpoints import PUBLISHED
from torchrl_pwm.modules.quickstart import QUICKSTART_FILE
from torchrl_pwm.runs.folder import make_logger
from torchrl_pwm.runs.own_episodes import earlier_data, mix
from torchrl_pwm.runs.saved import configured
from torchrl_pwm.trainers.disagreement import train_disagreement
from torchrl_pwm.trainers.world_model import WorldModelTrainer

if TYPE_CHECKING:
    from torchrl_pwm.trainers.ranks import Ranks

#: The world model of the round that counts, in the folder of a run.
CHOSEN = Path("rounds") / "world_model.pt"
_FILE = Path("world_model") / "world_model.pt"  # in the folder of a run or round
_REPRESENTATION, _MEASURED = "representation.json", 256  # file of the measures, and states of each task they are of


def make_world_model(config: Any) -> PWMWorldModel:
    """A new model with the sizes of the configured task set."""
    task_set = get_task_set(config.task_set)
    sizes = [task_set[name].observation_dim for name in task_set.names]
    return configured(
        config.model,
        observation_dim=task_set.observation_dim,
        action_dim=task_set.action_dim,
        num_tasks=len(task_set),
        action_dims=list(task_set.action_dims),
        **({"observation_dims": sizes} if OmegaConf.select(config, "model.decoder") else {}),
    )


def load_world_model(config: Any, file: str | os.PathLike[str]) -> PWMWorldModel:
    """The frozen model of a run, from the checkpoint it was given or the file it trained.

    What the weights do not tell, such as the range of the bins, is the configuration's.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its layout is not known or its sizes are not those of the configured task set.
    """
    if config.checkpoint == "quickstart":
        return load_quickstart(file).world_model
    if not config.checkpoint:
        make = functools.partial(make_world_model, config)
        model: PWMWorldModel = network_of_file(file, make, what="world model", part="model")
        return model.requires_grad_(False)
    task_set = get_task_set(config.task_set)
    # Files of this package say all of it, and contradict what is configured; published ones need what is not published.
    chosen = {key: value for key, value in unsaid_sizes(config).items() if value != PUBLISHED[key]}
    check_sizes(read_model(file, **chosen), task_set, file)
    return read_model(file, action_dims=task_set.action_dims, **chosen).requires_grad_(False)


def unsaid_sizes(config: Any) -> dict[str, Any]:
    """What the weights of a checkpoint do not tell, as configured."""
    return {key: config.model[key] for key in ("simnorm_dim", "vmin", "vmax") if key in config.model}


def check_sizes(model: PWMWorldModel, task_set: TaskSet, source: Any, *, num_tasks: int | None = None) -> None:
    """Raises ValueError if the model's sizes are not those of the task set, with ``num_tasks`` tasks or all."""
    sizes = (model.observation_dim, model.action_dim, model.num_tasks)
    expected = (task_set.observation_dim, task_set.action_dim, len(task_set) if num_tasks is None else num_tasks)
    if sizes != expected:
        names = ("observation size", "action size", "number of tasks")
        wrong = ", ".join(f"{name} {f} (expected {e})" for name, f, e in zip(names, sizes, expected) if f != e)
        raise ValueError(
            f"The checkpoint {source} does not fit {task_set.name}: {wrong}. "
            "Choose the task_set it was trained on, or another checkpoint."
        )


def prepare_world_model(
    config: DictConfig, folder: Path, store: EpisodeStore | None, tasks: list[str], ranks: Ranks | None = None
) -> Path:
    """The file of the frozen model: the given checkpoint, or one that is trained here, by ``ranks`` together."""
    if config.checkpoint == "quickstart":
        return QUICKSTART_FILE
    if config.checkpoint:
        return keep_world_model(config, folder)
    assert store is not None
    file = folder / _FILE
    if file.exists() if ranks is None else ranks.agreed(file.exists()):
        return file
    torch.manual_seed(config.seed)
    model = make_world_model(config)
    if config.world_model.normalize_observations:
        model.set_observation_statistics(*observation_statistics(store))
    replay = make_replay(config, store, tasks, ranks)
    torchrl_logger.info(f"world model: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tasks)} tasks")
    return train_world_model(
        config,
        file.parent,
        model,
        replay,
        iterations=config.world_model.iterations,
        states=measured_states(store, tasks, seed=config.seed),
        names=store.task_set.names,
        ranks=ranks,
    )


def make_replay(
    config: DictConfig, store: EpisodeStore, tasks: list[str], ranks: Ranks | None = None
) -> TDMPC2ExperienceReplay | ReplayMixture:
    """Sequences that the world model learns from before any round: the data's, and those of earlier runs' episodes."""
    settings, options = config.world_model, {"tasks": tasks, "seed": config.seed}
    options |= reads_ahead(choose_device(config.device))
    earlier = earlier_data(config.rounds) if "rounds" in config else ()
    if earlier:
        batch = {"batch_size": settings.batch_size, "slice_len": settings.slice_len}
        return mix(config.rounds, Path(store.root), earlier, **batch, **options)
    part = None if ranks is None else (ranks.rank, ranks.count)
    sampler = EpisodeSliceSampler(settings.slice_len, part=part)
    return TDMPC2ExperienceReplay(store.root, settings.batch_size, sampler=sampler, **options)


def measured_states(store: EpisodeStore, tasks: Iterable[str], *, seed: int, episodes: Any = None) -> TensorDictBase:
    """States [N] of each task, spread over its episodes, on which a model's representation is measured."""
    drawn = [start_states(store, task, _MEASURED, resets=0.0, episodes=episodes, seed=seed) for task in tasks]
    return TensorDict.cat(drawn).select("observation", "task")


def read_representation(model_file: Path) -> dict[str, dict[str, float]]:
    """What a training found of the representation of the model in ``model_file``, by task; empty if it did not look."""
    file = model_file.with_name(_REPRESENTATION)
    return read_json(file, what="record", keys=[]) if file.exists() else {}


def train_world_model(
    config: DictConfig,
    folder: Path,
    model: PWMWorldModel,
    replay: TDMPC2ExperienceReplay | ReplayMixture,
    *,
    iterations: int,
    states: TensorDictBase | None = None,
    names: Sequence[str] = (),
    ranks: Ranks | None = None,
) -> Path:
    """Trains a model, or goes on where that was interrupted, and returns its file ``world_model.pt``.

    On ``states`` the representation is measured along the way and in the end, for ``representation.json`` beside it,
    by task, whose ``names`` are in the order of their indices. Of several processes, ``ranks``, each gives a replay of
    its part; the first one measures, logs and writes.
    """
    settings, device = config.world_model, choose_device(config.device)
    loss = instantiate(config.model_loss, model.requires_grad_(True).to(device))
    # Where several train, the model may be shared out: what is measured and written is a copy that is whole.
    whole = model if ranks is None else copy.deepcopy(model).requires_grad_(False)
    watch = None
    if states is not None:
        interval = settings.log_interval
        watch = RepresentationWatch(
            whole, states.to(device), warn_from=iterations // (2 * interval), names=dict(enumerate(names))
        )
    how: dict[str, Any] = {"iterations": iterations}
    make_trainer: Any = WorldModelTrainer
    evaluate: Any = watch
    if ranks is not None:
        from torchrl_pwm.trainers import distributed
        from torchrl_pwm.trainers.ranks import OnWhole

        make_trainer = distributed.DistributedWorldModelTrainer
        evaluate = OnWhole(model, whole, ranks, watch)
        how |= {"_target_": f"{distributed.__name__}.DistributedWorldModelStepper"}
        how |= {"ranks": ranks, "engine": config.distributed}
    trainer = make_trainer(
        loss,
        replay,
        iterations=iterations,
        optimization_stepper=instantiate(config.model_stepper, loss, **how),
        device=device,
        logger=make_logger(config, folder) if ranks is None or ranks.first else None,
        log_interval=settings.log_interval,
        evaluate=evaluate,
        eval_interval=settings.log_interval,
        stopwatch=Stopwatch(),
        save_folder=folder / "checkpoint",
        save_interval=settings.save_interval,
        progress_bar=config.progress,
    )
    if watch is not None and (ranks is None or config.distributed == "ddp"):
        trainer.components["representation"] = watch
    trainer.resume(required=False)
    trainer.train()
    file = folder / "world_model.pt"
    if ranks is not None:
        evaluate.refresh()
    if ranks is None or ranks.first:
        if watch is not None:
            replace_file(folder / _REPRESENTATION, json.dumps(watch.measure(), indent=2).encode())
        save_tensors(file, {"model": whole.cpu().state_dict()})
    if ranks is not None:
        ranks.wait()
    return file


def prepare_disagreement(config: DictConfig, store: EpisodeStore, file: Path, tasks: list[str]) -> None:
    """Trains the ensemble of the model in ``file`` beside it, unless it is there."""
    target = disagreement_file(file)
    if target.exists():
        return
    settings, device = config.world_model, choose_device(config.device)
    replay = TDMPC2ExperienceReplay(
        store.root,
        settings.batch_size,
        slice_len=settings.slice_len,
        tasks=tasks,
        seed=config.seed,
        **reads_ahead(device),
    )
    ensemble = train_disagreement(
        load_world_model(config, file).to(device),
        replay,
        iterations=settings.disagreement_iterations,
        seed=config.seed,
        progress=config.progress,
    )
    save_disagreement(ensemble, target)


def given_world_model(config: Any, folder: Path) -> Path:
    """The world model that a run was given: as it keeps it, or before that the checkpoint itself."""
    kept = folder / _FILE
    return kept if kept.exists() else Path(config.checkpoint)


def keep_world_model(config: Any, folder: Path) -> Path:
    """Writes the world model that a run was given into its folder, so that the run is opened wherever it is.

    With all that says how it is built, which may stand beside a checkpoint.
    """
    kept = folder / _FILE
    if not kept.exists():
        save_tensors(kept, {"model": load_world_model(config, config.checkpoint).state_dict()})
    return kept


def world_model_of_run(config: Any, folder: Path, task: str) -> Path:
    """The file of the world model that a run's policies of a task were extracted from.

    Raises:
        FileNotFoundError: if it is not there.
    """
    if (kept := kept_world_model(folder, task)) is not None:
        return kept
    if not config.checkpoint or config.rounds.count:
        return latest_world_model(folder)
    if config.checkpoint == "quickstart":
        return QUICKSTART_FILE
    return given_world_model(config, folder)


def kept_world_model(folder: Path, task: str) -> Path | None:
    """That of the round that was chosen for a task; None where no round was."""
    rounds = folder / "rounds.json"
    kept = read_json(rounds, what="record of rounds", keys=["kept"])["kept"] if rounds.exists() else None
    if not isinstance(kept, dict):
        return None
    return folder / "rounds" / str(kept[task]) / _FILE if kept[task] else folder / _FILE


def keep_chosen_world_model(folder: Path, files: Sequence[Path]) -> None:
    """Keeps the world model of the round that counts, if it is one, where :func:`latest_world_model` looks first."""
    if len(files) == 1:
        replace_file(folder / CHOSEN, files[0].read_bytes())
    else:
        (folder / CHOSEN).unlink(missing_ok=True)


def latest_world_model(folder: Path) -> Path:
    """The file of a run's last world model, or of the one that its policies were extracted from in rounds.

    Raises:
        FileNotFoundError: if the run has none.
    """
    if (folder / CHOSEN).exists():
        return folder / CHOSEN
    rounds = sorted((folder / "rounds").glob("*/world_model/world_model.pt"), key=lambda file: int(file.parts[-3]))
    file = rounds[-1] if rounds else folder / _FILE
    if not file.exists():
        raise FileNotFoundError(
            f"{folder} holds no world model: expected {file}, which a run writes when it is trained."
        )
    return file


def disagreement_file(world_model: Path) -> Path:
    """Where the ensemble of a world model's file is kept."""
    return world_model.with_name("disagreement.pt")


def save_disagreement(ensemble: DynamicsEnsemble, file: Path) -> None:
    """Writes the ensemble's weights to a file of tensors only."""
    save_tensors(file, ensemble.cpu().state_dict())


def load_disagreement(file: Path, world_model: PWMWorldModel) -> DynamicsEnsemble:
    """The frozen ensemble of a model.

    Raises:
        FileNotFoundError: if none was trained for it.
    """
    if not file.exists():
        raise FileNotFoundError(
            f"loss.disagreement_coef needs the ensemble {file}, which a run trains with its world model; with a model "
            "that was given, leave it at 0."
        )
    ensemble = DynamicsEnsemble(world_model)
    load_weights(ensemble, file, what="ensemble")
    return ensemble.requires_grad_(False).eval()
