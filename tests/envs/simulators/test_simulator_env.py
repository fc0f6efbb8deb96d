"""The TorchRL side of a simulator: keys, resets, gradients, graph truncation."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import (
    Compose,
    EnvCreator,
    ParallelEnv,
    RewardSum,
    SerialEnv,
    StepCounter,
    TransformedEnv,
    check_env_specs,
)

from tests.envs.simulators.hover import Hover, SelfResetting
from tests.envs.simulators.playing import follow
from torchrl_pwm.envs.simulators import AnalyticEnv, SimulatorEnv

KINDS = {"hover": Hover, "self-resetting": SelfResetting}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


def linear_policy(inputs=2, outputs=2):
    return TensorDictModule(nn.Linear(inputs, outputs), ["observation"], ["action"])


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_specs_hold(kind, num_envs, requires_grad):
    env = SimulatorEnv(kind(num_envs, dtype=torch.float64), requires_grad=requires_grad)
    check_env_specs(env)
    assert env.batch_size == (num_envs,) and env.batch_locked and env.num_envs == num_envs
    rollout = env.rollout(8, break_when_any_done=False)
    for key in ("reward", "done", "terminated", "truncated"):
        assert rollout["next", key].shape == (num_envs, 8, 1)
    assert rollout["observation"].dtype == rollout["next", "reward"].dtype == torch.float64


def test_gradient_flows_from_rewards_to_policy_through_resets(kind):
    env = SimulatorEnv(kind(4, seed=1), requires_grad=True)
    policy = linear_policy()
    rollout = env.rollout(16, policy, break_when_any_done=False)
    assert rollout["next", "done"].sum() > 4
    rollout["next", "reward"].sum().backward()
    assert policy.module.weight.grad.norm() > 0


def test_without_requires_grad_nothing_carries_a_graph():
    env = SimulatorEnv(Hover(4))
    with torch.no_grad():
        rollout = env.rollout(8, linear_policy(), break_when_any_done=False)
    assert not any(value.requires_grad for value in rollout.values(True, True))
    assert env.simulator.position.grad_fn is None


def test_an_env_with_gradients_runs_without_them_under_no_grad():
    env = SimulatorEnv(Hover(4), requires_grad=True)
    with torch.no_grad():
        assert not env.rollout(3, linear_policy())["next", "reward"].requires_grad


def test_terminal_observation_is_kept_and_the_next_root_is_a_start(kind):
    env = SimulatorEnv(kind(3))
    td = env.reset()
    env.simulator.position = torch.tensor([[1.9, 0.0], [0.0, 0.0], [0.5, 0.0]])
    transition, following = env.step_and_maybe_reset(td.set("action", torch.full((3, 2), 2.0)))
    push = 0.5 * torch.tensor(2.0).tanh()
    assert transition["next", "done"].flatten().tolist() == [True, False, False]
    torch.testing.assert_close(transition["next", "observation"][0], torch.stack([1.9 + push, push]))
    assert following["observation"][0].abs().max() < 1
    assert torch.equal(following["observation"][1:], transition["next", "observation"][1:])
    assert not following["done"].any()
    assert torch.equal(env.simulator.position, following["observation"])


def test_termination_and_truncation_are_told_apart(kind):
    env = SimulatorEnv(kind(2))
    td = env.reset()
    env.simulator.position = torch.tensor([[0.0, 0.0], [0.1, 0.0]])
    actions = torch.zeros(6, 2, 2)
    actions[3:, 1] = 20.0  # env 1 leaves the circle only at the last step
    transitions, _ = follow(env, actions, td)
    flags = {key: transitions["next", key][..., 0] for key in ("terminated", "truncated")}
    assert not flags["terminated"][:5].any() and not flags["truncated"][:5].any()
    assert flags["truncated"][5].tolist() == [True, True]
    assert flags["terminated"][5].tolist() == [False, True]


def test_a_simulator_that_never_ends_is_never_truncated():
    class Endless(Hover):
        episode_length = None

    rollout = SimulatorEnv(Endless(2)).rollout(20, lambda td: td.set("action", torch.zeros(2, 2)))
    assert rollout.shape == (2, 20) and not rollout["next", "done"].any()


def test_partial_reset_leaves_gradients_of_other_envs_bit_identical(kind):
    def gradients(first_row):
        env = SimulatorEnv(kind(3, seed=3), requires_grad=True)
        td = env.reset()
        env.simulator.position = torch.tensor([[first_row, 0.0], [0.1, 0.2], [0.3, -0.1]])
        generator = torch.Generator().manual_seed(0)
        actions = (0.3 * torch.rand(5, 3, 2, generator=generator)).requires_grad_()
        transitions, _ = follow(env, actions, td)
        rewards = transitions["next", "reward"]
        rewards.sum().backward()
        return actions.grad, transitions["next", "done"][..., 0]

    undisturbed, none = gradients(0.0)
    disturbed, done = gradients(1.99)
    assert not none.any() and done[:, 0].any() and not done[:, 1:].any()
    assert torch.equal(undisturbed[:, 1:], disturbed[:, 1:])
    assert not torch.equal(undisturbed[:, 0], disturbed[:, 0])


def test_no_gradient_crosses_the_reset_of_a_row(kind):
    env = SimulatorEnv(kind(2, seed=3), requires_grad=True)
    td = env.reset()
    env.simulator.position = torch.tensor([[1.99, 0.0], [0.1, 0.2]])
    actions = torch.full((4, 2, 2), 0.3, requires_grad=True)
    transitions, _ = follow(env, actions, td)
    assert transitions[0]["next", "done"].flatten().tolist() == [True, False]
    transitions[-1]["next", "reward"].sum().backward()
    assert torch.equal(actions.grad[0, 0], torch.zeros(2))
    assert actions.grad[1:, 0].all() and actions.grad[:, 1].all()


def test_full_reset_cuts_every_graph(kind):
    env = SimulatorEnv(kind(2), requires_grad=True)
    actions = torch.full((3, 2, 2), 0.1, requires_grad=True)
    follow(env, actions)
    td = env.reset()
    assert not td["observation"].requires_grad
    assert env.simulator.position.grad_fn is None


def test_self_resetting_envs_are_not_reset_twice():
    simulator = SelfResetting(3)
    env = SimulatorEnv(simulator)
    env.rollout(20, lambda td: td.set("action", torch.zeros(3, 2)), break_when_any_done=False)
    assert simulator.asked == [[True] * 3]
    # The env still resets the envs that it is asked to.
    td = env.reset()
    td["_reset"] = torch.tensor([[True], [False], [True]])
    env.reset(td)
    assert simulator.asked[-1] == [True, False, True]


@pytest.mark.parametrize("wrap", [False, True], ids=["bare", "transformed"])
def test_truncate_graph_frees_the_graph_and_keeps_the_values(kind, wrap):
    env = SimulatorEnv(kind(4), requires_grad=True)
    if wrap:
        env = TransformedEnv(env, Compose(RewardSum(), StepCounter()))
    policy = linear_policy()
    td = env.reset()
    for _ in range(3):
        before = td.detach().clone()
        td = env.truncate_graph(td)
        assert not any(value.requires_grad for value in td.values(True, True))
        assert (td == before).all()
        rewards = []
        for _ in range(5):
            transition, td = env.step_and_maybe_reset(policy(td))
            rewards.append(transition["next", "reward"])
        if wrap:
            assert td["episode_reward"].requires_grad
        torch.stack(rewards).sum().backward()  # fails with a freed graph, had anything kept it


def test_truncated_windows_of_rollout_follow_each_other(kind):
    """Two windows with a truncation between are, in values, the rollout in one piece."""
    policy = linear_policy()
    whole = SimulatorEnv(kind(3, seed=5), requires_grad=True).rollout(10, policy, break_when_any_done=False)
    env = SimulatorEnv(kind(3, seed=5), requires_grad=True)
    first = env.rollout(4, policy, break_when_any_done=False)
    td = env.truncate_graph(env.maybe_reset(env.step_mdp(first[:, -1])))
    second = env.rollout(6, policy, tensordict=td, auto_reset=False, break_when_any_done=False)
    assert (torch.cat([first, second], 1).detach() == whole.detach()).all()
    second["next", "reward"].sum().backward()


def test_truncate_graph_without_td_gives_the_present_root(kind):
    env = SimulatorEnv(kind(3), requires_grad=True)
    _, td = follow(env, torch.full((3, 3, 2), 0.2, requires_grad=True))
    root = env.truncate_graph()
    assert set(root.keys()) == {"observation", "done", "terminated", "truncated"}
    assert torch.equal(root["observation"], td["observation"]) and not root["observation"].requires_grad


def test_truncate_graph_refuses_a_finished_step_and_done_envs():
    env = SimulatorEnv(Hover(2), requires_grad=True)
    with pytest.raises(RuntimeError, match="before its first reset"):
        env.truncate_graph()
    rollout = env.rollout(6, lambda td: td.set("action", torch.zeros(2, 2)), break_when_any_done=False)
    with pytest.raises(ValueError, match=r"finished step.*step_mdp"):
        env.truncate_graph(rollout[:, -1])
    with pytest.raises(ValueError, match=r"envs that are done.*maybe_reset"):
        env.truncate_graph(env.step_mdp(rollout[:, -1]))


def test_one_seed_gives_one_course_bit_for_bit(kind):
    actions = torch.rand(15, 3, 2, generator=torch.Generator().manual_seed(0))

    def course(env):
        return follow(env, actions)[0]

    one, same, other = (course(SimulatorEnv(kind(3, seed=seed))) for seed in (7, 7, 8))
    assert (one == same).all() and not (one == other).all()
    reseeded = SimulatorEnv(kind(3, seed=1))
    reseeded.set_seed(7)
    assert (course(reseeded) == one).all()


def test_building_and_running_leaves_the_global_generator_alone(kind):
    state = torch.get_rng_state()
    env = SimulatorEnv(kind(3))
    follow(env, torch.zeros(8, 3, 2))
    env.set_seed(3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("steps", [0, 2, 5])
def test_a_restored_env_goes_on_bit_for_bit(kind, steps):
    actions = torch.rand(12, 3, 2, generator=torch.Generator().manual_seed(0))
    env = SimulatorEnv(kind(3, seed=2))
    _, td = follow(env, actions[:steps])
    saved, root = env.state_dict(), td.clone()
    straight = follow(env, actions[steps:], td)[0]

    again = SimulatorEnv(kind(3, seed=99))
    again.load_state_dict(saved)
    assert torch.equal(again.truncate_graph()["observation"], root["observation"])
    assert (follow(again, actions[steps:], again.truncate_graph())[0] == straight).all()


def test_a_state_of_another_size_or_kind_is_refused():
    state = SimulatorEnv(Hover(3)).state_dict()
    with pytest.raises(ValueError, match="num_envs"):
        SimulatorEnv(Hover(2)).load_state_dict(state)
    with pytest.raises(KeyError, match="state entries"):
        SimulatorEnv(SelfResetting(3)).load_state_dict(state)
    with pytest.raises(KeyError, match=r"entries .*'steps'.* found \['weight'\]"):
        SimulatorEnv(Hover(3)).load_state_dict({"weight": torch.zeros(1)})


def test_env_creator_leaves_every_env_its_own_seed():
    """It loads parts of the state of a shadow env, which has been stepped, into each env that it makes."""
    creator = EnvCreator(lambda: SimulatorEnv(Hover(3, seed=5)))
    assert torch.equal(creator().reset()["observation"], SimulatorEnv(Hover(3, seed=5)).reset()["observation"])


def test_collector_gives_batches_without_a_graph():
    env = SimulatorEnv(Hover(4), requires_grad=True)
    collector = Collector(env, linear_policy(), frames_per_batch=32, total_frames=64)
    batches = list(collector)
    assert [batch.shape for batch in batches] == [(4, 8)] * 2
    assert not batches[0]["next", "reward"].requires_grad


def test_serial_env_over_simulators():
    env = SerialEnv(2, [partial(AnalyticEnv, "cartpole_swingup", 3, seed=seed, episode_length=4) for seed in (0, 1)])
    check_env_specs(env)
    rollout = env.rollout(10, break_when_any_done=False)
    assert rollout.shape == (2, 3, 10) and rollout["next", "truncated"].sum() == 12
    env.close()


def test_parallel_env_over_simulators_gives_the_same_numbers():
    makers = [partial(AnalyticEnv, "cartpole_swingup", 3, seed=seed, episode_length=4) for seed in (0, 1)]

    def policy(td):
        return td.set("action", td["observation"][..., :1].clamp(-1, 1))

    parallel = ParallelEnv(2, makers)
    try:
        rollout = parallel.rollout(6, policy, break_when_any_done=False)
        states = parallel.state_dict()
    finally:
        parallel.close()
    assert set(states) == {"worker0", "worker1"}
    for index, make in enumerate(makers):
        alone = make().rollout(6, policy, break_when_any_done=False)
        for key in ("observation", ("next", "reward"), ("next", "done")):
            assert torch.equal(rollout[index][key], alone[key])


def test_num_workers_gives_a_parallel_env_with_a_seed_for_each():
    def rollout(**options):
        env = AnalyticEnv("cartpole_swingup", 3, episode_length=4, num_workers=2, **options)
        try:
            assert isinstance(env, ParallelEnv) and env.batch_size == (2, 3)
            return env.rollout(3, lambda td: td.set("action", torch.zeros(2, 3, 1)))
        finally:
            env.close()

    one, same = rollout(seed=5), rollout(seed=5)
    assert one.shape == (2, 3, 3) and (one == same).all()
    assert len(one[:, :, 0]["observation"].flatten(0, 1).unique(dim=0)) == 6  # no start twice, over all workers
    alone = AnalyticEnv("cartpole_swingup", 3, seed=5)
    assert torch.equal(one[0, :, 0]["observation"], alone.reset()["observation"])


def test_envs_of_neighbouring_seeds_and_their_workers_share_no_start():
    starts = []
    for seed in range(4):
        env = SerialEnv(3, [partial(AnalyticEnv, "double_pendulum", 5)] * 3)  # seeded as num_workers=3 is
        env.set_seed(seed)
        starts.append(env.reset()["observation"].flatten(0, 1))
    assert len(torch.cat(starts).unique(dim=0)) == 4 * 3 * 5


def test_num_workers_refuses_what_it_cannot_give():
    with pytest.raises(ValueError, match=r"num_workers=2 needs requires_grad=False.*raise num_envs"):
        AnalyticEnv("cartpole_swingup", 3, requires_grad=True, num_workers=2)
    with pytest.raises(ValueError, match=r"built by the name of its task.*ParallelEnv\(2, make_env\)"):
        SimulatorEnv(Hover(2), num_workers=2)
    with pytest.raises(ValueError, match="num_workers must be an integer of at least 1, found 0"):
        AnalyticEnv("cartpole_swingup", 3, num_workers=0)
    with pytest.raises(ValueError, match="unknown task 'acrobot'"):
        AnalyticEnv("acrobot", 3, num_workers=2)


def test_stored_transitions_do_not_change_with_later_steps():
    env = SimulatorEnv(Hover(2))
    transition, td = env.step_and_maybe_reset(env.reset().set("action", torch.zeros(2, 2)))
    kept = transition.clone()
    follow(env, torch.ones(8, 2, 2), td)
    assert (transition == kept).all()
    env.reset().zero_()  # nor does writing into them change the simulator
    assert env.simulator.position.all()
