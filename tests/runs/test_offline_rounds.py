"""Rounds of a run on recorded data: play in the env that it names, train on, go on with the same policy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("hydra")
pytest.importorskip("gymnasium")

from torchrl.envs import GymEnv

from tests.runs.test_offline import TINY
from tests.trainers.tiny import assert_same
from torchrl_pwm import load_policy, write_episodes
from torchrl_pwm._utils.tensor_files import read_tensors
from torchrl_pwm.data import EpisodeStore
from torchrl_pwm.runs.cli import main

ROUNDS = ["env=Pendulum-v1", "rounds.count=1", "rounds.iterations=3", "rounds.policy_iterations=2"]
ROUNDS += ["rounds.episodes=2", "rounds.noise=[0.0,random]", "rounds.eval_episodes=1", "evaluation.episodes=1"]
FILE = Path("policies") / "arm" / "seed-0"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = GymEnv("Pendulum-v1")
    env.set_seed(0)
    torch.manual_seed(0)
    write_episodes("arm", env.rollout(400, break_when_any_done=False), action_low=-2.0, action_high=2.0)


def run(folder, *overrides):
    main(["offline", "data=arm", *TINY, *ROUNDS, f"folder={folder}", *overrides])
    return Path(folder)


def numbers(folder):
    """What a run came to, without its seconds."""
    files = sorted(file for file in folder.rglob("*.csv") if file.stem != "training_seconds")
    tasks = json.loads((folder / "summary.json").read_text())["tasks"]
    return tasks, (folder / "rounds.json").read_text(), {str(f.relative_to(folder)): f.read_text() for f in files}


def test_a_round_plays_trains_on_and_goes_on_from_the_same_policy(capsys):
    folder = run("run")
    own = EpisodeStore(folder / "rounds" / "0" / "data")
    assert own.lengths.tolist() == [200, 200] and own.tasks == ("arm",)
    assert abs(own.action[:]).max() <= 1 and abs(own.action[200:400]).mean() == pytest.approx(0.5, abs=0.1)
    assert_same(
        read_tensors(folder / "world_model.pt", what="world model"),
        read_tensors(folder / "rounds" / "1" / "world_model" / "world_model.pt", what="world model")["model"],
    )
    found = json.loads((folder / "rounds.json").read_text())["rounds"]
    assert [entry["round"] for entry in found] == [0] and "real" in found[0]["trust"]["arm"][0]
    # the last policy is two small updates from that of the round
    last = torch.load(folder / "policy.pt", weights_only=True)
    before = read_tensors(folder / "rounds" / "0" / FILE / "policy.pt", what="policy")["actor"]
    moved = [float((last[name] - value).abs().max()) for name, value in before.items()]
    assert 0 < max(moved) < 0.01
    assert load_policy(folder, "cpu")(observation=torch.zeros(2, 3)).shape == (2, 1)
    assert "| round | return |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "missing",
    [
        ["rounds/0/data", "rounds/1", "policy.pt", "checkpoint"],
        ["rounds/1/world_model/world_model.pt", "policy.pt", "checkpoint"],
        ["policy.pt", "checkpoint"],
    ],
)
def test_a_run_that_was_interrupted_between_stages_comes_to_the_same(missing):
    folder = run("run")
    whole, stamp = numbers(folder), (folder / "rounds" / "0" / FILE / "policy.pt").stat().st_mtime_ns
    for name in ("summary.json", "scalars", *missing):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    main(["offline", "resume=run"])
    assert numbers(folder) == whole
    assert (folder / "rounds" / "0" / FILE / "policy.pt").stat().st_mtime_ns == stamp, "done stages are skipped"


def test_the_best_round_counts_with_its_own_world_model():
    folder = run("run", "rounds.keep=best")
    found = json.loads((folder / "rounds.json").read_text())
    scores = [entry["score"] for entry in found["rounds"]]
    assert len(scores) == 2 and scores[found["kept"]] == max(scores)
    kept = read_tensors(folder / "rounds" / str(found["kept"]) / FILE / "policy.pt", what="policy")["actor"]
    assert_same(torch.load(folder / "policy.pt", weights_only=True), kept)


def test_rounds_without_an_env_are_refused():
    with pytest.raises(SystemExit, match=r"rounds\.count=1 plays episodes of the policy in an env: name one with env="):
        run("run", "env.task=null")
    with pytest.raises(SystemExit, match=r"rounds\.until_honest=true asks the trust probe"):
        run("run", "rounds.until_honest=true", "trust_probe=false")
    assert not Path("run").exists()
