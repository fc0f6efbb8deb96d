"""A policy that was exported acts as it did, in PyTorch and in ONNX Runtime, and says what it reads and writes."""

from __future__ import annotations

import json

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import GRUModule

from torchrl_pwm import (
    ObservationNormalizer,
    PWMWorldModel,
    TDMPC2Model,
    TDMPC2Planner,
    WorldModelPolicy,
    export_policy,
    make_pwm_actor,
)
from torchrl_pwm.modules import TrainedPolicy

onnxruntime = pytest.importorskip("onnxruntime")
TASKS = {"num_tasks": 3, "task_dim": 4, "action_dims": [2, 1, 2]}


def pwm(**tasks):
    model = PWMWorldModel(5, 2, latent_dim=16, units=(32, 32), num_bins=11, **tasks)
    count = max(model.num_tasks, 1)
    model.set_observation_statistics(torch.randn(count, 5), torch.rand(count, 5) + 0.5)
    return WorldModelPolicy(model, make_pwm_actor(16, 2))


def shac():
    normalizer = ObservationNormalizer(5)
    normalizer.update(TensorDict({"observation": 3 * torch.randn(100, 5) + 1}, [100]))
    return TensorDictSequential(normalizer, make_pwm_actor(5, 2, in_key="normalized_observation"))


def tdmpc2(**tasks):
    model = TDMPC2Model(PWMWorldModel(5, 2, latent_dim=16, units=(32, 32), num_bins=11, **tasks))
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


def of_one_task(policy):
    sizes = {"observation_dim": 5, "action_dim": 2, "task": 1, "task_name": "swing", "task_sizes": (3, 1)}
    return TrainedPolicy(policy, **sizes, action_bounds=([-4.0], [4.0]))


POLICIES = {
    "PWM": lambda: (pwm(), {}, 5),
    "PWM of one of many tasks": lambda: (pwm(**TASKS), {"task": 1}, 5),
    "PWM of a task's own sizes": lambda: (of_one_task(pwm(**TASKS)), {}, 3),
    "SHAC": lambda: (shac(), {}, 5),
    "TD-MPC2": lambda: (tdmpc2(), {}, 5),
    "TD-MPC2 of one of many tasks": lambda: (tdmpc2(**TASKS), {"task": 1}, 5),
    "TD-MPC2's prior by its planner": lambda: (of_one_task(TDMPC2Planner(tdmpc2(**TASKS), plan=False)), {}, 3),
}


def run_exported(path, observation):
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(observation)
    session = onnxruntime.InferenceSession(path)
    return torch.as_tensor(session.run(["action"], {"observation": observation.numpy()})[0])


