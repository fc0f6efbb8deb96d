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

from tests.envs.short_pendulum import SHORT_PENDULUM
from tests.runs.test_offline import TINY
from tests.trainers.tiny import assert_same
from torchrl_pwm import load_policy, write_episodes
from torchrl_pwm._utils.door import read_tensors
from torchrl_pwm.data import EpisodeStore
from torchrl_pwm.runs.cli import main

ENV = f"env={SHORT_PENDULUM}"
ROUNDS = [ENV, "rounds.count=1", "rounds.iterations=3", "rounds.policy_iterations=2"]
ROUNDS += [
    "rounds.critic_sequences=4",
    "rounds.episodes=2",
    "rounds.noise=[0.0,random]",
    "rounds.eval_episodes=1",
    "evaluation.episodes=1",
]
FILE = Path("policies") / "arm" / "seed-0"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    env = GymEnv(SHORT_PENDULUM)
    env.set_seed(0)
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("data") / "arm"
    write_episodes(root, env.rollout(400, break_when_any_done=False), action_low=-2.0, action_high=2.0)
    return root


def run(data, folder, *overrides):
    main(["offline", f"data={data}", *TINY, *ROUNDS, f"folder={folder}", *overrides])
    return folder


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return run(data, tmp_path_factory.mktemp("whole") / "run")


def numbers(folder):
    """What a run came to, without its seconds."""
    files = sorted(file for file in folder.rglob("*.csv") if file.stem != "training_seconds")
    tasks = json.loads((folder / "summary.json").read_text())["tasks"]
    return tasks, (folder / "rounds.json").read_text(), {str(f.relative_to(folder)): f.read_text() for f in files}


def test_a_round_plays_trains_on_and_goes_on_from_the_same_policy(whole):
    own = EpisodeStore(whole / "rounds" / "0" / "data")
    assert own.lengths.tolist() == [40, 40] and list(own.tasks) == ["arm"]
    assert abs(own.action[:]).max() <= 1, "as the policy acts, not in the bounds of the env"
    # one episode is the policy's own, which moves little; the actions of the other are uniform
    spreads = [float(own.episode(number).action.std()) for number in range(2)]
    assert spreads[0] < 0.3 and spreads[1] == pytest.approx(3**-0.5, abs=0.15)
    after = read_tensors(whole / "rounds" / "1" / "world_model" / "world_model.pt", what="world model")["model"]
    before = read_tensors(whole / "world_model" / "world_model.pt", what="world model")["model"]
    assert_same(read_tensors(whole / "world_model.pt", what="world model"), after)
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    found = json.loads((whole / "rounds.json").read_text())["rounds"]
    assert [entry["round"] for entry in found] == [0] and "real" in found[0]["trust"]["arm"][0]
    last = torch.load(whole / "policy.pt", weights_only=True)
    first = read_tensors(whole / "rounds" / "0" / FILE / "policy.pt", what="policy")["actor"]
    moved = max(float((last[name] - value).abs().max()) for name, value in first.items())
    assert 0 < moved < 0.01, "two small updates from that of the round"
    assert load_policy(whole, "cpu")(observation=torch.zeros(2, 3)).shape == (2, 1)
    assert f"| 0 | {found[0]['score']:.1f} |" in (whole / "report.md").read_text()


@pytest.mark.parametrize(
    "missing",
    [
        pytest.param(("rounds/0/data", "rounds/1", "policy.pt", "checkpoint"), id="after the first policy"),
        pytest.param(("rounds/1/world_model/world_model.pt", "policy.pt", "checkpoint"), id="after the training"),
    ],
)
def test_a_run_that_was_interrupted_between_stages_comes_to_the_same(whole, tmp_path, missing):
    folder = shutil.copytree(whole, tmp_path / "run")
    policy = folder / "rounds" / "0" / FILE / "policy.pt"
    stamp = policy.stat().st_mtime_ns
    for name in ("summary.json", "rounds.json", "scalars", *missing):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    main(["offline", f"resume={folder}", ENV])
    assert numbers(folder) == numbers(whole)
    assert policy.stat().st_mtime_ns == stamp, "what is done is not done again"


def test_further_rounds_come_to_what_so_many_rounds_from_the_start_do(whole, data, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    main(["offline", f"resume={folder}", ENV, "rounds.count=2"])
    kept = folder / "earlier" / "rounds.count-1"
    assert json.loads((kept / "summary.json").read_text())["tasks"] == numbers(whole)[0]
    shutil.rmtree(folder / "earlier")
    assert numbers(folder) == numbers(run(data, tmp_path / "two", "rounds.count=2"))


def test_the_best_round_counts_with_its_own_world_model(data, tmp_path):
    folder = run(data, tmp_path / "run", "rounds.keep=best", "rounds.episodes=1", "rounds.anew=true")
    found = json.loads((folder / "rounds.json").read_text())
    scores = [entry["score"] for entry in found["rounds"]]
    number, anew = found["kept"]["arm"], found["anew"] == ["arm"]
    assert [(entry["round"], "anew" in entry) for entry in found["rounds"]] == [(0, False), (1, False), (1, True)]
    assert scores[number + anew] == max(scores)
    place = folder / "rounds" / str(number)
    kept = read_tensors((place / "anew" if anew else place) / FILE / "policy.pt", what="policy")["actor"]
    assert_same(torch.load(folder / "policy.pt", weights_only=True), kept)
    places = [folder / "world_model", folder / "rounds" / "1" / "world_model"]
    own = read_tensors(places[number] / "world_model.pt", what="world model")["model"]
    assert_same(read_tensors(folder / "world_model.pt", what="world model"), own)
    report = (folder / "report.md").read_text()
    assert f"| 1, anew | {scores[2]:.1f} |" in report
    assert f"That of round {number}{', begun anew,' if anew else ''} counts." in report


def test_rounds_without_an_env_are_refused(data, tmp_path):
    with pytest.raises(SystemExit, match=r"rounds\.count=1 plays episodes of the policy in an env: name one with env="):
        run(data, tmp_path / "run", "env.task=null")
    with pytest.raises(SystemExit, match=r"rounds\.until_honest=true asks the trust probe"):
        run(data, tmp_path / "run", "rounds.until_honest=true", "trust_probe=false")
    with pytest.raises(SystemExit, match=r"rounds\.keep=honest asks the trust probe"):
        run(data, tmp_path / "run", "rounds.keep=honest", "trust_probe=false")
    assert not (tmp_path / "run").exists()
