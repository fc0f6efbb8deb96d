"""The adapters to DFlex and rewarped, on stand-ins with their documented interfaces."""

from __future__ import annotations

import builtins
import re
import sys

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import check_env_specs

from tests.envs.simulators import stand_ins
from tests.envs.simulators.playing import follow
from torchrl_pwm.envs.simulators import (
    DFlexEnv,
    DFlexWrapper,
    NewtonEnv,
    RewarpedEnv,
    compatibility_shim,
    dflex,
    rewarped,
    shims,
)
from torchrl_pwm.envs.simulators.dflex import TASKS

HAS_DFLEX, HAS_REWARPED = dflex._has_dflex, rewarped._has_rewarped


@pytest.fixture(params=["dflex", "rewarped"])
def make(request, installed):
    kind = DFlexEnv if request.param == "dflex" else RewarpedEnv

    def build(num_envs=3, **options):
        return kind("ant", num_envs, **{"device": "cpu", "episode_length": 6, **options})

    build.kind = request.param
    return build


def policy(env):
    linear = nn.Linear(env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1])
    return TensorDictModule(nn.Sequential(linear, nn.Tanh()), ["observation"], ["action"])


def test_specs_hold(make):
    check_env_specs(make())
    check_env_specs(make(requires_grad=True))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_of_pwm_is_built_with_its_published_settings(installed, task):
    sizes = {"cartpole_swingup": (5, 1), "double_pendulum": (6, 1), "hopper": (11, 3), "ant": (37, 8)}
    sizes |= {"anymal": (49, 12), "humanoid": (76, 21), "snu_humanoid": (53, 152)}
    env = DFlexEnv(task, 2, device="cpu")
    assert DFlexEnv.available_envs == tuple(TASKS)
    assert (env.simulator.observation_size, env.simulator.action_size) == sizes[task]
    assert env.episode_length == (240 if task in ("cartpole_swingup", "double_pendulum") else 1000)
    assert env.simulator.env.settings["stochastic_init"] is True and env.simulator.env.no_grad is True
    assert env.rollout(3, break_when_any_done=False).shape == (2, 3)
    assert DFlexEnv(task, 2, device="cpu", episode_length=9).episode_length == 9


def test_settings_of_the_paper(installed):
    settings = DFlexEnv("snu_humanoid", 1, device="cpu").simulator.env.settings
    assert settings["MM_caching_frequency"] == 8 and settings["termination_height"] == 0.46
    assert DFlexEnv("hopper", 1, device="cpu").simulator.env.settings["action_penalty"] == -0.1


def test_gradients_flow_and_windows_can_be_cut(make):
    env = make(requires_grad=True)
    actor = policy(env)
    td = env.reset()
    for _ in range(3):
        td = env.truncate_graph(td)
        rewards = []
        for _ in range(5):
            transition, td = env.step_and_maybe_reset(actor(td))
            rewards.append(transition["next", "reward"])
        torch.stack(rewards).sum().backward()
    assert actor.module[0].weight.grad.norm() > 0


def test_the_reset_of_an_env_cuts_only_that_env_in_dflex_and_all_envs_in_rewarped(make):
    env = make(requires_grad=True, episode_length=100)
    env.reset()
    start = env.simulator.env.state.joint_q.clone()
    start[0, 0] = 3.4  # ends env 0 after the first step
    env.simulator.env.state.joint_q = start
    actions = torch.full((3, 3, 8), 0.01, requires_grad=True)
    transitions, _ = follow(env, actions, env.truncate_graph())
    assert transitions["next", "terminated"][:, 0, 0].tolist() == [True, False, False]
    transitions["next", "reward"][2].sum().backward()
    reached = actions.grad[0].abs().sum(-1) > 0
    assert env.simulator.reset_cuts_all == (make.kind == "rewarped")
    assert reached.tolist() == ([False] * 3 if env.simulator.reset_cuts_all else [False, True, True])
    assert actions.grad[1].abs().sum(-1).all()


def test_an_exploding_state_names_env_and_step(make):
    env = make()
    _, td = follow(env, torch.zeros(2, 3, 8))
    env.simulator.env.state.joint_q[1, 5] = torch.nan
    with pytest.raises(FloatingPointError, match=r"envs \[1\] became non-finite at step \[3\]"):
        env.step(td.set("action", torch.zeros(3, 8)))


def test_gradients_asked_of_an_env_without_them_say_what_to_do(make):
    env = make()
    with pytest.raises(RuntimeError, match=r"requires_grad=False.*build it with requires_grad=True"):
        env.rollout(2, policy(env))


