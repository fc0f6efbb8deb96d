"""The package imports quickly, with none of its optional packages."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import torchrl_pwm
from tests.optional import OPTIONAL

# Names of the design whose use needs no optional package.
LIGHT = [
    "PWMWorldModel",
    "PWMAgent",
    "load_world_model",
    "make_pwm_actor",
    "make_value_ensemble",
    "FirstOrderLoss",
    "PWMLoss",
    "PWMWorldModelLoss",
    "TDMPC2Model",
    "TDMPC2Loss",
    "TDMPC2Planner",
    "WorldModelWrapper",
    "ImaginedEnv",
    "MT30",
    "MT80",
    "make_task_env",
    "restore_state",
    "AnalyticEnv",
    "SimulatorEnv",
    "TDMPC2ExperienceReplay",
    "convert_shards",
    "collect_dataset",
    "evaluate_policy",
    "export_policy",
]

# Not found, rather than refused: torch and others ask whether a package is there before they import it.
BLOCK = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {OPTIONAL!r} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def run(code):
    """Runs ``code`` in a fresh interpreter without the optional packages; the last line printed, as JSON."""
    done = subprocess.run([sys.executable, "-c", BLOCK + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_package_loads_neither_torch_nor_an_optional_package():
    loaded = run("import json, torchrl_pwm; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))")
    assert "torchrl_pwm" in loaded
    assert not {"torch", "torchrl", "numpy", *OPTIONAL} & set(loaded)


def test_public_names_work_without_optional_packages():
    code = f"""
import json
from torchrl_pwm import {", ".join(LIGHT)}
import torch
from tensordict import TensorDict

model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(24,))
loss = PWMLoss(make_pwm_actor(16, 2), make_value_ensemble(16), model, horizon=2)
loss(TensorDict({{"observation": torch.randn(3, 5)}}, [3]))["loss_actor"].backward()
ImaginedEnv(model, batch_size=2).rollout(2, tensordict=TensorDict({{"latent": torch.rand(2, 16)}}, [2]))
AnalyticEnv("cartpole_swingup", 2).rollout(2)
assert len(MT80) == 80 and len(MT30) == 30
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""
    assert not set(OPTIONAL) & set(run(code))


def test_the_hubs_methods_without_its_package_name_the_extra_and_folders_are_read_all_the_same(tmp_path):
    pytest.importorskip("huggingface_hub")
    torchrl_pwm.PWMWorldModel(5, 2, latent_dim=16, units=(8,), simnorm_dim=4).save_pretrained(tmp_path)
    code = f"""
import json
from torchrl_pwm import PWMWorldModel, load_world_model

model, messages = load_world_model({str(tmp_path)!r}), []
for call in (
    lambda: model.save_pretrained("folder"),
    lambda: model.push_to_hub("user/model"),
    lambda: PWMWorldModel.from_pretrained({str(tmp_path)!r}),
):
    try:
        call()
    except ImportError as error:
        messages.append(str(error))
print(json.dumps([model.constructor_arguments["simnorm_dim"], messages]))
"""
    groups, messages = run(code)
    assert groups == 4 and len(messages) == 3
    assert all('pip install "torchrl-pwm[hub]"' in message for message in messages)


@pytest.mark.parametrize("task", ["walker-run", "mw-reach"])
def test_a_task_without_its_simulator_names_the_extra(task):
    code = f"""
import json
from torchrl_pwm import make_task_env
try:
    make_task_env({task!r})
except ImportError as error:
    print(json.dumps(str(error)))
"""
    message = run(code)
    assert "pip install" in message and "torchrl-pwm[mt80]" in message


@pytest.mark.parametrize(
    ("call", "extra"),
    [
        ("torchrl_pwm.load_policy('runs/mine')", "hydra"),
        ("torchrl_pwm.export_policy(torchrl_pwm.make_pwm_actor(3, 1), 'policy.onnx')", "export"),
    ],
)
def test_taking_a_policy_away_names_the_extra_that_it_needs(call, extra):
    code = f"""
import json, torchrl_pwm
try:
    {call}
except ImportError as error:
    print(json.dumps(str(error)))
"""
    assert f'pip install "torchrl-pwm[{extra}]"' in run(code)


@pytest.mark.parametrize("name", ["NewtonEnv", "DFlexEnv", "RewarpedEnv", "IsaacGymEnv"])
def test_a_simulator_that_is_not_installed_says_how_to_install_it(name):
    code = f"""
import json
from torchrl_pwm import {name}
try:
    {name}("Ant" if {name!r} == "IsaacGymEnv" else "ant", 2)
except ImportError as error:
    print(json.dumps([list({name}.available_envs), str(error)]))
"""
    available, message = run(code)
    assert available == [] and "pip install" in message


def test_simulators_are_public_on_every_level():
    from torchrl_pwm import envs
    from torchrl_pwm.envs import simulators

    assert set(simulators.__all__) <= set(envs.__all__) and set(simulators.__all__) <= set(torchrl_pwm.__all__)
    assert all(getattr(torchrl_pwm, name) is getattr(simulators, name) for name in simulators.__all__)


@pytest.mark.parametrize("name", torchrl_pwm.__all__)
def test_every_public_name_is_there(name):
    assert name in dir(torchrl_pwm)
    assert getattr(torchrl_pwm, name) is not None


@pytest.mark.parametrize("name", OPTIONAL)
def test_the_block_works(name):
    assert run(f"import json, importlib.util; print(json.dumps(importlib.util.find_spec({name!r})))") is None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="No torchrl_pwm attribute PWMModel"):
        _ = torchrl_pwm.PWMModel
