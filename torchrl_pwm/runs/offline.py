"""PWM from recorded episodes alone: world model, a policy per task, and a report of how far both can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from torchrl_pwm._utils.checkpoint import save_tensors
from torchrl_pwm._utils.devices import choose_device
from torchrl_pwm._utils.door import read_json
from torchrl_pwm._utils.extras import require
from torchrl_pwm.data import EpisodeStore
from torchrl_pwm.runs.clock import RunClock
from torchrl_pwm.runs.evaluator import Evaluator
from torchrl_pwm.runs.folder import claim_folder, finished
from torchrl_pwm.runs.offline_model import load_model, prepare_model
from torchrl_pwm.runs.offline_policy import extract
from torchrl_pwm.runs.offline_report import measure_trust, measured_sequences, write_offline_report
from torchrl_pwm.runs.offline_rounds import run_rounds
from torchrl_pwm.runs.recordings import Recordings, open_recordings
from torchrl_pwm.runs.starts import FRESH

_PROBED = 256  # sequences of the data, beside which the trust probe shows the model's errors


def run_offline(config: DictConfig, folder: Path) -> Path:
    """Runs what is left of the run in ``folder`` and returns the path of its ``summary.json``.

    The folder then holds the configuration, with the sizes of the data, ``world_model.pt`` and ``policy.pt`` (state
    dicts, as online runs write them; of data of several tasks ``policies/TASK/policy.pt``), the summary, and
    ``report.md``: errors of the model and the critics on episodes that were held out, how far imagined states lie from
    the data, and the returns of whole episodes where there is an env.

    Raises:
        FileNotFoundError, ValueError, ImportError: if something that the configuration names is missing, unknown or
            does not fit, before the folder is made.
        FloatingPointError: if a number is not finite.
    """
    if summary := finished(config, folder):
        return summary
    with RunClock(folder) as clock:
        return _run_stages(config, folder, clock)


def _run_stages(config: DictConfig, folder: Path, clock: RunClock) -> Path:
    device = choose_device(config.device)
    if config.loss.disagreement_coef:
        raise ValueError(
            f"loss.disagreement_coef={config.loss.disagreement_coef} needs an ensemble, which mt80 trains and offline "
            "does not: leave it at 0"
        )
    recordings = open_recordings(config)
    complete_config(config, recordings)
    evaluator = make_evaluator(config, recordings, device)
    claim_folder(config, folder)
    model = prepare_model(config, folder, recordings).to(device)
    results = {}
    for task in recordings.tasks:
        place = folder if len(recordings.tasks) == 1 else folder / "policies" / task
        before, configured = FRESH, config
        if evaluator is not None and _rounds(config):
            configured, file, before = run_rounds(config, folder, recordings, task, evaluator, device)
            model = load_model(config, recordings, file).to(device)
        loss, outcomes = extract(configured, place, recordings, task, model, evaluator, device, before)
        results[task] = measure_trust(config, recordings, task, model, loss)
        if outcomes:
            results[task]["outcomes"] = outcomes
    save_tensors(folder / "world_model.pt", model.cpu().state_dict())
    rounds = folder / "rounds.json"
    for result in results.values() if rounds.exists() else ():  # of one task
        result["rounds"] = read_json(rounds, what="record of rounds", keys=[])
    return write_offline_report(config, folder, recordings, results, seconds=clock.seconds)


def complete_config(config: DictConfig, recordings: Recordings) -> None:
    """Puts the sizes of the data into the configuration, so that it makes the networks without them."""
    store = recordings.store
    table = store.task_set
    several, sizes = len(table) > 1, [table[name].observation_dim for name in table.names]
    with open_dict(config):
        config.model.update(
            observation_dim=table.observation_dim,
            action_dim=table.action_dim,
            num_tasks=len(table) if several else 0,
            task_dim=config.model.task_dim if several else 0,
            action_dims=list(table.action_dims) if several else None,
            termination=store.terminates,
            observation_dims=sizes if several and config.model.decoder else None,
        )
        config.actor.update(latent_dim=config.model.latent_dim, action_dim=table.action_dim)
        config.value.latent_dim = config.model.latent_dim
        config.loss.mask_actions = several
        # What a policy needs to act without the data. From the bounds its actions, in [-1, 1], are scaled back; null:
        # they are as they are.
        config.tasks = {
            rows.name: {
                "index": rows.index,
                "observation_dim": table[rows.name].observation_dim,
                "action_dim": table[rows.name].action_dim,
                "action_low": None if rows.action_low is None else list(rows.action_low),
                "action_high": None if rows.action_high is None else list(rows.action_high),
            }
            for rows in store.select(list(recordings.tasks))
        }


def make_evaluator(config: DictConfig, recordings: Recordings, device: str) -> Evaluator | None:
    """Evaluates in the env that the configuration names; None where it names none.

    Raises:
        ValueError: for data of several tasks, and an env whose observations or actions are not those of the data.
    """
    if config.env.task is None:
        if _rounds(config):
            raise ValueError(
                f"rounds.count={_rounds(config)} plays episodes of the policy in an env: name one with env=, or leave "
                "it at 0"
            )
        if config.extraction.select != "last":
            raise ValueError(
                f"extraction.select={config.extraction.select} chooses by returns in an env: name one with env=, or "
                "leave it at last"
            )
        return None
    asking = {"until_honest=true": config.rounds.until_honest, "keep=honest": config.rounds.keep == "honest"}
    for setting, chosen in asking.items():
        if _rounds(config) and chosen and not config.trust_probe:
            raise ValueError(f"rounds.{setting} asks the trust probe, found trust_probe=false: leave one of both out")
    if config.model.num_tasks:
        raise ValueError(f"env= evaluates data of one task, found those of {list(recordings.store.task_set.names)}")
    if config.env._target_.endswith("make_gym_env"):
        _check_action_bounds(config.env.task, recordings.store)
    env = instantiate(config.env, num_envs=1)
    sizes = (env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1])
    env.close()
    if sizes != (config.model.observation_dim, config.model.action_dim):
        raise ValueError(
            f"env={config.env.task} has observations of {sizes[0]} and actions of {sizes[1]} entries, the data in "
            f"{recordings.store.root} have {config.model.observation_dim} and {config.model.action_dim}: is it another "
            "env, or are its observations built in another way?"
        )
    return Evaluator(config, device, measured_sequences(config, recordings, recordings.tasks[0], _PROBED))


def _rounds(config: DictConfig) -> int:
    """Rounds of a run; those of before had none."""
    return int(config.rounds.count) if "rounds" in config else 0


def _check_action_bounds(env_id: str, store: EpisodeStore) -> None:
    """Raises ValueError if actions of [-1, 1] mean another thing in the env than in the data."""
    gymnasium: Any = require("gymnasium", extra="gym", purpose=f"env={env_id}")
    with gymnasium.make(env_id) as env:
        space = env.action_space
    (rows,) = store.manifest.tasks
    low, high = (-1.0, 1.0) if rows.action_low is None else (list(rows.action_low), list(rows.action_high or ()))
    if hasattr(space, "low") and not (np.allclose(space.low, low) and np.allclose(space.high, high)):
        raise ValueError(
            f"the actions of {env_id} go from {space.low.tolist()} to {space.high.tolist()}, those of the data from "
            f"{low} to {high}, of which [-1, 1] was made: write the data with action_low and action_high of the env"
        )
