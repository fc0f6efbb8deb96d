"""Episodes that end: the termination head, and what imagined rewards and values make of it."""

from __future__ import annotations

import warnings

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.envs import check_env_specs
from torchrl.objectives import ValueEstimators

from tests.objectives.test_loss_checklist import ACTION, BATCH, HORIZON, LATENT, OBSERVATION, TASKS, sequences, starts
from torchrl_pwm import (
    FirstOrderLoss,
    ImaginedEnv,
    PWMLoss,
    PWMWorldModel,
    PWMWorldModelLoss,
    TDMPC2Model,
    make_pwm_actor,
    make_value_ensemble,
)
from torchrl_pwm.evaluation.trust import open_loop_rewards
from torchrl_pwm.trainers import PWMOptimizationStepper, WorldModelOptimizationStepper

GAMMA, LAMBDA = 0.9, 0.8


def make_model(num_tasks: int = 0, **options) -> PWMWorldModel:
    tasks = {"num_tasks": num_tasks, "task_dim": 4} if num_tasks else {}
    model = PWMWorldModel(OBSERVATION, ACTION, latent_dim=LATENT, units=(12,), termination=True, **tasks, **options)
    nn.init.normal_(model.termination_network[-1].weight, std=1.0)
    return model


def make_loss(model: nn.Module | None = None, estimator: str = "TDLambda", **options) -> PWMLoss:
    model = make_model() if model is None else model
    networks = make_pwm_actor(LATENT, ACTION), make_value_ensemble(LATENT)
    loss = PWMLoss(*networks, model, horizon=HORIZON, normalize_returns=False, **options)
    return loss.make_value_estimator(getattr(ValueEstimators, estimator), gamma=GAMMA)


def test_an_imagined_rollout_says_how_probably_the_episode_goes_on() -> None:
    model = make_model(TASKS)
    td = starts(TASKS)
    rollout = make_loss(model).imagine(td)
    ends = model.termination_logits(rollout["next", "latent"], td["task"][:, None]).sigmoid()
    torch.testing.assert_close(rollout["next", "continuation"], 1 - ends)
    plain = PWMWorldModel(OBSERVATION, ACTION, latent_dim=LATENT, units=(12,))
    assert ("next", "continuation") not in make_loss(plain).imagine(starts()).keys(True)


def test_rewards_and_the_last_value_count_with_the_probability_of_being_alive() -> None:
    loss = make_loss()
    rollout = loss.imagine(starts())
    going_on = rollout["next", "continuation"].squeeze(-1)
    alive, expected = torch.ones(BATCH), torch.zeros(BATCH)
    for step in range(HORIZON):
        expected = expected + GAMMA**step * alive * rollout["next", "reward"][:, step, 0]
        alive = alive * going_on[:, step]
    expected = expected + GAMMA**HORIZON * alive * loss.next_value(rollout)[:, -1, 0]
    torch.testing.assert_close(loss.actor_loss(rollout), -expected.mean() / HORIZON)


@pytest.mark.parametrize("estimator", ["TDLambda", "TD0"])
@pytest.mark.parametrize("episodes", ["one", "two"])
def test_a_certain_end_is_a_terminated_step(estimator: str, episodes: str) -> None:
    loss = make_loss(estimator=estimator)
    rollout = loss.imagine(starts()).exclude(("next", "continuation"))
    ends = torch.zeros(BATCH, HORIZON, 1, dtype=torch.bool)
    ends[::2, 1] = True
    hard, soft = rollout.copy(), rollout.copy()
    if episodes == "one":
        # What follows an end counts for nothing in the soft form; here it is left out of the hard one, too.
        hard["next", "reward"] = torch.where(ends.cumsum(1) - ends.long() > 0, 0.0, rollout["next", "reward"])
        last = torch.where(ends.any(1), torch.tensor(HORIZON - 1), -1)
        hard["next", "terminated"] = ends | (torch.arange(HORIZON)[None, :, None] == last[:, None])
    else:
        soft["next", "done"] = hard["next", "terminated"] = ends
    soft["next", "continuation"] = (~ends).float()
    torch.testing.assert_close(loss.actor_loss(soft), loss.actor_loss(hard))
    before = slice(None) if episodes == "two" else slice(0, 2)
    torch.testing.assert_close(loss.value_target(soft)[:, before], loss.value_target(hard)[:, before])