def test_conventions_of_torchrls_wrappers(make):
    env = make()
    library = sys.modules[make.kind]
    assert env.libname == make.kind and env.lib is library and env.git_url.startswith("https://github.com/")


def test_terminal_observations_are_kept_and_envs_are_reset_once(make):
    env = make(4)
    env.reset()
    inner = env.simulator.env
    before = len(inner.resets)
    transitions, td = follow(env, torch.zeros(13, 4, 8), env.truncate_graph())
    done = transitions["next", "truncated"][..., 0]
    assert done[5].all() and done[11].all() and done.sum() == 8
    assert not transitions["next", "terminated"].any()
    assert len(inner.resets) - before == 2
    starts = transitions["observation"]
    torch.testing.assert_close(transitions["next", "observation"][:5], starts[1:6])
    assert not torch.isclose(transitions["next", "observation"][5], starts[6]).all()
    assert torch.equal(td["observation"], inner.obs_buf)


def test_a_terminated_env_starts_anew_alone(make):
    env = make(3, episode_length=100)
    td = env.reset()
    state = env.simulator.env.state
    state.joint_q = torch.tensor([3.4, 0.0, 0.0])[:, None].expand_as(state.joint_q).clone()
    transition, td = env.step_and_maybe_reset(td.set("action", torch.zeros(3, 8)))
    assert transition["next", "terminated"].flatten().tolist() == [True, False, False]
    torch.testing.assert_close(transition["next", "observation"][0, :29], torch.full((29,), 0.9 * 3.4))
    assert td["observation"][0].abs().max() <= 0.5
    assert torch.equal(td["observation"][1:], transition["next", "observation"][1:])


def test_rewards_are_those_of_the_state_that_is_left(installed):
    env = DFlexEnv("ant", 3, device="cpu")
    transitions, _ = follow(env, torch.full((3, 3, 8), 0.1))
    assert env.reward_timing == "before"
    torch.testing.assert_close(transitions["next", "reward"][..., 0], -transitions["observation"].square().sum(-1))
    assert RewarpedEnv("ant", 3, device="cpu").reward_timing == "after"


