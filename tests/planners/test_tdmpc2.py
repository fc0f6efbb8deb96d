"""TD-MPC2's planner as a policy: batches of envs, warm starts, exploration and errors."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from tests.modules.tdmpc2 import ACTION, LATENT, OBSERVATION, make_model
from torchrl_pwm import PWMWorldModel, TDMPC2Model, TDMPC2Planner
from torchrl_pwm.planners import PlannerNoise
from torchrl_pwm.planners.mppi import draw_noise, plan_actions

SMALL = {"num_samples": 24, "num_policy_rollouts": 4, "num_elites": 6, "iterations": 3}
DIMS = (2, 1, 2, 2, 1, 1, 2, 2)
GREEDY = set_exploration_type(ExplorationType.DETERMINISTIC)


def make_planner(num_tasks: int = 0, *, model_options: dict | None = None, **options) -> TDMPC2Planner:
    model = make_model(num_tasks, action_dims=DIMS[:num_tasks] if num_tasks else None, **(model_options or {}))
    return TDMPC2Planner(model, **{**SMALL, **options})


def states(count: int, num_tasks: int = 0, *, init: bool = True) -> TensorDict:
    entries = {"observation": torch.randn(count, OBSERVATION), "is_init": torch.full((count, 1), init)}
    if num_tasks:
        entries["task"] = torch.arange(count) % num_tasks
    return TensorDict(entries, [count])


def noise_for(planner: TDMPC2Planner, count: int) -> PlannerNoise:
    return draw_noise(planner.settings, planner.model, torch.zeros(count, LATENT), None)


def noise_of(noise: PlannerNoise, env: int) -> PlannerNoise:
    """The noise of one env, as a batch of one."""
    axes = {"policy": 2, "samples": 3, "terminal": 2, "elite": 1, "action": 0}
    cut = {name: getattr(noise, name).narrow(axis, env, 1) for name, axis in axes.items()}
    return noise._replace(**cut)


# Rows.


@pytest.mark.parametrize("explore", [False, True], ids=["greedy", "exploring"])
@pytest.mark.parametrize("episodic", [False, True])
def test_eight_tasks_at_once_equal_eight_single_plans(explore: bool, episodic: bool) -> None:
    lengths = [100, 500, 1000, 100, 500, 1000, 500, 100]
    planner = make_planner(8, model_options={"episodic": episodic, "episode_lengths": lengths})
    single = [TDMPC2Planner(planner.model, **SMALL) for _ in range(8)]
    kind = ExplorationType.RANDOM if explore else ExplorationType.DETERMINISTIC
    with set_exploration_type(kind):
        for step in range(3):
            td, noise = states(8, 8, init=step == 0), noise_for(planner, 8)
            together = planner(td.clone(), noise)["action"]
            alone = [one(td[env : env + 1].clone(), noise_of(noise, env))["action"] for env, one in enumerate(single)]
            torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)
    assert together.abs().sum(-1).all() and not torch.allclose(together[0], together[1])


def test_an_env_does_not_depend_on_the_others() -> None:
    planner = make_planner(3)
    td, noise = states(4, 3), noise_for(planner, 4)
    with GREEDY:
        expected = planner(td.clone(), noise)["action"]
        other = td.clone()
        other["observation"][1:] = torch.randn(3, OBSERVATION)
        result = planner(other, noise)["action"]
    torch.testing.assert_close(result[0], expected[0])
    assert not torch.allclose(result[1:], expected[1:])


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
def test_any_batch_shape_is_planned(batch: tuple[int, ...]) -> None:
    planner = make_planner(3)
    td = states(max(1, torch.Size(batch).numel()), 3).reshape(batch) if batch else states(1, 3)[0]
    keys = set(td.keys())
    action = planner(td)["action"]
    assert action.shape == (*batch, ACTION) and set(td.keys()) == keys | {"action"}
    assert (action.abs() <= 1).all() and not action.requires_grad


def test_the_padding_of_a_task_stays_zero_while_exploring() -> None:
    planner = make_planner(3)
    for step in range(3):
        action = planner(states(6, 3, init=step == 0))["action"]
        assert (action[[1, 4], 1] == 0).all() and action[[0, 2, 3, 5]].all()
    assert (planner.previous_mean[:, [1, 4], 1] == 0).all()


# Warm starts.


def seen_means(planner: TDMPC2Planner, monkeypatch) -> list[Tensor]:
    means = []

    def keep(model, latent, task, previous, noise, settings):
        means.append(previous.clone())
        return plan_actions(model, latent, task, previous, noise, settings)

    monkeypatch.setattr(planner, "plan_actions", keep)
    return means


def test_a_plan_goes_on_until_its_env_begins_an_episode(monkeypatch) -> None:
    planner = make_planner()
    means = seen_means(planner, monkeypatch)
    planner(states(3))
    first = planner.previous_mean.clone()
    td = states(3, init=False)
    td["is_init"][1] = True
    planner(td)
    assert not means[0].any()
    assert torch.equal(means[1][:, [0, 2]], first[:, [0, 2]]) and not means[1][:, 1].any()


def test_the_search_starts_from_the_previous_plan_moved_on_by_one_step() -> None:
    planner = make_planner(num_policy_rollouts=0, iterations=1)
    noise = noise_for(planner, 2)
    noise = noise._replace(samples=torch.zeros_like(noise.samples))
    previous = torch.rand(3, 2, ACTION)
    planner.previous_mean = previous.clone()
    planner(states(2, init=False), noise)
    expected = torch.cat([previous[1:], torch.zeros(1, 2, ACTION)])
    torch.testing.assert_close(planner.previous_mean, expected)


def test_envs_without_a_plan_start_afresh(monkeypatch) -> None:
    planner = make_planner()
    means = seen_means(planner, monkeypatch)
    planner(states(2, init=False))
    planner(states(3, init=False))
    planner.reset()
    planner(states(3, init=False))
    assert [mean.shape[1] for mean in means] == [2, 3, 3] and not any(mean.any() for mean in means)


def test_a_saved_planner_goes_on_with_the_same_actions() -> None:
    planner = make_planner(generator=torch.Generator().manual_seed(3))
    planner(states(2))
    other = TDMPC2Planner(copy.deepcopy(planner.model), **SMALL, generator=torch.Generator())
    saved = copy.deepcopy(planner.state_dict())
    td = states(2, init=False)
    expected = planner(td.clone())["action"]
    other.load_state_dict(saved)
    assert torch.equal(other(td.clone())["action"], expected)
    with pytest.raises(ValueError, match="generator"):
        make_planner().load_state_dict(saved)


def test_a_planner_can_be_sent_to_another_process() -> None:
    planner = make_planner(generator=torch.Generator().manual_seed(3))
    planner(states(2))
    sent, td = pickle.loads(pickle.dumps(planner)), states(2, init=False)
    assert torch.equal(sent(td.clone())["action"], planner(td.clone())["action"])


# Draws.


def test_the_generator_decides_and_the_global_one_is_left_alone() -> None:
    model, td = make_model(), states(3)
    result = []
    for seed in (4, 4, 5):
        planner = TDMPC2Planner(model, **SMALL, generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(len(result))
        before = torch.get_rng_state()
        result.append(planner(td.clone())["action"])
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(result[0], result[1]) and not torch.equal(result[0], result[2])


def test_exploration_adds_noise_that_evaluation_leaves_out() -> None:
    planner = make_planner(min_std=0.3)
    td, noise = states(4), noise_for(planner, 4)
    with GREEDY:
        greedy = planner(td.clone(), noise)["action"]
    with set_exploration_type(ExplorationType.RANDOM):
        explored = planner(td.clone(), noise)["action"]
        still = planner(td.clone(), noise._replace(action=torch.zeros(4, ACTION)))["action"]
    assert not torch.equal(explored, greedy) and torch.equal(still, greedy)
    # without an exploration type policies of this package explore
    assert torch.equal(planner(td.clone(), noise)["action"], explored)


def test_gumbel_noise_draws_elites_by_their_score() -> None:
    planner = make_planner()
    drawn = noise_for(planner, 4000)
    score = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.03, 0.01])
    chosen = (score.log()[:, None] + drawn.elite).argmax(0)
    share = torch.bincount(chosen, minlength=6) / 4000
    torch.testing.assert_close(share, score, rtol=0, atol=0.03)
    assert all(len(set(pair.tolist())) == 2 for pair in drawn.members)


def test_dropout_and_the_training_flag_do_not_matter() -> None:
    planner = make_planner(model_options={"dropout": 0.5})
    td, noise = states(4), noise_for(planner, 4)
    with GREEDY:
        training = planner.train()(td.clone(), noise)["action"]
        assert torch.equal(planner.eval()(td.clone(), noise)["action"], training)


# It plans.


def test_the_best_action_of_a_known_reward_is_found(monkeypatch) -> None:
    """The reward is largest at an action that only the search can know of: an untrained policy stays near zero."""
    best = torch.tensor([0.6, -0.3])
    world_model = PWMWorldModel(OBSERVATION, ACTION, latent_dim=LATENT, units=(8, 8))
    monkeypatch.setattr(world_model, "reward_logits", lambda z, a, task: -10 * (a - best).square().sum(-1, True))
    planner = TDMPC2Planner(TDMPC2Model(world_model), temperature=2.0)
    with GREEDY:
        action = planner(states(4))["action"]
        again = planner(states(4, init=False))["action"]
    assert (planner.previous_mean - best).abs().max() < 0.15
    # what is taken is one of the elites around it
    for result in (action, again):
        assert (result - best).abs().max() < 0.4


def test_rewards_after_a_probable_end_do_not_count() -> None:
    planner = make_planner(model_options={"episodic": True})
    head = planner.model.termination_head
    td, noise, values = states(2), noise_for(planner, 2), {}

    def keep(*args):
        out = plan_actions(*args)
        values[float(head[-1].bias)] = out[2].value
        return out

    planner.plan_actions = keep
    for bias in (-100.0, 100.0):
        torch.nn.init.zeros_(head[-1].weight)
        torch.nn.init.constant_(head[-1].bias, bias)
        planner.reset()
        planner(td.clone(), noise)
    world = planner.model.world_model
    # all ends after one step: the value is the first reward alone
    captured = {}
    planner.plan_actions = lambda *args: captured.setdefault("out", plan_actions(*args))
    planner.reset()
    planner(td.clone(), noise)
    plan = captured["out"][2]
    latent = world.encode_observation(td["observation"]).expand(plan.actions.shape[1], -1, -1)
    first = world.decode_reward(world.reward_logits(latent, plan.actions[0])).squeeze(-1)
    torch.testing.assert_close(plan.value, first)
    assert not torch.allclose(values[-100.0], values[100.0])


def test_the_policy_acts_without_a_plan() -> None:
    planner = make_planner(3, plan=False)
    td = states(4, 3).exclude("is_init")
    assert "is_init" not in planner.in_keys
    latent = planner.model.world_model.encode_observation(td["observation"], td["task"])
    with GREEDY:
        assert torch.equal(planner(td.clone())["action"], planner.model.act(latent, td["task"]).mean)
    noise = noise_for(planner, 4)
    expected = planner.model.act(latent, td["task"], noise.action).action
    assert torch.equal(planner(td.clone(), noise)["action"], expected)
    assert planner.previous_mean is None


def test_the_default_search_is_longer_for_large_actions() -> None:
    result = []
    for size in (19, 20):
        planner = TDMPC2Planner(TDMPC2Model(PWMWorldModel(5, size, latent_dim=16, units=(8, 8), num_bins=11)))
        result.append(planner.settings.iterations)
    assert result == [6, 8]


def test_the_search_compiles_whole() -> None:
    torch._dynamo.reset()
    planner = make_planner(3, iterations=2)
    td, noise = states(3, 3), noise_for(planner, 3)
    with GREEDY:
        expected = planner(td.clone(), noise)["action"]
        planner.reset()
        planner.plan_actions = torch.compile(plan_actions, fullgraph=True, backend="aot_eager")
        result = planner(td.clone(), noise)["action"]
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    torch._dynamo.reset()


# What is refused.


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"horizon": 0}, "horizon"),
        ({"iterations": 0}, "iterations"),
        ({"num_elites": 25}, "num_elites"),
        ({"num_policy_rollouts": 25}, "num_policy_rollouts"),
        ({"temperature": 0.0}, "temperature"),
        ({"min_std": 3.0}, "min_std"),
    ],
)
def test_bad_options_are_refused(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make_planner(**options)


@pytest.mark.parametrize(
    ("key", "advice"), [("observation", "set_keys"), ("task", "set_keys"), ("is_init", r"InitTracker\(\)")]
)
def test_a_missing_entry_is_named(key: str, advice: str) -> None:
    with pytest.raises(ValueError, match=f"TDMPC2Planner needs the entry '{key}', found .*{advice}"):
        make_planner(3)(states(2, 3).exclude(key))


@pytest.mark.parametrize("key", ["task", "is_init", "observation"])
def test_an_entry_of_another_shape_is_named(key: str) -> None:
    td = states(2, 3)
    td[key] = torch.zeros(2, 1, 1, dtype=td[key].dtype)
    with pytest.raises(ValueError, match=rf"needs '{key}' of shape .* found \(2, 1, 1\)"):
        make_planner(3)(td)


def test_a_plan_that_is_not_finite_is_named_and_not_kept() -> None:
    planner = make_planner(3)
    td = states(6, 3)
    planner(td.clone())
    before = planner.previous_mean.clone()
    td["observation"][4, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"envs \[4\] of task \[1\]: their observations are not finite"):
        planner(td)
    assert torch.equal(planner.previous_mean, before)
    with torch.no_grad():
        planner.model.q.params[0].fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="have diverged"):
        planner(states(6, 3))


def test_one_env_of_pictures_needs_no_batch() -> None:
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(72, LATENT))
    world_model = PWMWorldModel((2, 6, 6), ACTION, latent_dim=LATENT, units=(8,), num_bins=11, encoder=encoder)
    planner = TDMPC2Planner(TDMPC2Model(world_model), **SMALL)
    first = {"observation": torch.rand(2, 6, 6), "is_init": torch.ones(1, dtype=torch.bool)}
    assert planner(TensorDict(first, []))["action"].shape == (ACTION,)
