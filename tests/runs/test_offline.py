"""The command that makes a world model and policies from recorded episodes alone."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("hydra")

from omegaconf import OmegaConf
from tensordict import TensorDict

from torchrl_pwm import PWMWorldModel, load_policy, make_value_ensemble, write_episodes
from torchrl_pwm.evaluation.held_out import distance_from_data, open_loop_errors, value_gaps
from torchrl_pwm.runs import offline
from torchrl_pwm.runs.cli import command_config, main
from torchrl_pwm.runs.offline_model import data_statistics
from torchrl_pwm.runs.starts import FRESH, make_starts

TINY = ["model.latent_dim=16", "model.units=[16]", "model.encoder_units=[16]", "model.task_dim=4", "device=cpu"]
TINY += ["actor.units=[8]", "value.units=[8]", "loss.horizon=3", "progress=false", "world_model.batch_size=8"]
TINY += ["world_model.iterations=4", "world_model.save_interval=2", "extraction.iterations=4", "evaluation.episodes=2"]
TINY += ["extraction.warm_start={behavior_updates: 2, value_updates: 1}", "extraction.batch_size=8"]
TINY += ["extraction.eval_interval=2", "extraction.eval_episodes=2", "extraction.save_interval=2"]
LENGTHS = (3, 40, 25, 1, 30, 12)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def recorded(**entries):
    """A point that is pushed: float64, one constant column in the size of a time stamp, some episodes of few steps."""
    draws = np.random.default_rng(0)
    for number, length in enumerate(LENGTHS):
        action = draws.uniform(-1.0, 1.0, (length, 1))
        position = np.concatenate([[[0.0]], action.cumsum(0)])
        observation = np.concatenate([position, np.full_like(position, 1.7e9)], 1)
        episode = {"observation": observation, "action": action, "reward": -np.abs(position[1:, 0])}
        yield {**episode, "terminated": number % 2 == 0, **entries}


def run(*overrides):
    main(["offline", "data=arm", *TINY, *overrides])


def test_data_alone_make_a_model_a_policy_and_a_report(tmp_path, capsys):
    write_episodes("arm", recorded(), action_low=-4.0, action_high=4.0)
    run("folder=run", "held_out=0.34")
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "summary.json").read_text())["tasks"]["arm"]
    assert (result["kept"], result["held_out"]) == (4, 2) and "outcomes" not in result
    assert all(math.isfinite(number) for number in (*result["reward"]["error"].values(), *result["value_gap"].values()))
    assert result["distance_from_data"] > 0
    assert "2 of 6 episodes, which were held out" in printed and "no env was given" in printed
    assert 0 < result["ends"]["where_ended"] < 1 and "really ended one" in printed
    shutil.rmtree("arm")
    policy = load_policy("run", device="cpu")
    observation = torch.tensor([[0.5, 1.7e9]])
    assert policy.world_model.termination and policy(observation=observation).shape == (1, 1)
    own = OmegaConf.load("run/config.yaml").tasks.arm
    assert (own.action_low, own.action_high) == ([-4.0], [4.0]), "the machine's action can be told"


def test_a_run_is_named_after_its_data_and_goes_on_where_it_was_interrupted(tmp_path, capsys):
    write_episodes("arm", recorded())
    run("folder=whole")
    run()
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("_arm")
    weights = torch.load("whole/policy.pt", weights_only=True)
    (folder / "summary.json").unlink()
    (folder / "policy.pt").unlink()
    main(["offline", f"resume={folder}"])
    again = torch.load(folder / "policy.pt", weights_only=True)
    assert all(torch.equal(again[key], value) for key, value in weights.items())
    with pytest.raises(SystemExit, match="is one of offline, not of mt80"):
        main(["mt80", f"resume={folder}"])
    capsys.readouterr()
    main(["report", f"run={folder}"])
    assert "# arm: a policy from recorded data" in capsys.readouterr().out


def test_each_task_of_a_data_set_gets_a_policy(tmp_path):
    wide = [{**each, "observation": np.repeat(each["observation"], 2, 1)} for each in recorded(task="lift")]
    write_episodes("arm", [*wide, *recorded(task="turn")])
    run("folder=both")
    summary = json.loads((tmp_path / "both" / "summary.json").read_text())
    assert set(summary["tasks"]) == {"lift", "turn"}
    for task, size in (("lift", 4), ("turn", 2)):
        for policy in (load_policy("both", "cpu", task=task), load_policy(f"both/policies/{task}/policy.pt", "cpu")):
            assert policy(observation=torch.zeros(3, size)).shape == (3, 1)
    with pytest.raises(ValueError, match=r"several policies: choose one with task=, of \['lift', 'turn'\]"):
        load_policy("both", "cpu")
    run("folder=one", "task=turn")
    assert set(json.loads((tmp_path / "one" / "summary.json").read_text())["tasks"]) == {"turn"}
    assert (tmp_path / "one" / "policy.pt").exists()
    with pytest.raises(SystemExit, match="did you mean 'turn'"):
        run("folder=other", "task=tern")
    with pytest.raises(SystemExit, match="env= evaluates data of one task"):
        run("folder=other", "env=Pendulum-v1")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("select", ["last", "best"])
def test_with_an_env_the_policy_is_evaluated(tmp_path, select, capsys):
    pytest.importorskip("gymnasium")
    from torchrl.envs import GymEnv

    rollout = GymEnv("Pendulum-v1").rollout(400, break_when_any_done=False)
    write_episodes("arm", rollout, action_low=-2.0, action_high=2.0)
    run("folder=run", "env=Pendulum-v1", f"extraction.select={select}", "held_out=0")
    outcomes = json.loads((tmp_path / "run" / "summary.json").read_text())["tasks"]["arm"]["outcomes"]
    assert outcomes["policy"] == outcomes[f"{select} policy"]
    assert set(outcomes) == {"policy", "last policy", "best policy", "random actions"}
    assert "Return of 2 episodes in the env" in capsys.readouterr().out


def test_an_env_of_other_sizes_or_actions_is_refused(tmp_path):
    pytest.importorskip("gymnasium")
    write_episodes("arm", recorded())
    with pytest.raises(
        SystemExit, match=r"actions of Pendulum-v1 go from \[-2\.0\] to \[2\.0\], .* from -1\.0 to 1\.0"
    ):
        run("folder=run", "env=Pendulum-v1")
    write_episodes("scaled", recorded(), action_low=-2.0, action_high=2.0)
    with pytest.raises(SystemExit, match="observations of 3 and actions of 1 entries, the data in scaled have 2 and 1"):
        run("folder=run", "data=scaled", "env=Pendulum-v1")
    with pytest.raises(SystemExit, match="chooses by returns in an env: name one with env="):
        run("folder=run", "extraction.select=best")
    with pytest.raises(SystemExit, match=r"loss\.disagreement_coef=1\.0 needs an ensemble"):
        run("folder=run", "loss.disagreement_coef=1.0")
    assert not (tmp_path / "run").exists()


def test_start_states_are_none_of_episodes_that_were_held_out(tmp_path):
    store = write_episodes(
        "arm", [{**each, "observation": each["observation"] * 0 + n} for n, each in enumerate(recorded())]
    )
    kept = list(range(1, len(store.lengths), 2))
    config = command_config("offline", [*TINY, "data=arm", "extraction.starts=null"])
    model = PWMWorldModel(2, 1, latent_dim=16, units=(16,))
    options = {"data": tmp_path / "arm", "before": FRESH, "device": "cpu", "episodes": kept}
    starts = make_starts(config, "arm", 0, model, **options)
    drawn = {int(each) for _ in range(9) for each in starts.sample()["observation"][..., 0].flatten()}
    assert drawn and drawn <= set(kept)


def test_the_seconds_of_earlier_sittings_are_in_the_report(tmp_path, monkeypatch):
    write_episodes("arm", recorded())
    with monkeypatch.context() as patch:
        patch.setattr(offline, "measure_trust", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("folder=run")
    clock, summary = tmp_path / "run" / "seconds.json", tmp_path / "run" / "summary.json"
    assert json.loads(clock.read_text()) > 0
    clock.write_text("1000.0")
    main(["offline", "resume=run"])
    assert 1000 < json.loads(summary.read_text())["seconds"] <= json.loads(clock.read_text()) + 0.1 < 2000


def test_steps_of_a_run_without_an_env_are_recorded_in_one_that_is_named(capsys):
    write_episodes("arm", recorded())
    run("folder=run", "model.termination=false")
    with pytest.raises(SystemExit, match=r"without an env: name one with \+env\.task=ID"):
        main(["record", "run=run"])


def test_missing_data_are_named(tmp_path):
    with pytest.raises(SystemExit, match="data=FOLDER names the folder of a data set"):
        main(["offline"])
    with pytest.raises(SystemExit, match=r"holds no manifest\.json"):
        main(["offline", "data=nothing"])
    assert not (tmp_path / "runs").exists()


def test_constant_entries_are_not_blown_up(tmp_path):
    store = write_episodes(tmp_path / "arm", recorded())
    mean, std = data_statistics(store)
    assert std[0, 1] == 1 and 1 < std[0, 0] < 10
    model = PWMWorldModel(2, 1, latent_dim=16, units=(16,))
    model.set_observation_statistics(mean, std, min_std=0.0)
    standard = model.standardize_observation(torch.from_numpy(store.observation[:].copy()))
    assert standard[:, 0].std() == pytest.approx(1.0, abs=0.02) and standard[:, 1].abs().max() == 0


class Counter(PWMWorldModel):
    """A model whose latent counts the steps and whose reward is the action."""

    def next_latent(self, latent, action, task=None):
        return latent + 1

    def encode_observation(self, observation, task=None):
        return observation

    def decode_reward(self, logits, space="raw"):
        return logits

    def reward_logits(self, latent, action, task=None):
        return action


def test_open_loop_errors_are_those_of_the_steps_that_count():
    model = Counter(2, 1, latent_dim=2, units=(4,), simnorm_dim=0)
    start = torch.arange(6.0)[:, None, None] + torch.arange(4.0)[:, None]
    observation = start.expand(6, 4, 2)
    action = torch.arange(24.0).reshape(6, 4, 1)
    reward = action - 1  # one too much is predicted
    reward[0, 2:] = 1e9  # after an end, and where a step was added
    done = torch.zeros(6, 4, 1, dtype=torch.bool)
    done[0, 1] = True
    following = {"observation": observation + 1, "reward": reward, "done": done}
    data = TensorDict({"observation": observation, "action": action, "next": following}, [6, 4])
    errors = open_loop_errors(model, data, steps=(1, 3, 4, 9))
    assert errors["error"] == {1: 1.0, 3: 1.0, 4: 1.0} and errors["absolute_error"] == errors["error"]
    assert all(share == 1 for share in errors["state_explained"].values())
    assert errors["explained"][3] == pytest.approx(1 - 1 / float(reward[1:, 2].var(correction=0)))


def test_value_gaps_close_episodes_that_were_cut_off_and_not_those_that_ended():
    model = Counter(2, 1, latent_dim=2, units=(4,), simnorm_dim=0)
    critics = make_value_ensemble(2, units=(4,), num_nets=2)
    observation = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    value = critics(TensorDict({"latent": torch.from_numpy(observation)}, [4]))["state_value"].amin(0).detach().numpy()
    episode = {"observation": observation, "reward": [1.0, 2.0, 4.0]}
    for terminated, last in ((True, 0.0), (False, float(value[3, 0]))):
        gaps = value_gaps(model, critics, [{**episode, "terminated": terminated}], gamma=0.5)
        returns = np.array([1 + 0.5 * (2 + 0.5 * (4 + 0.5 * last)), 2 + 0.5 * (4 + 0.5 * last), 4 + 0.5 * last])
        np.testing.assert_allclose(gaps, value[:3, 0] - returns, rtol=1e-5)


def test_the_distance_from_the_data_is_in_units_of_real_states():
    data = torch.arange(10.0)[:, None]
    assert distance_from_data(data + 0.3, data, data + 0.1) == pytest.approx(3.0, rel=1e-4)
