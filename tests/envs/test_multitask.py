"""Task envs keep TorchRL's rules: specs, padding, masks, seeds, truncation, and leave global state alone."""

from __future__ import annotations

import random
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import Compose, ParallelEnv, RewardSum, SerialEnv, StepCounter, TransformedEnv, check_env_specs
from torchrl.envs.utils import step_mdp

from tests.handles import LISTED, open_handles
from torchrl_pwm.envs import (
    MT80,
    TaskSet,
    TaskSpec,
    make_gym_env,
    make_task_env,
    make_task_envs,
    raw_reward,
    restore_state,
)
from torchrl_pwm.envs.rendering import rendering_available

pytest.importorskip("dm_control")
pytest.importorskip("metaworld")

_needs_rendering = pytest.mark.skipif(
    not rendering_available(), reason="no OpenGL library gives an off-screen context (install libegl1 or libosmesa6)"
)


@pytest.mark.parametrize("task_set", [None, "mt80"])
@pytest.mark.parametrize("name", ["walker-run", "cup-spin", "mw-reach"])
def test_env_keeps_its_specs(name, task_set):
    check_env_specs(make_task_env(name, task_set=task_set))


@pytest.mark.skipif(not LISTED.is_dir(), reason="open handles are listed in /proc")
def test_envs_side_by_side_in_one_process_hold_no_handles():
    make_task_env("pendulum-swingup")  # whose files are read
    before = open_handles()  # some of which are an earlier test's, and are closed when they are collected
    envs = [make_task_envs("pendulum-swingup", 2), make_gym_env("Pendulum-v1", 2)]
    for env in envs:
        env.rollout(2)
    assert open_handles() <= before


def test_env_keeps_its_specs_in_serial_env():
    makers = [partial(make_task_env, name, task_set="mt80") for name in ("walker-run", "pendulum-swingup")]
    env = SerialEnv(2, makers)
    check_env_specs(env)
    assert env.rollout(2)["task"].tolist() == [[2, 2], [7, 7]]


def test_parallel_env_equals_serial_env():
    makers = [partial(make_task_env, "mw-reach", task_set="mt80", seed=seed) for seed in (0, 1)]
    serial, parallel = SerialEnv(2, makers), ParallelEnv(2, makers)
    action = torch.zeros(2, 6)
    try:
        check_env_specs(parallel)
        parallel.set_seed(7)
        serial.set_seed(7)
        ends = [env.step(env.reset().set("action", action.clone()))["next"] for env in (serial, parallel)]
        assert torch.equal(ends[0]["observation"], ends[1]["observation"])
        assert torch.equal(ends[0]["reward"], ends[1]["reward"])
        assert not torch.equal(ends[0]["observation"][0], ends[0]["observation"][1])
    finally:
        parallel.close()


@pytest.mark.parametrize(
    ("name", "task_set", "observation_dim", "index"),
    [("pendulum-spin", "mt30", 24, 29), ("pendulum-spin", "mt80", 39, 29), ("mw-hammer", "mt80", 39, 47)],
)
def test_padding_mask_and_task_id(name, task_set, observation_dim, index):
    plain = make_task_env(name, seed=3).reset()["observation"]
    spec = MT80[name]
    env = make_task_env(name, task_set=task_set, seed=3)
    reset = env.reset()
    following = env.step(env.rand_action(reset.clone()))["next"]
    assert env.action_spec.shape == (6,)
    for td in (reset, following):
        assert td["observation"].shape == (observation_dim,) and td["observation"].dtype == torch.float32
        assert not td["observation"][spec.observation_dim :].any()
        assert td["task"].shape == () and td["task"].dtype == torch.int64 and td["task"] == index
        assert td["action_mask"].tolist() == [place < spec.action_dim for place in range(6)]
    assert torch.equal(reset["observation"][: spec.observation_dim], plain)


def test_own_task_set_gives_its_own_sizes_and_ids():
    env = make_task_env("pendulum-spin", task_set=TaskSet("own", ["cup-spin", "pendulum-spin"]))
    td = env.reset()
    assert td["task"] == 1 and td["observation"].shape == (8,) and td["action_mask"].tolist() == [True, False]


def test_unpadded_env_has_no_task_and_no_mask():
    assert set(make_task_env("pendulum-spin").reset().keys()) == {"observation", "done", "terminated", "truncated"}


def test_only_meta_world_has_success():
    assert "success" not in make_task_env("pendulum-spin", task_set="mt80").reset()
    td = make_task_env("mw-reach").reset()
    assert td["success"].dtype == torch.bool and td["success"].shape == (1,)


