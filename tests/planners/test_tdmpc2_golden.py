"""The published planner, iteration by iteration, repeated by the planner that users call."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_pwm import TDMPC2Model, TDMPC2Planner
from torchrl_pwm.planners import PlannerNoise
from torchrl_pwm.planners.mppi import improve, policy_rollouts

FORWARD = {"rtol": 1e-4, "atol": 1e-5}
CASES = ("single_t0", "single_warm", "multi_t0", "multi_warm")


def load(golden, name):
    fixture = golden("tdmpc2_plan")
    setup, case = fixture[name.split("_")[0]], fixture[name]
    config = setup["config"]
    lengths = config["episode_lengths"] if config["multitask"] else config["episode_length"]
    model = TDMPC2Model.from_checkpoint(setup["model"], episode_lengths=lengths).eval()
    torch.testing.assert_close(model.discount, setup["discount"].reshape(-1))
    planner = TDMPC2Planner(
        model,
        num_policy_rollouts=config["num_pi_trajs"],
        **{key: config[key] for key in ("horizon", "iterations", "num_samples", "num_elites", "temperature")},
        **{key: float(config[key]) for key in ("min_std", "max_std")},
    )
    given = case["inputs"]
    assert given["eval_mode"]
    noise = PlannerNoise(
        policy=given["eps_pi_traj"].unsqueeze(2),
        samples=given["noise"].unsqueeze(3),
        terminal=given["eps_terminal"].unsqueeze(2),
        members=given["q_permutations"][:, :2],
        # the recorded runs took the best of the elites
        elite=torch.zeros(config["num_elites"], 1),
        action=torch.zeros(1, config["action_dim"]),
    )
    entries = {"observation": given["obs"], "is_init": torch.tensor([[given["t0"]]])}
    if "task" in given:
        entries["task"] = given["task"]
    return planner, TensorDict(entries, [1]), noise, case


@pytest.mark.parametrize("name", CASES)
def test_the_planner_takes_the_published_action_and_keeps_the_published_plan(name, golden):
    planner, td, noise, case = load(golden, name)
    # at the first step of an episode the previous plan must not matter
    planner.previous_mean = case["inputs"]["prev_mean"].unsqueeze(1)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        action = planner(td, noise)["action"]
    torch.testing.assert_close(action[0], case["outputs"]["action"], **FORWARD)
    torch.testing.assert_close(planner.previous_mean[:, 0], case["outputs"]["prev_mean"], **FORWARD)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_every_iteration_equals_the_published_one(name, golden):
    planner, td, noise, case = load(golden, name)
    model, task = planner.model, td.get("task", None)
    latent = model.world_model.encode_observation(td["observation"], task)
    context = model.world_model.task_context(task)
    candidates = policy_rollouts(model, latent, task, context, noise.policy)
    steps = case["outputs"]["iterations"]
    assert len(steps) == planner.settings.iterations
    for index, step in enumerate(steps[str(i)] if isinstance(steps, dict) else steps[i] for i in range(len(steps))):
        plan = improve(
            model, latent, task, context, step["mean_before"].unsqueeze(1), step["std_before"].unsqueeze(1), candidates,
            noise.samples[index], noise.terminal[index], noise.members[index], planner.settings,
        )  # fmt: skip
        result = {
            "actions": plan.actions[:, :, 0],
            "value": plan.value,
            "score": plan.score,
            "elite_value": plan.value.gather(0, plan.elites),
            "mean_after": plan.mean[:, 0],
            "std_after": plan.std[:, 0],
        }
        assert plan.elites[:, 0].tolist() == step["elite_idxs"].flatten().tolist()
        assert set(result) == set(step) - {"mean_before", "std_before", "elite_idxs"}
        for key, value in result.items():
            torch.testing.assert_close(value, step[key], **FORWARD, msg=lambda m, k=key: f"{k}: {m}")
