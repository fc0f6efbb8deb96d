"""TorchRL's Isaac Gym wrapper behind our arguments, on a stand-in with the interface of IsaacGymEnvs."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from torchrl.envs import RenameTransform, TransformedEnv, check_env_specs

from torchrl_pwm.envs.simulators import IsaacGymEnv, isaac_gym

gymnasium = pytest.importorskip("gymnasium")


class FakeVecTask:
    """Rows that are done start anew in the step that follows; a reset only returns the present observation."""

    max_episode_length = 5

    def __init__(self, num_envs, device):
        self.num_envs, self.device, self.rl_device = num_envs, device, device
        self.observation_space = gymnasium.spaces.Box(-float("inf"), float("inf"), (7,))
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (3,))
        self.gym, self.sim = types.SimpleNamespace(get_sim_time=lambda sim: 0.5), object()
        self.obs_buf = torch.zeros(num_envs, 7)
        self.reset_buf = torch.ones(num_envs, dtype=torch.long)
        self.progress_buf = torch.zeros(num_envs, dtype=torch.long)

    def reset(self):
        return {"obs": self.obs_buf.clone()}

    def step(self, actions):
        self.progress_buf = self.progress_buf + 1
        self.obs_buf = self.obs_buf + actions.sum(-1, keepdim=True)
        rows = self.reset_buf.nonzero().flatten()
        self.obs_buf[rows], self.progress_buf[rows] = 0.0, 0
        late = self.progress_buf >= self.max_episode_length - 1
        self.reset_buf = (late | (self.obs_buf[:, 0] > 2)).long()
        return {"obs": self.obs_buf.clone()}, -self.obs_buf[:, 0], self.reset_buf.clone(), {"time_outs": late}


@pytest.fixture
def made(monkeypatch):
    """Stand-ins of both packages; the arguments that ``isaacgymenvs.make`` was called with."""
    calls = []

    def make(seed, task, num_envs, sim_device, rl_device, headless=False, force_render=True):
        options = {"headless": headless, "force_render": force_render}
        calls.append({"seed": seed, "task": task, "rl_device": rl_device, **options})
        return FakeVecTask(num_envs, sim_device)

    modules = {name: types.ModuleType(name) for name in ("isaacgym", "isaacgymenvs", "isaacgymenvs.tasks")}
    modules["isaacgymenvs"].make = make
    modules["isaacgymenvs.tasks"].isaacgym_task_map = {"Ant": FakeVecTask, "Cartpole": FakeVecTask}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(isaac_gym, "_has_isaacgym", True)
    monkeypatch.setattr(isaac_gym, "_has_isaacgymenvs", True)
    return calls


def test_the_env_is_batched_and_its_specs_hold(made):
    env = IsaacGymEnv("Ant", 4, device="cpu", seed=3, force_render=False)
    assert made == [{"seed": 3, "task": "Ant", "headless": True, "rl_device": "cpu", "force_render": False}]
    assert env.batch_size == (4,) and env.task == "Ant" and env.lib is sys.modules["isaacgymenvs"]
    check_env_specs(env)
    rollout = env.rollout(8, break_when_any_done=False)
    assert rollout["obs"].shape == (4, 8, 7) and rollout["action"].shape == (4, 8, 3)
    assert rollout["next", "reward"].shape == rollout["next", "done"].shape == (4, 8, 1)
    renamed = TransformedEnv(env, RenameTransform(["obs"], ["observation"]))
    assert renamed.rollout(2, break_when_any_done=False)["observation"].shape == (4, 2, 7)


def test_falls_and_timeouts_are_told_apart(made):
    env = IsaacGymEnv("Ant", 2, device="cpu")
    push = torch.tensor([[0.0], [0.7]]).expand(2, 3)
    rollout = env.rollout(5, lambda td: td.set("action", push), break_when_any_done=False)
    flags = {key: rollout["next", key][..., 0].int().tolist() for key in ("terminated", "truncated", "done")}
    assert flags["truncated"] == [[0, 0, 0, 1, 0], [0, 0, 0, 0, 0]]
    # The step after a fall resets the env.
    assert flags["terminated"] == [[0, 0, 0, 0, 0], [1, 0, 1, 0, 1]]
    assert rollout["next", "obs"][1, :, 0].tolist() == pytest.approx([2.1, 0.0, 2.1, 0.0, 2.1])


def test_a_reset_of_some_envs_leaves_the_others(made):
    env = IsaacGymEnv("Ant", 2, device="cpu")
    push = torch.full((2, 3), 0.1)
    _, td = env.step_and_maybe_reset(env.reset().set("action", push))
    env.reset(td.set("_reset", torch.tensor([[True], [False]])))
    transition, _ = env.step_and_maybe_reset(td.exclude("_reset").set("action", push))
    assert transition["next", "obs"][:, 0].tolist() == pytest.approx([0.0, 0.6])
    assert not env.reset()["obs"].any()


def test_isaac_gyms_own_interface_is_at_hand(made):
    env = IsaacGymEnv("Ant", 2, device="cpu")
    assert env.gym.get_sim_time(env.sim) == 0.5


def test_wrong_arguments(made):
    assert IsaacGymEnv.available_envs == ("Ant", "Cartpole")
    with pytest.raises(ValueError, match="unknown task 'Walker'; expected one of 'Ant', 'Cartpole'"):
        IsaacGymEnv("Walker", 2, device="cpu")
    with pytest.raises(ValueError, match="num_envs must be an integer of at least 1, found 0"):
        IsaacGymEnv("Ant", 0)
    with pytest.raises(ValueError, match=r"no gradients: expected requires_grad=False.* take AnalyticEnv"):
        IsaacGymEnv("Ant", 2, requires_grad=True)
    with pytest.raises(ValueError, match="expected stagger=False"):
        IsaacGymEnv("Ant", 2, device="cpu", stagger=True)


@pytest.mark.parametrize("missing", ["isaacgym", "isaacgymenvs"])
def test_without_isaac_gym_the_steps_to_install_it_are_named(made, missing, monkeypatch):
    monkeypatch.setattr(isaac_gym, f"_has_{missing}", False)
    assert IsaacGymEnv.available_envs == ()
    with pytest.raises(ImportError, match=rf"needs {missing}, .*developer\.nvidia\.com/isaac-gym.* pip install"):
        IsaacGymEnv("Ant", 2)


def test_an_isaac_gym_that_does_not_compile_says_what_it_needs(made, failing_import):
    failing_import("isaacgym", RuntimeError("Ninja is required to load C++ extensions"))
    with pytest.raises(
        ImportError, match=r"isaacgym cannot be imported \(Ninja is required.*compiler and ninja.*pip inst"
    ):
        IsaacGymEnv("Ant", 2, device="cpu")


def test_mypy_accepts_our_use_of_the_stubs(tmp_path):
    """A property named ``lambda`` keeps isaacgym-stubs from being read as it is; here it is renamed."""
    mypy = pytest.importorskip("mypy.api")
    torch_folder = Path(importlib.util.find_spec("torch").origin).parent
    stubs = torch_folder.with_name("isaacgym-stubs") / "gymapi.pyi"
    if not stubs.exists():
        pytest.skip("isaacgym-stubs is not installed")
    package = tmp_path / "isaacgym"
    package.mkdir()
    (package / "__init__.pyi").touch()
    (package / "gymapi.pyi").write_text(stubs.read_text().replace("def lambda(", "def lambda_("))
    user = tmp_path / "user.py"
    user.write_text(
        "from torchrl_pwm.envs.simulators.isaac_gym import IsaacGymEnv\n"
        "def time(env: IsaacGymEnv) -> None:\n"
        "    reveal_type(env.gym.get_sim_time(env.sim))\n"
        "    env.gym.get_sim_time(3)\n"
    )
    files = [str(package), isaac_gym.__file__, str(user)]
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nignore_missing_imports = true\n[mypy-isaacgym.*]\nignore_errors = true\n"
    )
    options = ["--config-file", str(tmp_path / "mypy.ini"), "--cache-dir", str(tmp_path / "cache")]
    out, err, _ = mypy.run([*options, "--follow-imports=skip", "--explicit-package-bases", *files])
    lines = [line.split(": ", 1)[1] for line in out.splitlines() if "user.py" in line]
    assert len(lines) == 2 and 'Revealed type is "float"' in lines[0].replace("builtins.", ""), out + err
    assert 'has incompatible type "int"; expected "Sim"' in lines[1]
