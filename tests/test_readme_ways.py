"""The examples that README and docs include, and a user's own loop around PWMLoss."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch

pytest.importorskip("gymnasium")

from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, ReplayBuffer, SliceSampler
from torchrl.envs import ActionScaling, Compose, GymEnv, TransformedEnv
from torchrl.envs.utils import check_env_specs
from torchrl.objectives import ValueEstimators

import torchrl_pwm
from torchrl_pwm import (
    PWMLoss,
    PWMWorldModel,
    PWMWorldModelLoss,
    WorldModelWrapper,
    make_pwm_actor,
    make_value_ensemble,
)

SNIPPETS = Path(__file__).parents[1] / "examples" / "readme"
# The line of numbers of each example that a test makes small, and what it makes of it.
SHORTENED = {
    "plain_loop.py": ("EPISODES, UPDATES = 40, 40", "EPISODES, UPDATES = 12, 1"),
    "torchrl_trainer.py": ("FRAMES, UPDATES = 8_000, 40", "FRAMES, UPDATES = 2_400, 1"),
    "own_simulator.py": ("WINDOWS = 60", "WINDOWS = 21"),
    "own_env.py": ("ITERATIONS = 300", "ITERATIONS = 2"),
    "own_data.py": ("EPISODES, UPDATES = 240, 1_500", "EPISODES, UPDATES = 8, 10"),
    "pixels.py": ("ITERATIONS, SIZE = 200, 24", "ITERATIONS, SIZE = 2, 24"),
}


def execute(name, tmp_path, monkeypatch, tiny=None):
    """Runs the very file of the docs, with one line of numbers made small."""
    full, usual = SHORTENED[name]
    tiny = tiny or usual
    source = (SNIPPETS / name).read_text()
    assert source.count(full) == 1
    (tmp_path / name).write_text(source.replace(full, tiny))
    monkeypatch.chdir(tmp_path)
    return runpy.run_path(str(tmp_path / name))


def test_the_plain_loop_trains_model_policy_and_critics(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    found = execute("plain_loop.py", tmp_path, monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("episode")] == [f"episode {n}" for n in range(12)]
    assert -2000 < float(lines[-1].rsplit(" ", 1)[1]) <= 0
    # From the eleventh episode on the policy acts in the real env.
    assert found["rollout"].shape == (200,) and "loc" in found["rollout"]
    assert found["batch"].shape == (128, 5)
    assert found["rollout"]["action"].abs().max() <= 1
    trained = [found["model"], found["loss"]]
    assert all(parameter.grad is not None for module in trained for parameter in module.parameters())


def rewards_at(folder):
    rows = (folder / "runs" / "pendulum" / "scalars" / "reward.csv").read_text().splitlines()
    return [int(row.split(",")[0]) for row in rows]


def networks(found):
    loss, model = found["loss"].state_dict(), found["model"].state_dict()
    return [tensor.clone() for tensor in (*loss.values(), *model.values()) if isinstance(tensor, torch.Tensor)]


def test_torchrls_trainer_collects_and_trains(tmp_path, monkeypatch):
    found = execute("torchrl_trainer.py", tmp_path, monkeypatch)
    # Updates begin with the frames that follow the random ones.
    assert found["trainer"].collected_frames == 2_400
    assert len(found["replay_buffer"]) == 2_400
    assert rewards_at(tmp_path) == list(range(200, 2_401, 200))
    trained = [found["model"], found["loss"]]
    assert all(parameter.grad is not None for module in trained for parameter in module.parameters())


def test_torchrls_trainer_resumes_with_model_policy_optimizers_and_replay(tmp_path, monkeypatch):
    first = execute("torchrl_trainer.py", tmp_path, monkeypatch)
    saved = networks(first)
    # All frames are there: the second run loads, and ends with the batch that it is about to collect.
    again = execute("torchrl_trainer.py", tmp_path, monkeypatch, tiny="FRAMES, UPDATES = 2_800, 0")
    assert again["trainer"].collected_frames == 2_800
    assert len(again["replay_buffer"]) == 2_800
    assert torch.equal(again["replay_buffer"][:2_400]["action"], first["replay_buffer"][:]["action"])
    assert all(map(torch.equal, networks(again), saved))
    before, after = (found["trainer"].optimization_stepper for found in (first, again))
    assert after.policy_stepper.schedulers[0].last_epoch == before.policy_stepper.schedulers[0].last_epoch == 3
    for optimizer in (lambda s: s.model_stepper.optimizer, lambda s: s.policy_stepper.actor_optimizer):
        moments = [optimizer(stepper).state_dict()["state"] for stepper in (before, after)]
        torch.testing.assert_close(*moments, rtol=0, atol=0)
    assert rewards_at(tmp_path) == list(range(200, 2_801, 200))


def test_a_simulator_of_ones_own_trains_a_policy(tmp_path, monkeypatch, capsys):
    found = execute("own_simulator.py", tmp_path, monkeypatch)
    rewards = [float(line.rsplit(" ", 1)[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(rewards) == 2 and rewards[1] > rewards[0] / 3
    assert found["rollout"].shape == (64, 16) and found["rollout"]["next", "reward"].requires_grad


def test_pictures_train_an_encoder_model_and_policy(tmp_path, monkeypatch, capsys):
    found = execute("pixels.py", tmp_path, monkeypatch)
    assert found["trainer"].env_steps == 1024 + 2 * 128
    assert found["trainer"].collection.replay_buffer[:]["pixels"].dtype == torch.uint8
    assert all(parameter.grad.abs().sum() > 0 for parameter in found["encoder"].parameters())
    assert float(capsys.readouterr().out.splitlines()[-1].rsplit(" ", 1)[1]) < 0


def test_an_env_of_ones_own_trains_a_policy(tmp_path, monkeypatch, capsys):
    found = execute("own_env.py", tmp_path, monkeypatch)
    assert found["trainer"].env_steps == 2048 + 2 * 128
    value = float(capsys.readouterr().out.splitlines()[-1].rsplit(" ", 1)[1])
    assert -2000 < value < 0


@pytest.mark.filterwarnings("ignore")  # what Minari would like to know of a data set
def test_recorded_data_become_a_policy_that_is_evaluated(tmp_path, monkeypatch, capsys):
    pytest.importorskip("minari")
    pytest.importorskip("hydra")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    found = execute("own_data.py", tmp_path, monkeypatch)
    lengths = found["store"].lengths
    assert lengths.min() < 17 < lengths.max() and found["store"].terminates
    summary = json.loads((tmp_path / "runs" / "pendulum" / "summary.json").read_text())
    (result,) = summary["tasks"].values()
    assert len(result["outcomes"]["policy"]["returns"]) == 32
    assert "| steps ahead | reward" in capsys.readouterr().out
    session = pytest.importorskip("onnxruntime").InferenceSession(tmp_path / "pendulum.onnx")
    observation = torch.randn(5, 4)
    (action,) = session.run(None, {"observation": observation.numpy()})
    policy = torchrl_pwm.load_policy(tmp_path / "runs" / "pendulum", "cpu")
    torch.testing.assert_close(torch.from_numpy(action), policy(observation=observation), rtol=0, atol=1e-5)


@pytest.fixture
def pendulum():
    """Slices of random actions in the real env, and the lines of the design document up to the loop."""
    torch.manual_seed(0)
    model = PWMWorldModel(observation_dim=3, action_dim=1, latent_dim=64, units=(128, 128))
    actor, value = make_pwm_actor(64, 1), make_value_ensemble(64)
    env = TransformedEnv(GymEnv("Pendulum-v1"), Compose(ActionScaling(), WorldModelWrapper(model)))
    data = env.rollout(40)
    sampler = SliceSampler(slice_len=17, end_key=("next", "done"))
    replay_buffer = ReplayBuffer(storage=LazyTensorStorage(40), sampler=sampler, batch_size=4 * 17)
    replay_buffer.extend(data)
    return model, actor, value, env, replay_buffer


def test_the_lines_of_a_user_with_an_env_work_as_typed(pendulum):
    model, actor, value, env, replay_buffer = pendulum
    model_loss = PWMWorldModelLoss(model)
    loss = PWMLoss(actor, value, model, horizon=16)
    loss.make_value_estimator(ValueEstimators.TDLambda, gamma=0.99, lmbda=0.95)
    count = 0
    for batch in replay_buffer:
        batch = batch.reshape(-1, 17)
        losses = model_loss(batch)
        (losses["loss_consistency"] + losses["loss_reward"]).backward()
        losses = loss(batch[:, 0])
        losses["loss_actor"].backward()
        losses["loss_value"].backward()
        count += 1
        if count == 2:
            break
    assert count == 2
    for module in (model, loss):
        assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
    # One policy, real and imagined.
    assert env.rollout(5, actor)["latent"].shape == (5, 64)
    check_env_specs(env)


def test_an_action_outside_the_unit_box_names_the_transform_to_add(pendulum):
    model, actor, _, scaled, _ = pendulum
    env = TransformedEnv(GymEnv("Pendulum-v1"), WorldModelWrapper(model))
    with pytest.raises(ValueError, match=r"ActionScaling\(\)"):
        env.transform.imagined_env(batch_size=[2])
    with pytest.raises(ValueError, match=r"ActionScaling\(\)"):
        PWMWorldModelLoss(model)(env.rollout(40).unsqueeze(0))
    imagined = scaled.transform[1].imagined_env(batch_size=[2])
    assert imagined.rollout(3, actor).shape == (2, 3)


def test_an_env_of_float64_observations_goes_through_the_loop_as_it_is():
    pytest.importorskip("mujoco")
    model = PWMWorldModel(observation_dim=11, action_dim=3, latent_dim=16, units=(16,))
    actor, critics = make_pwm_actor(16, 3), make_value_ensemble(16)
    env = TransformedEnv(GymEnv("Hopper-v5"), WorldModelWrapper(model))
    with torch.no_grad():
        rollout = env.rollout(10, actor)
    assert rollout["observation"].dtype == torch.float64
    model_loss, loss = PWMWorldModelLoss(model), PWMLoss(actor, critics, model, horizon=2)
    losses = model_loss(rollout[:8].reshape(2, 4)).update(loss(rollout[:4]))
    sum(value for name, value in losses.items() if name.startswith("loss_")).backward()
    assert all(value.dtype == torch.float32 for value in losses.values())


def test_the_sampled_slices_are_left_unchanged(pendulum):
    model, actor, value, _, replay_buffer = pendulum
    batch = replay_buffer.sample().reshape(-1, 17)
    before = batch.clone()
    PWMWorldModelLoss(model)(batch)
    PWMLoss(actor, value, model, horizon=4)(batch[:, 0])
    assert set(batch.keys(True, True)) == set(before.keys(True, True))
    assert (batch == before).all()


def test_losses_serve_in_any_order_with_renamed_keys():
    """Keys of their own names: only set_keys is needed."""
    model = PWMWorldModel(observation_dim=3, action_dim=1, latent_dim=16, units=(16,))
    model.set_keys(observation="state", action="control")
    model_loss = PWMWorldModelLoss(model)
    model_loss.set_keys(observation="state", action="control")
    loss = PWMLoss(make_pwm_actor(16, 1), make_value_ensemble(16), model, horizon=2)
    loss.set_keys(observation="state")
    following = TensorDict({"state": torch.randn(4, 5, 3), "reward": torch.randn(4, 5, 1)}, [4, 5])
    batch = TensorDict({"state": torch.randn(4, 5, 3), "control": torch.zeros(4, 5, 1), "next": following}, [4, 5])
    assert model_loss(batch)["loss_reward"].isfinite()
    assert loss(batch[:, 0])["loss_actor"].isfinite()
