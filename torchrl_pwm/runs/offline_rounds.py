"""Rounds of a run on recorded data: its policy plays in the env that the run names, and goes on from there."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from torchrl_pwm._utils.door import read_json
from torchrl_pwm._utils.files import replace_file
from torchrl_pwm.modules import WorldModelPolicy
from torchrl_pwm.runs.evaluator import Evaluator
from torchrl_pwm.runs.offline_model import load_model
from torchrl_pwm.runs.offline_policy import extract
from torchrl_pwm.runs.own_episodes import play_env, round_seed
from torchrl_pwm.runs.policies import load_actor, policy_file, save_policy
from torchrl_pwm.runs.recordings import Recordings
from torchrl_pwm.runs.round_loop import APART, Round, beginning, go_through, place_of, train_on
from torchrl_pwm.runs.saved import DELETE
from torchrl_pwm.runs.starts import Before
from torchrl_pwm.runs.world_model import measured_states


def run_rounds(
    config: DictConfig, folder: Path, recordings: Recordings, task: str, evaluator: Evaluator, device: str
) -> tuple[DictConfig, Path, Before]:
    """As :func:`torchrl_pwm.runs.rounds.run_rounds`, whose options and files it has, for the task of recorded data."""

    def policies(file: Path, rounds: list[Round], anew: bool) -> Round:
        number, here = place_of(folder, rounds, anew)
        saved = policy_file(here, task, config.seed)
        done = saved.with_name("result.json")
        if not done.exists():
            apart = {"episodes": config.rounds.eval_episodes, "seed": config.evaluation.seed + APART}
            begun, before = beginning(config, rounds, anew)
            merged: DictConfig = OmegaConf.merge(begun, {"evaluation": apart})  # type: ignore[assignment]
            model, own = load_model(config, recordings, file).to(device), Evaluator(merged, device, evaluator.data)
            loss, outcomes = extract(merged, saved.parent, recordings, task, model, own, device, before)
            save_policy(loss, saved)
            replace_file(done, json.dumps(outcomes, indent=2).encode())
        found = read_json(done, what="result", keys=["last policy", "policy"], advice=DELETE)
        trust = found["last policy"].get("trust")
        scores = {task: found["policy"]["return_mean"]}
        return Round(number, here, file, scores, {task: [] if trust is None else [trust]}, anew)

    def play(last: Round) -> None:
        model = load_model(config, recordings, last.world_model)
        policy = WorldModelPolicy(model, load_actor(config, model, last.folder, task)).to(device)
        seed = round_seed(config.seed, last.number)
        play_env(config, last.folder / "data", policy, task=task, seed=seed, device=device)

    def train(file: Path, rounds: list[Round]) -> Path:
        store = recordings.store
        return train_on(
            config,
            folder / "rounds" / str(len(rounds)),
            load_model(config, recordings, file),
            Path(store.root),
            rounds,
            [task],
            states=measured_states(store, [task], seed=config.seed, episodes=recordings.measured(task)),
            names=store.task_set.names,
            episodes=recordings.kept,
            strict_length=False,
        )

    file = folder / "world_model" / "world_model.pt"
    rounds, file, chosen = go_through(config.rounds, folder, file, extract=policies, play=play, train=train)
    if chosen is not None:
        return config, chosen[task].world_model, Before(chosen[task].folder, finished=True)
    last, before = beginning(config, rounds, config.rounds.get("anew", False))
    return last, file, before
