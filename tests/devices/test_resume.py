"""After a resume everything that a trainer learns with is on one device, whatever device the checkpoint came from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer

from tests.devices.parts import LATENT, META, make_model, make_policy_loss, make_tdmpc2, sequences
from tests.devices.walking import assert_one_device
from torchrl_pwm import (
    ObservationNormalizer,
    OnlinePWMTrainer,
    PWMLoss,
    PWMTrainer,
    PWMWorldModel,
    PWMWorldModelLoss,
    SHACLoss,
    TDMPC2Loss,
    TDMPC2Model,
    WorldModelTrainer,
    make_pwm_actor,
    make_value_ensemble,
)
from torchrl_pwm.data import make_online_replay
from torchrl_pwm.envs.random_policy import RandomPolicy
from torchrl_pwm.envs.simulators import AnalyticEnv
from torchrl_pwm.runs.evaluator import BestPolicy
from torchrl_pwm.trainers import OnlineTDMPC2Trainer, SHACTrainer, TDMPC2Trainer
from torchrl_pwm.trainers.averaging import PolicyAverage

OPTIONS: dict[str, Any] = {"iterations": 2, "log_interval": 1, "progress_bar": False}


def replay_of(name):
    replay = ReplayBuffer(storage=LazyTensorStorage(8), batch_size=4, generator=torch.Generator())
    replay.extend(sequences(name, "cpu", batch=8))
    return replay


def world_model(device, **options):
    loss = PWMWorldModelLoss(make_model("all", device))
    return WorldModelTrainer(loss, replay_of("all"), device=device, **OPTIONS, **options)


def policy_with_average(device, **options):
    loss = make_policy_loss(make_model("tasks", device))
    average, best = PolicyAverage(loss.actor_network, 0.9), BestPolicy(loss.actor_network)

    def evaluate():
        best.offer(1.0, 1.0)
        return {}

    trainer = PWMTrainer(
        loss, replay_of("tasks"), average=average, device=device, evaluate=evaluate, **OPTIONS, **options
    )
    trainer.components["best_policy"] = best
    return trainer


def shac(device, **options):
    env, key = AnalyticEnv("cartpole_swingup", 4, requires_grad=True, device=device), "normalized_observation"
    actor = make_pwm_actor(5, 1, units=(16,), in_key=key).to(device)
    critics = make_value_ensemble(5, units=(16,), in_key=key).to(device)
    loss = SHACLoss(actor, critics, horizon=3, normalizer=ObservationNormalizer(5))
    return SHACTrainer(loss, env, **OPTIONS, **options)


def tdmpc2(device, **options):
    return TDMPC2Trainer(TDMPC2Loss(make_tdmpc2("all", device)), replay_of("all"), device=device, **OPTIONS, **options)


def collected():
    """Random steps of an env on the CPU, which may be collected for networks anywhere."""
    env = AnalyticEnv("cartpole_swingup", 2)
    collector = Collector(env, RandomPolicy(1, seed=0), frames_per_batch=16)
    return collector, make_online_replay(1000, slice_len=3, batch_size=4)


def online_pwm(device, **options):
    model = PWMWorldModel(5, 1, latent_dim=LATENT, units=(16,), normalize_rewards=True).to(device)
    actor, critics = make_pwm_actor(LATENT, 1, units=(16,)), make_value_ensemble(LATENT, units=(16,))
    loss = PWMLoss(actor.to(device), critics.to(device), model, horizon=3)
    losses = loss, PWMWorldModelLoss.single_task(model)
    return OnlinePWMTrainer(*losses, *collected(), normalize_observations=True, **OPTIONS, **options)


def online_tdmpc2(device, **options):
    model = TDMPC2Model(PWMWorldModel(5, 1, latent_dim=LATENT, units=(16,), num_bins=11), units=(16,), num_q=3)
    return OnlineTDMPC2Trainer(TDMPC2Loss(model.to(device)), *collected(), **OPTIONS, **options)


KINDS = (world_model, policy_with_average, shac, tdmpc2, online_pwm, online_tdmpc2)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.fixture
def checkpoint(kind, tmp_path):
    """The folder of a run that the CPU made."""
    kind("cpu", save_folder=tmp_path).train()
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*non-meta parameter.*is a no-op")
def test_a_run_of_the_cpu_resumes_elsewhere_with_everything_there(kind, checkpoint):
    trainer = kind(META)
    trainer.resume(checkpoint)
    assert trainer.iteration == 2
    assert_one_device(trainer, META)


def test_a_resumed_run_trains_on_where_it_was(kind, checkpoint, device):
    trainer = kind(device, save_folder=checkpoint)
    trainer.resume()
    assert_one_device(trainer, device)
    trainer.iterations = 4
    trainer.train()
    assert_one_device(trainer, device)
    again = kind(device)
    again.resume(checkpoint)
    assert again.iteration == 4
    assert_one_device(again, device)


# Training on meta after a resume, without a read: here, once the updates are pure functions of tensors.


def test_the_walk_finds_what_stayed_behind():
    trainer = policy_with_average("cpu")
    trainer.train()
    stray = next(iter(trainer.optimization_stepper.actor_optimizer.state.values()))
    stray["exp_avg"] = stray["exp_avg"].to(META)
    with pytest.raises(AssertionError):
        assert_one_device(trainer, "cpu")


def test_a_policy_average_goes_on_where_the_network_is():
    network, state = torch.nn.Linear(2, 2).to(META), PolicyAverage(torch.nn.Linear(2, 2), 0.9).state_dict()
    average = PolicyAverage(network, 0.9)
    average.load_state_dict(state)
    average.update()
    with average.applied():
        assert network(torch.ones(1, 2, device=META)).device.type == META


def test_the_best_policy_is_kept_where_the_networks_are():
    saved, best = BestPolicy(torch.nn.Linear(2, 2)), BestPolicy(torch.nn.Linear(2, 2).to(META))
    saved.offer(1.0, 2.0)
    best.load_state_dict(saved.state_dict())
    assert best.result == (1.0, 2.0)
    assert {weight.device.type for weight in best.weights.values()} == {META}


def test_observation_statistics_are_taken_from_a_replay_on_another_device():
    model = PWMWorldModel(5, 1, latent_dim=LATENT, units=(16,)).to(META)
    actor, critics = make_pwm_actor(LATENT, 1).to(META), make_value_ensemble(LATENT).to(META)
    loss = PWMLoss(actor, critics, model, horizon=2)
    trainer = OnlinePWMTrainer(loss, PWMWorldModelLoss(model), *collected(), normalize_observations=True, **OPTIONS)
    data = ReplayBuffer(storage=LazyTensorStorage(8), batch_size=4)
    data.extend(TensorDict({"observation": torch.randn(8, 5)}, [8]))
    trainer.set_statistics(data)
    assert model.observation_mean.device.type == META