def test_one_seed_gives_one_course_and_leaves_the_global_generator_alone(make):
    actions = torch.rand(15, 3, 8, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    one, same, other = (follow(make(seed=seed), actions)[0] for seed in (4, 4, 5))
    assert (one == same).all() and not (one == other).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_restored_env_goes_on_bit_for_bit(make):
    actions = torch.rand(14, 3, 8, generator=torch.Generator().manual_seed(0))
    env = make(seed=4)
    _, td = follow(env, actions[:4])
    saved = env.state_dict()
    straight, _ = follow(env, actions[4:], td)
    again = make(seed=4)
    again.load_state_dict(saved)
    again.set_seed(99)
    again.load_state_dict(saved)
    assert (follow(again, actions[4:], again.truncate_graph())[0] == straight).all()
    with pytest.raises(ValueError, match="num_envs=3, this env has 2"):
        make(2).load_state_dict(saved)


def test_envs_with_and_without_gradients_live_side_by_side(installed):
    """The flag is one for the process: the last env built would turn the gradients of the first off."""
    learner = DFlexEnv("ant", 2, device="cpu", requires_grad=True)
    evaluated = DFlexEnv("ant", 2, device="cpu")
    assert installed.config.no_grad is False  # as it was before both
    td = learner.reset()
    action = torch.full((2, 8), 0.1, requires_grad=True)
    for _ in range(2):
        evaluated.rollout(2)
        installed.config.no_grad = True
        transition, td = learner.step_and_maybe_reset(td.set("action", action))
        assert installed.config.no_grad is True
    transition["next", "reward"].sum().backward()
    assert action.grad.norm() > 0


def test_a_built_env_is_wrapped_as_it_was_built(installed):
    ant = sys.modules["dflex.envs"].AntEnv
    assert DFlexWrapper(ant(2, no_grad=False, device="cpu")).requires_grad
    assert not DFlexWrapper(ant(2, no_grad=True, device="cpu")).requires_grad
    assert DFlexWrapper(ant(2, device="cpu"), reward_timing="after").reward_timing == "after"
    with pytest.raises(ValueError, match="built with no_grad=False"):
        DFlexWrapper(ant(2, no_grad=True, device="cpu"), requires_grad=True)
    with pytest.raises(TypeError, match=r"env of DFlex, found Linear, which has no num_envs"):
        DFlexWrapper(nn.Linear(1, 1))


def test_another_version_of_dflex_is_noticed(installed, monkeypatch):
    env = DFlexEnv("ant", 2, device="cpu")
    step = env.simulator.env.step
    monkeypatch.setattr(env.simulator.env, "step", lambda actions: (*step(actions)[:3], {"episode_end": None}))
    with pytest.raises(KeyError, match="expected termination and truncation"):
        env.rollout(1)


def test_rewarped_flags_are_put_right_without_early_termination(installed):
    env = RewarpedEnv("cartpole", 2, device="cpu", episode_length=3)
    flags = env.rollout(3)["next"]
    assert flags["truncated"][:, -1].all() and not flags["terminated"].any()
    td = env.reset()
    td["_reset"] = torch.tensor([[True], [False]])
    with pytest.raises(ValueError, match="resets all envs or none, found 1 of 2"):
        env.reset(td)


@pytest.mark.parametrize("task", ["hopper", "anymal", "a1"])
def test_faulty_tasks_of_rewarped_are_refused_with_the_reason(task):
    reason = "it declares 11 observations and returns 12" if task == "hopper" else "its methods are not implemented"
    with pytest.raises(ValueError, match=rf"'{task}' of rewarped 1\.3\.3 does not work: {reason}.*'cartpole', 'ant'"):
        RewarpedEnv(task, 2)
    assert task not in RewarpedEnv.available_envs


def test_the_warp_of_newton_is_refused(installed, monkeypatch):
    monkeypatch.delitem(sys.modules, "warp.sim")
    sys.modules["warp"].__version__ = "1.19.0"
    with pytest.raises(ImportError, match=r"found 1\.19\.0, which has no warp\.sim\. Newton .* cannot share"):
        RewarpedEnv("ant", 2)


def test_newton_and_rewarped_in_one_environment_are_refused(installed, monkeypatch):
    """Both ways; NewtonEnv asks for rewarped before it looks for its own packages."""
    monkeypatch.setattr(rewarped, "_has_newton", True)
    with pytest.raises(ImportError, match=r"RewarpedEnv found newton.*cannot share one\. Make another and pip install"):
        RewarpedEnv("ant", 2)
    with pytest.raises(ImportError, match=r"NewtonEnv found rewarped.*cannot share one\. Make another and pip install"):
        NewtonEnv("ant", 2)


@pytest.mark.parametrize("kind", [DFlexEnv, RewarpedEnv])
def test_wrong_arguments(kind, installed):
    with pytest.raises(ValueError, match="unknown task 'walker'; expected one of"):
        kind("walker", 2)
    with pytest.raises(ValueError, match="num_envs must be an integer of at least 1, found 0"):
        kind("ant", 0, device="cpu")


@pytest.mark.skipif(HAS_DFLEX, reason="DFlex is installed")
def test_without_dflex_the_steps_to_install_it_are_named():
    assert DFlexEnv.available_envs == ()
    with pytest.raises(ImportError, match=r"pip install .*DiffRL.*compiler.*compatibility_shim"):
        DFlexEnv("ant", 2)
    with pytest.raises(ImportError, match="pip install"):
        DFlexWrapper(object())


@pytest.mark.skipif(HAS_REWARPED, reason="rewarped is installed")
def test_without_rewarped_its_extra_is_named():
    assert RewarpedEnv.available_envs == ()
    with pytest.raises(ImportError, match=r"needs rewarped.*torchrl-pwm\[rewarped\].*without Newton"):
        RewarpedEnv("ant", 2)


def test_a_dflex_that_does_not_import_says_why(installed, monkeypatch):
    monkeypatch.setitem(sys.modules, "dflex", None)
    with pytest.raises(ImportError, match=r"DFlex cannot be imported \(.*\); pip install .*shim=True"):
        DFlexEnv("ant", 2, device="cpu")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Ninja is required to load C++ extensions"),
        RuntimeError("Error building extension 'kernels': [1/2] c++ ...\n/bin/sh: 1: c++: not found"),
        FileNotFoundError("[Errno 2] No such file or directory: 'c++'"),
        PermissionError("[Errno 13] Permission denied: 'kernels'"),
        AttributeError("`np.Inf` was removed in the NumPy 2.0 release."),
    ],
)
def test_a_dflex_that_does_not_compile_gives_the_cause_and_the_steps(installed, failing_import, error):
    failing_import("dflex", error)
    cause = re.escape(str(error).splitlines()[0])
    with pytest.raises(ImportError, match=rf"DFlex cannot be imported \({cause}\); pip install .*compiler and ninja"):
        DFlexEnv("ant", 2, device="cpu")