def test_actions_past_the_tasks_own_are_ignored_and_large_ones_clipped():
    action = torch.tensor([5.0, -1.0, float("nan"), 0.3, 0.0, 9.0])
    wild, tame = (make_task_env("cup-catch", task_set="mt80", seed=1) for _ in range(2))
    after_wild = wild.step(wild.reset().set("action", action))["next"]
    after_tame = tame.step(tame.reset().set("action", torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0, 0.0])))["next"]
    assert torch.equal(after_wild["observation"], after_tame["observation"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["cup-catch", "mw-reach"])
def test_action_that_is_not_finite_raises_before_the_simulator_moves(name, bad):
    env = make_task_env(name, seed=1)
    action = torch.full(env.action_spec.shape, 0.5)
    reset = env.reset()
    with pytest.raises(ValueError, match=rf"{name} got the action .*at step 0.*finite"):
        env.step(reset.clone().set("action", action.clone().index_fill_(0, torch.tensor([1]), bad)))
    moved = env.step(reset.clone().set("action", action))["next"]
    twin = make_task_env(name, seed=1)
    assert torch.equal(moved["observation"], twin.step(twin.reset().set("action", action))["next", "observation"])


def test_action_of_the_wrong_size_is_refused():
    env = make_task_env("cup-catch", task_set="mt80")
    with pytest.raises(ValueError, match=r"cup-catch takes an action of shape \(6,\), found \(2,\)"):
        env.step(env.reset().set("action", torch.zeros(2)))


def test_step_before_reset_is_refused():
    with pytest.raises(RuntimeError, match="before its first reset"):
        make_task_env("cup-catch").step(TensorDict({"action": torch.zeros(2)}))


@pytest.mark.parametrize(("name", "length"), [("pendulum-swingup", 500), ("cheetah-run", 500), ("mw-reach", 100)])
def test_episode_is_truncated_at_its_length_and_never_terminates(name, length):
    rollout = make_task_env(name).rollout(length + 10)
    assert rollout.shape == (length,)
    assert rollout["next", "truncated"].squeeze(-1).tolist() == [False] * (length - 1) + [True]
    assert torch.equal(rollout["next", "done"], rollout["next", "truncated"])
    assert not rollout["next", "terminated"].any()


def test_reset_begins_a_new_count():
    env = make_task_env("pendulum-swingup")
    rollout = env.rollout(1001, break_when_any_done=False)
    assert rollout["next", "truncated"].flatten().nonzero().flatten().tolist() == [499, 999]


@pytest.mark.parametrize("name", ["cup-spin", "finger-spin", "fish-swim", "mw-dial-turn"])
def test_two_envs_of_one_seed_go_on_alike_and_another_seed_differs(name):
    twins, other = [make_task_env(name, seed=11) for _ in range(2)], make_task_env(name, seed=12)
    action = torch.full(other.action_spec.shape, 0.3)
    for _ in range(2):
        ends = []
        for env in (*twins, other):
            td = env.reset()
            for _ in range(5):
                td = step_mdp(env.step(td.set("action", action)))
            ends.append(td["observation"])
        assert torch.equal(ends[0], ends[1])
        assert not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("name", ["reacher-three-easy", "mw-drawer-open"])
def test_set_seed_equals_building_with_that_seed(name):
    used, fresh = make_task_env(name, seed=0), make_task_env(name, seed=9)
    used.rollout(3)
    used.set_seed(9)
    for _ in range(2):
        assert torch.equal(used.reset()["observation"], fresh.reset()["observation"])


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, None, True])
def test_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be an integer from 0"):
        make_task_env("pendulum-spin", seed=seed)


def _global_generators() -> tuple:
    words, position = np.random.get_state()[1:3]  # noqa: NPY002
    return random.getstate(), words.tolist(), position, torch.get_rng_state().tolist()


@pytest.mark.parametrize("name", ["walker-run", "cup-spin", "mw-assembly", "mw-push"])
def test_no_global_generator_is_touched(name):
    before = _global_generators()
    env = make_task_env(name, seed=3)
    env.set_seed(4)
    td = env.reset()
    env.step(td.set("action", torch.zeros(env.action_spec.shape)))
    env.reset()
    assert _global_generators() == before


@pytest.mark.parametrize("task_set", [None, "mt80"])
@pytest.mark.parametrize("name", ["walker-rum", "mw-reech"])
def test_unknown_task_names_near_ones(name, task_set):
    with pytest.raises(ValueError, match=f"unknown task '{name}'.*did you mean"):
        make_task_env(name, task_set=task_set)


def test_a_task_of_a_data_set_has_no_env_by_its_name():
    own = TaskSet("own", [TaskSpec("arm", observation_fields=(("observation", 3),), action_dim=2, episode_length=5)])
    with pytest.raises(ValueError, match=r"arm is a task of a data set, .* an env of your own in place of its name"):
        make_task_env("arm", task_set=own)