def test_targets_end_softly() -> None:
    loss = make_loss()
    rollout = loss.imagine(starts()).detach()
    value, going_on = loss.next_value(rollout), rollout["next", "continuation"]
    lmbda, target = 0.95, value[:, -1]
    expected = []
    for step in reversed(range(HORIZON)):
        mixed = (1 - lmbda) * value[:, step] + lmbda * target
        target = rollout["next", "reward"][:, step] + GAMMA * going_on[:, step] * mixed
        expected.append(target)
    torch.testing.assert_close(loss.value_target(rollout), torch.stack(expected[::-1], 1))


class Cliff(nn.Module):
    """A walk on a line that pays 1 a step, whatever is done, and ends beyond 1."""

    latent_dim, action_dim, num_tasks, termination = 1, 1, 0, True

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))

    def encode_observation(self, observation, task=None):
        return observation + self.anchor

    def next_latent(self, latent, action, task=None):
        return latent + 0.3 * action

    def reward_logits(self, latent, action, task=None):
        return torch.ones_like(latent)

    def decode_reward(self, logits, space="raw"):
        return logits

    def termination_logits(self, latent, task=None):
        return 10 * (latent - 1)


def test_where_the_reward_does_not_show_the_fall_the_policy_still_keeps_away_from_it() -> None:
    torch.manual_seed(0)
    actor, value = make_pwm_actor(1, 1, units=(16,), init_log_std=-1.0), make_value_ensemble(1, units=(16,))
    loss = PWMLoss(actor, value, Cliff(), horizon=4)
    stepper = PWMOptimizationStepper(loss, iterations=300, actor_lr=3e-3, critic_lr=3e-3, critic_iterations=2)
    for _ in range(120):
        stepper.update(TensorDict({"observation": torch.rand(64, 1)}, [64]))
    edge = TensorDict({"latent": torch.tensor([[0.9]])}, [1])
    assert actor.get_dist_params(edge)["loc"].tanh() < -0.5
    values = loss.next_value(TensorDict({"next": {"latent": torch.tensor([[[0.0]], [[1.5]]])}}, [2, 1]))
    assert values[0] > values[1]


def test_a_head_learns_which_states_end() -> None:
    torch.manual_seed(0)
    model = make_model()
    stepper = WorldModelOptimizationStepper(PWMWorldModelLoss(model), iterations=200, lr=3e-3)
    for _ in range(150):
        td = sequences()
        td["next", "terminated"] = td["action"][..., :1] > 0
        metrics = stepper.update(td)
    latent = model.encode_observation(td["observation"])
    guess = model.termination_logits(model.next_latent(latent, td["action"])) > 0
    assert (guess == td["next", "terminated"]).float().mean() > 0.8
    assert metrics["loss_termination"] < 0.6


def test_the_head_learns_under_noise_in_training_alone() -> None:
    model = make_model()
    td = sequences().set(("next", "terminated"), torch.rand(BATCH, HORIZON, 1) < 0.3)
    noisy, plain = PWMWorldModelLoss(model), PWMWorldModelLoss(model, termination_noise=0.0)
    expected = plain(td)["loss_termination"]
    torch.testing.assert_close(noisy.eval()(td)["loss_termination"], expected)
    assert noisy.train()(td)["loss_termination"] != expected
    for name in ("loss_consistency", "loss_reward"):
        torch.testing.assert_close(noisy(td)[name], plain(td)[name])


def test_a_head_needs_the_flag_and_a_loss_built_after_it() -> None:
    loss = PWMWorldModelLoss(make_model())
    with pytest.raises(ValueError, match=r"'next', 'terminated'"):
        loss(sequences())
    model = PWMWorldModel(OBSERVATION, ACTION, latent_dim=LATENT, units=(12,))
    loss = PWMWorldModelLoss(model)
    model.add_termination_head()
    with pytest.raises(ValueError, match="build the loss after add_termination_head"):
        loss(sequences().set(("next", "terminated"), torch.zeros(BATCH, HORIZON, 1, dtype=torch.bool)))