def read_metadata(path):
    if path.suffix == ".pt2":
        files = {"policy.json": ""}
        torch.export.load(path, extra_files=files)
        return json.loads(files["policy.json"])
    return json.loads(onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["policy.json"])


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("name", POLICIES)
def test_an_exported_policy_gives_the_deterministic_action(name, suffix, tmp_path, device):
    policy, options, size = POLICIES[name]()
    policy.to(device)
    path = export_policy(policy, tmp_path / f"policy{suffix}", **options)
    for batch in (1, 7):
        observation = torch.randn(batch, size)
        td = TensorDict({"observation": observation}, [batch])
        if options:
            td["task"] = torch.full((batch,), options["task"])
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            expected = policy(td.to(device))["action"].cpu()
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(run_exported(path, observation), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_file_says_what_it_reads_and_writes(suffix, tmp_path):
    content = read_metadata(export_policy(of_one_task(pwm(**TASKS)), tmp_path / f"policy{suffix}"))
    assert content == {
        "inputs": [{"name": "observation", "shape": ["batch", 3], "dtype": "float32"}],
        "action": {
            **{"name": "action", "shape": ["batch", 1], "dtype": "float32", "low": [-1.0], "high": [1.0]},
            **{"data_low": [-4.0], "data_high": [4.0]},
        },
        "deterministic": True,
        "task": 1,
        "task_name": "swing",
    }


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_weights_that_the_action_does_not_need_are_left_behind(suffix, tmp_path):
    sizes = []
    for units in ((32,), (1000, 1000)):
        model = PWMWorldModel(5, 2, latent_dim=16, units=units)
        path = export_policy(WorldModelPolicy(model, make_pwm_actor(16, 2, units=(16,))), tmp_path / f"policy{suffix}")
        sizes.append(path.stat().st_size)
    assert sizes[1] < 1.1 * sizes[0] + 1000


def test_a_policy_stays_as_it_is_when_it_is_exported(tmp_path):
    policy = pwm(**TASKS).train()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    export_policy(policy, tmp_path / "policy.pt2", task=0)
    assert policy.training and all(parameter.requires_grad for parameter in policy.parameters())
    torch.testing.assert_close(policy.state_dict(), before, rtol=0, atol=0)


def test_a_policy_of_another_library_is_exported_by_an_example(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.LazyLinear(2), nn.Tanh())
    policy = TensorDictModule(network, in_keys=["pixels"], out_keys=["action"])
    example = TensorDict({"pixels": torch.randn(2, 3, 8, 8)}, [2])
    policy(example)
    with pytest.raises(ValueError, match=r"\['pixels', 'position'\], cannot be told .* give example="):
        both = TensorDictModule(lambda pixels, position: position, ["pixels", "position"], ["action"])
        export_policy(both, tmp_path / "policy.pt2")
    single = export_policy(policy, tmp_path / "policy.pt2", example=example[0])  # as a single env's reset() gives it
    assert read_metadata(single)["inputs"][0]["shape"] == ["batch", 3, 8, 8]
    path = export_policy(policy, tmp_path / "policy.onnx", example=example)
    pixels = torch.randn(5, 3, 8, 8)
    action = onnxruntime.InferenceSession(path).run(None, {"pixels": pixels.numpy()})[0]
    torch.testing.assert_close(torch.as_tensor(action), network(pixels), rtol=0, atol=1e-5)
    assert read_metadata(path)["inputs"][0]["shape"] == ["batch", 3, 8, 8]


def test_a_policy_on_pictures_is_exported_with_their_shape(tmp_path):
    encoder = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 6 * 6, 16))
    model = PWMWorldModel((3, 8, 8), 2, latent_dim=16, units=(32,), encoder=encoder)
    inner = WorldModelPolicy(model, make_pwm_actor(16, 2))
    policy = TrainedPolicy(inner, observation_dim=(3, 8, 8), action_dim=2)
    pixels = torch.rand(5, 3, 8, 8)
    for exported in (inner, policy):
        path = export_policy(exported, tmp_path / "policy.pt2")
        assert read_metadata(path)["inputs"][0]["shape"] == ["batch", 3, 8, 8]
        torch.testing.assert_close(run_exported(path, pixels), policy(observation=pixels), rtol=0, atol=1e-5)


def recurrent():
    gru = GRUModule(5, 8, in_keys=["observation", "state", "is_init"], out_keys=["features", ("next", "state")])
    return TensorDictSequential(gru, make_pwm_actor(8, 2, in_key="features"))


@pytest.mark.parametrize(
    ("policy", "name", "message"),
    [
        (pwm, "policy.pt", r"to a file \.pt2 or \.onnx, found 'policy\.pt'"),
        (recurrent, "policy.pt2", r"A recurrent policy \(.*\) keeps a state from step to step"),
        (lambda: TDMPC2Planner(tdmpc2()), "policy.pt2", "planner searches .* export its policy prior instead"),
        (lambda: of_one_task(TDMPC2Planner(tdmpc2(**TASKS))), "policy.onnx", "planner searches .* is not exported"),
        (lambda: pwm(**TASKS), "policy.pt2", "A multi-task policy is exported for one task: give its index"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_a_sentence(policy, name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_policy(policy(), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("policy", "task", "message"),
    [(pwm, 5, "has no tasks, found task=5"), (lambda: pwm(**TASKS), 99, "an index from 0 to .*, found 99")],
)
def test_a_task_that_the_policy_does_not_know_is_refused(policy, task, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_policy(policy(), tmp_path / "policy.pt2", task=task)