def test_task_outside_the_set_is_refused():
    with pytest.raises(ValueError, match="unknown task 'mw-reach' in task set 'mt30'"):
        make_task_env("mw-reach", task_set="mt30")


@pytest.mark.parametrize(
    ("name", "package"),
    [("walker-run", "dm_control.suite"), ("cup-spin", "dm_control.suite"), ("mw-reach", "metaworld")],
)
def test_missing_simulator_names_the_extra(monkeypatch, name, package):
    for module in [m for m in sys.modules if m.split(".")[0] == package.split(".")[0]]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "torchrl-pwm\[mt80\]"'):
        make_task_env(name)


def test_restore_goes_through_the_transforms(golden):
    record = golden("dmc", "cup-catch")
    env = TransformedEnv(make_task_env("cup-catch"), Compose(RewardSum(), StepCounter()))
    env.rollout(3)
    td = restore_state(env, record)
    np.testing.assert_allclose(td["observation"], record["obs"][0], atol=1e-5)
    assert td["step_count"] == 0 and td["episode_reward"] == 0
    td = env.step(td.set("action", torch.from_numpy(record["actions"][0])))["next"]
    np.testing.assert_allclose(td["observation"], record["obs"][1], atol=1e-5)
    assert td["step_count"] == 1
    assert 0 <= raw_reward(env) <= 1


def test_restore_pads_and_restarts_the_episode(golden):
    record = golden("mw", "mw-window-open")
    env = make_task_env("mw-window-open", task_set="mt80")
    env.rollout(99)
    td = restore_state(env, record)
    np.testing.assert_allclose(td["observation"], record["obs"][0], atol=1e-5)
    assert not td["success"] and td["task"] == MT80["mw-window-open"].index
    assert not env.step(td.set("action", torch.zeros(6)))["next", "truncated"]


def test_restore_refuses_a_batched_env():
    env = SerialEnv(1, partial(make_task_env, "pendulum-spin"))
    with pytest.raises(TypeError, match=r"one env of make_task_env.*found SerialEnv"):
        restore_state(env, {"qpos0": [0.0], "qvel0": [0.0]})


def test_building_needs_no_display_and_says_nothing():
    code = (
        "from torchrl_pwm.envs import make_task_env\n"
        "for name in ('walker-run', 'mw-reach'): make_task_env(name).reset()\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_disabled_rendering_is_a_clear_error(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    with pytest.raises(RuntimeError, match="MUJOCO_GL=disabled disables rendering"):
        make_task_env("pendulum-spin", from_pixels=True).reset()


def test_missing_opengl_library_is_a_clear_error(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(RuntimeError, match=r"no OpenGL library gives .*glfw: there is no display.*libegl1"):
        make_task_env("pendulum-spin", from_pixels=True).reset()


@_needs_rendering
@pytest.mark.parametrize("name", ["reacher-three-easy", "mw-drawer-open"])
def test_pixels_show_the_state(name):
    env = make_task_env(name, task_set="mt80", from_pixels=True, pixel_size=(48, 64))
    check_env_specs(env)
    td = env.reset()
    after = env.step(td.clone().set("action", torch.ones(6)))["next", "pixels"]
    assert td["pixels"].shape == (48, 64, 3) and td["pixels"].dtype == torch.uint8
    assert td["pixels"].float().std() > 10
    assert not torch.equal(td["pixels"], after)
    env.close()


@_needs_rendering
def test_only_chosen_steps_are_rendered():
    whole, chosen = (
        make_task_env("pendulum-spin", from_pixels=True, pixel_size=(16, 16), pixel_steps=steps)
        for steps in (None, (0, 2))
    )
    pixels, found = (env.rollout(3, lambda td: td.set("action", torch.ones(1))) for env in (whole, chosen))
    for step, (full, picture) in enumerate(zip(pixels["next", "pixels"], found["next", "pixels"]), 1):
        assert torch.equal(picture, full if step == 2 else torch.zeros_like(full))
    assert torch.equal(pixels["pixels"][0], found["pixels"][0]) and pixels["pixels"][0].any()


@_needs_rendering
def test_first_row_of_the_pixels_is_the_top():
    env = make_task_env("walker-stand", from_pixels=True, pixel_size=(64, 64))
    pixels = env.reset()["pixels"].float()
    # The floor is brighter than the sky.
    assert pixels[-8:].mean() > pixels[:8].mean()
    env.close()


def test_tensors_are_on_the_device_asked_for():
    env = make_task_env("pendulum-spin", task_set="mt80", device="cpu")
    td = env.rollout(2)
    assert td.device == torch.device("cpu") and env.action_spec.device == torch.device("cpu")