def test_ends_that_the_model_cannot_know_of_are_told_once() -> None:
    loss = PWMWorldModelLoss(PWMWorldModel(OBSERVATION, ACTION, latent_dim=LATENT, units=(12,)))
    td = sequences().set(("next", "terminated"), torch.zeros(BATCH, HORIZON, 1, dtype=torch.bool))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(td)
    td["next", "terminated"][0, -1] = True
    with pytest.warns(UserWarning, match="termination=True"):
        loss(td)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(td)


def test_without_a_head_nothing_changes() -> None:
    torch.manual_seed(0)
    plain = PWMWorldModel(OBSERVATION, ACTION, latent_dim=LATENT, units=(12,))
    weights = {key: value.clone() for key, value in plain.state_dict().items()}
    losses = PWMWorldModelLoss(plain)
    assert not any("termination" in key for key in (*weights, *losses.state_dict(), *losses.out_keys))
    plain.add_termination_head()
    for key, value in weights.items():
        assert torch.equal(plain.state_dict()[key], value)
    assert plain.termination and plain.out_keys[-1] == ("next", "termination_logits")


def test_an_imagined_env_ends_where_an_end_is_more_probable_than_not() -> None:
    model = make_model()
    draw = lambda n: TensorDict({"observation": torch.randn(n, OBSERVATION)}, [n])  # noqa: E731
    env = ImaginedEnv(model, batch_size=64, starts=draw)
    check_env_specs(env)
    rollout = env.rollout(3, break_when_any_done=False)
    ends = model.termination_logits(rollout["next", "latent"]) > 0
    assert ends.any() and not ends.all()
    assert torch.equal(rollout["next", "terminated"], ends)
    assert torch.equal(rollout["next", "done"], ends)


def test_an_open_loop_counts_rewards_while_the_episode_goes_on() -> None:
    model, td = make_model(), sequences()
    rewards = open_loop_rewards(model, td)
    latent, alive = model.encode_observation(td["observation"][:, 0]), torch.ones(BATCH, 1)
    for step in range(HORIZON):
        reward = model.decode_reward(model.reward_logits(latent, td["action"][:, step]))
        torch.testing.assert_close(rewards[:, step : step + 1], alive * reward)
        latent = model.next_latent(latent, td["action"][:, step])
        alive = alive * (1 - model.termination_logits(latent).sigmoid())


def test_normalised_rewards_are_not_shifted_where_episodes_end() -> None:
    model = make_model(normalize_rewards=True)
    model.reward_moments.update(torch.full((1000,), 3.0))
    rewards = make_loss(model).imagine(starts())["next", "reward"]
    torch.testing.assert_close(rewards, torch.ones_like(rewards), atol=0.01, rtol=0.0)


def test_td_mpc2_shares_the_world_models_head() -> None:
    world_model = make_model()
    model = TDMPC2Model(world_model)
    assert model.termination_head is world_model.termination_network
    state = {key.replace("world_model._termination", "termination_head"): v for key, v in model.state_dict().items()}
    again = TDMPC2Model(make_model())
    again.load_state_dict(state)
    latent = torch.rand(3, LATENT)
    assert torch.equal(again.termination_logits(latent), model.termination_logits(latent))


def test_a_published_episodic_checkpoint_gives_a_world_model_with_a_head() -> None:
    checkpoint = TDMPC2Model(make_model(num_bins=11)).to_checkpoint("new")
    model, whole = PWMWorldModel.from_tdmpc2(checkpoint), TDMPC2Model.from_checkpoint(checkpoint)
    latent = torch.rand(3, LATENT)
    assert model.termination
    assert torch.equal(model.termination_logits(latent), whole.termination_logits(latent))


def test_a_rollout_may_say_itself_how_probably_it_goes_on() -> None:
    loss = FirstOrderLoss(make_pwm_actor(LATENT, ACTION), make_value_ensemble(LATENT))
    going_on = torch.full((BATCH, HORIZON, 1), 0.9, requires_grad=True)
    rollout = TensorDict({"latent": torch.randn(BATCH, HORIZON, LATENT)}, [BATCH, HORIZON])
    rollout["next"] = rollout.clone().set("reward", torch.ones(BATCH, HORIZON, 1)).set("continuation", going_on)
    loss(rollout)["loss_actor"].backward()
    assert going_on.grad[:, 0].lt(0).all()
