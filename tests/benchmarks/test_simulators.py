"""The report on SHAC and PWM in simulators, on tiny real runs: own steps, and recorded ones."""

from __future__ import annotations

import csv

import pytest

pytest.importorskip("hydra")
pytest.importorskip("matplotlib")

import torch
from torchrl.envs import TransformedEnv

from benchmarks.learning.studies.gradients import compare, table
from benchmarks.learning.studies.progress import ForwardProgress
from benchmarks.learning.studies.simulators import main
from torchrl_pwm import PWMWorldModel, load_policy
from torchrl_pwm.envs.random_policy import RandomPolicy
from torchrl_pwm.envs.simulators import AnalyticEnv

COMMON = ["env.num_envs=4", "+env.episode_length=10", "actor.units=[8]", "value.units=[8]", "eval_interval=1"]
COMMON += ["stepper.critic_iterations=1", "eval_episodes=2", "evaluation.episodes=2"]
SHAC = ["iterations=2", "loss.horizon=4", *COMMON]
PWM = ["iterations=2", "model.latent_dim=16", "model.encoder_units=[8]", "model.units=[8]", "loss.horizon=3", *COMMON]
PWM += ["collector.random_steps=0", "warmup_updates=0", "replay.slice_len=3", "replay.batch_size=4"]
PWM += ["replay.capacity=500"]
PWM += ["online.start_states=6", "pretraining.keep=true", "pretraining.updates=2"]
PWM += ["pretraining.warm_start={behavior_updates: 2, value_updates: 1}"]
SHAC_AND_PWM = [*(f"shac:{setting}" for setting in SHAC), *(f"pwm:{setting}" for setting in PWM)]


def test_the_report_shows_runs_of_own_and_of_recorded_steps(tmp_path):
    AnalyticEnv("cartpole_swingup", 4).rollout(20, break_when_any_done=False).memmap(tmp_path / "steps")
    here = ["--tasks", "cartpole_swingup", "--folder", str(tmp_path / "runs")]
    given = [*SHAC_AND_PWM, f"pwm:pretraining.data={tmp_path / 'steps'}"]
    main(["run", *here, "--seeds", "0", "--", *given])
    main(["report", *here, "--results", str(tmp_path)])
    rows = list(csv.DictReader((tmp_path / "simulators.csv").open()))
    assert [(row["method"], row["recorded"], row["steps"]) for row in rows] == [
        ("shac", "0", "32"),
        ("pwm", "80", "96"),
    ]
    page = (tmp_path / "simulators.md").read_text()
    assert "| 0.00 M, after 0.00 M recorded ones |" in page and "controller" in page
    assert all(row["select"] == "best" and row["return"] == row["best"] and row["last"] for row in rows)
    for row in rows:
        assert f" {float(row['best']):.0f} ({float(row['best']):.0f}) | {float(row['last']):.0f} (" in page
    assert (tmp_path / "simulators.png").stat().st_size > 10_000
    runs = {method: tmp_path / "runs" / method / "cartpole_swingup" / "seed-0" for method in ("shac", "pwm")}
    lines = table(load_policy(runs["pwm"], "cpu").world_model, [runs["shac"]], 4).splitlines()
    assert lines[0].startswith("| states of | windows | 1 ahead | 2 ahead | 4 ahead | R2")
    assert all(-1 <= float(cell) <= 1 for cell in lines[2].split("|")[3:6])


def test_a_report_without_runs_says_how_to_make_them(tmp_path):
    with pytest.raises(SystemExit, match=r"no finished run in .*simulators run"):
        main(["report", "--folder", str(tmp_path), "--results", str(tmp_path)])


def test_forward_progress_is_what_the_torso_moves():
    pytest.importorskip("newton")
    from torchrl_pwm.envs.simulators import NewtonEnv

    env = TransformedEnv(NewtonEnv("ant", 4, early_termination=False, episode_length=40, seed=0), ForwardProgress())
    begin = env.reset()
    before = env.base_env.state_dict()["simulator"]["state"][:, 0].clone()
    metres = env.rollout(30, RandomPolicy(8, 0), tensordict=begin, auto_reset=False)["next", "reward"].sum((1, 2))
    moved = env.base_env.state_dict()["simulator"]["state"][:, 0] - before
    assert moved.abs().max() > 0.05
    torch.testing.assert_close(metres, moved, atol=0.02, rtol=0.1)


def test_a_model_agrees_with_itself():
    torch.manual_seed(0)
    model = PWMWorldModel(5, 2, latent_dim=16, encoder_units=(8,), units=(8, 8), num_bins=None)
    for param in model.parameters():  # a new reward head is zero
        torch.nn.init.normal_(param, std=0.3)
    observation, actions = torch.randn(32, 5), torch.rand(4, 32, 2, requires_grad=True)
    latent, rewards = model.encode_observation(observation), []
    for action in actions:
        rewards.append(model.reward_logits(latent, action).squeeze(-1))
        latent = model.next_latent(latent, action)
    reward = torch.stack(rewards)
    (gradient,) = torch.autograd.grad(reward.sum(), actions)
    truth = {"observation": observation, "action": actions.detach(), "reward": reward.detach(), "gradient": gradient}
    cosine, explained = compare(model, truth)
    torch.testing.assert_close(cosine, torch.ones(4))
    assert explained == pytest.approx(1.0)
    truth["gradient"] = -gradient
    torch.testing.assert_close(compare(model, truth)[0], -torch.ones(4))