def test_staggered_envs_end_their_first_episodes_at_different_steps(make):
    env = make(32, episode_length=20, stagger=True, seed=2)
    transitions, td = follow(env, torch.zeros(40, 32, 8))
    ends = transitions["next", "truncated"][..., 0]
    first = ends.int().argmax(0)
    assert len(first.unique()) > 8 and first.max() < 20
    assert all(ends[start + 20, index] for index, start in enumerate(first.tolist()))
    again, _ = follow(make(32, episode_length=20, stagger=True, seed=2), torch.zeros(40, 32, 8))
    assert torch.equal(again["next", "truncated"], transitions["next", "truncated"])
    td["_reset"] = (torch.arange(32) == 3)[:, None]
    env.reset(td)
    transitions, _ = follow(env, torch.zeros(20, 32, 8), env.truncate_graph())
    assert transitions["next", "truncated"][:, 3, 0].int().argmax() == 19  # a single reset has a whole episode


def test_envs_of_rewarped_that_end_together_cannot_be_staggered(installed):
    with pytest.raises(ValueError, match=r"Cartpole of rewarped.*expected stagger=False, found True"):
        RewarpedEnv("cartpole", 2, device="cpu", stagger=True)


def test_the_missing_name_of_numpy_points_to_the_shim(installed, monkeypatch):
    def build(self, *args, **settings):
        return np.Inf  # noqa: NPY201

    monkeypatch.setattr(sys.modules["dflex.envs"].AntEnv, "__init__", build)
    with pytest.raises(AttributeError, match=r"compatibility_shim\(\)"):
        DFlexEnv("ant", 2, device="cpu")


def test_the_shim_is_undone():
    had_gym = "gym" in sys.modules
    with pytest.raises(RuntimeError, match="inside"), compatibility_shim():
        gym = builtins.__import__("gym")
        assert gym.spaces.Box and builtins.__import__("gym.spaces").spaces.Box
        assert np.Inf == np.inf  # noqa: NPY201
        raise RuntimeError("inside")
    assert ("gym" in sys.modules) == had_gym
    assert not hasattr(np, "Inf")


def test_the_shim_can_be_asked_for_by_keyword(make, monkeypatch):
    """Where no ``with`` can stand: in a configuration, and in worker processes."""
    build = stand_ins.FakeDFlexEnv.__init__

    def needs_inf(self, *args, **settings):
        build(self, *args, **settings)
        self.high = np.Inf  # noqa: NPY201

    monkeypatch.setattr(stand_ins.FakeDFlexEnv, "__init__", needs_inf)
    with pytest.raises(AttributeError, match="with shim=True"):
        make()
    assert make(shim=True).rollout(2).shape == (3, 2)
    assert not hasattr(np, "Inf")


def test_compiled_modules_load_through_the_lent_imp(tmp_path, monkeypatch):
    (tmp_path / "kernels_of_a_test.py").write_text("answer = 42")
    monkeypatch.delitem(sys.modules, "imp", raising=False)
    monkeypatch.setattr(shims, "_missing", lambda name: name == "imp")
    with compatibility_shim():
        imp = sys.modules["imp"]
    assert "imp" not in sys.modules
    file, path, description = imp.find_module("kernels_of_a_test", [str(tmp_path)])
    with file:
        assert imp.load_module("kernels_of_a_test", file, path, description).answer == 42
    assert sys.modules.pop("kernels_of_a_test").answer == 42
    with pytest.raises(ImportError, match="no module 'kernels_of_no_test'"):
        imp.find_module("kernels_of_no_test", [str(tmp_path)])


REAL = [
    pytest.param(DFlexEnv, task, marks=pytest.mark.skipif(not HAS_DFLEX, reason="DFlex is not installed"))
    for task in ("cartpole_swingup", "ant")
]
# No more of rewarped: its gradients are wrong in contact.
REAL += [
    pytest.param(
        RewarpedEnv, "cartpole", marks=pytest.mark.skipif(not HAS_REWARPED, reason="rewarped is not installed")
    )
]


@pytest.mark.parametrize("kind, task", REAL)
def test_gradients_of_the_real_simulator_agree_with_finite_differences(kind, task):
    env = kind(task, 2, requires_grad=True, device="cpu", seed=1, shim=True)
    check_env_specs(env)
    size = env.action_spec.shape

    def value(actions):
        env.set_seed(1)
        transitions, _ = follow(env, actions)
        return transitions["next", "reward"].double().sum()

    generator = torch.Generator().manual_seed(0)
    actions = (0.5 * torch.randn(4, *size, generator=generator)).clamp(-0.9, 0.9).requires_grad_()
    direction = torch.randn(4, *size, generator=generator)
    value(actions).backward()
    with torch.no_grad():
        step = 0.01
        numeric = (value(actions + step * direction) - value(actions - step * direction)) / (2 * step)
    assert (actions.grad * direction).sum().item() == pytest.approx(numeric.item(), rel=0.05)
