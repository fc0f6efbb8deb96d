"""Whether latents still tell states apart, and the alarm where they do not."""

from __future__ import annotations

import warnings

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, ReplayBuffer

from torchrl_pwm import PWMWorldModel, PWMWorldModelLoss, WorldModelTrainer
from torchrl_pwm.evaluation import RepresentationWatch, collapse_warning, representation, representation_by_task
from torchrl_pwm.trainers import WorldModelOptimizationStepper


def drifting(episodes, steps, seed):
    """Sequences of states that are pushed at random, with a reward in few of them."""
    draws = torch.Generator().manual_seed(seed)
    states = [torch.randn(episodes, 4, generator=draws)]
    for _ in range(steps):
        states.append(0.5 * states[-1] + 0.75**0.5 * torch.randn(episodes, 4, generator=draws))
    observation, batch = torch.stack(states, 1), [episodes, steps]
    reward = (observation[:, 1:].square().sum(-1, keepdim=True) < 0.1).float()
    following = TensorDict({"observation": observation[:, 1:], "reward": reward}, batch)
    action = torch.rand(*batch, 2, generator=draws) * 2 - 1
    return TensorDict({"observation": observation[:, :-1], "action": action, "next": following}, batch)


def train(seed, **options):
    """A residual model after 200 updates; what was measured along the way, and its warnings."""
    torch.manual_seed(seed)
    model = PWMWorldModel(4, 2, latent_dim=32, encoder_units=(32,), units=(32, 32), residual=True, **options)
    model.set_observation_statistics(torch.zeros(4), torch.ones(4))
    data, held_out = drifting(512, 8, 0), drifting(256, 1, 1)
    replay = ReplayBuffer(storage=LazyTensorStorage(512), batch_size=64)
    replay.extend(data)
    loss = PWMWorldModelLoss(model, reward_coef=1.0)
    trainer = WorldModelTrainer(
        loss,
        replay,
        iterations=200,
        optimization_stepper=WorldModelOptimizationStepper(loss, iterations=200, lr=1e-3, encoder_lr_scale=1.0),
        evaluate=RepresentationWatch(model, held_out, probe_interval=2, warn_from=2),
        eval_interval=50,
        progress_bar=False,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    said = [str(warning.message) for warning in caught if "collapsed" in str(warning.message)]
    return model, held_out, trainer.latest, said


@pytest.mark.parametrize("seed", [0, 1])
def test_with_a_decoder_the_latent_of_a_sparse_reward_stays_readable(seed):
    model, held_out, latest, said = train(seed, decoder=True)
    found = representation(model, held_out)
    assert found["observation_explained"] > 0.8 and found["decoder_explained"] > 0.3
    assert found["latent_spread"] > 0.01
    assert not said and {"latent_spread", "observation_explained", "decoder_explained"} <= latest.keys()


@pytest.mark.parametrize("seed", [0, 1])
def test_without_one_it_collapses_and_the_alarm_sounds_once(seed):
    model, held_out, latest, said = train(seed)
    found = representation(model, held_out)
    assert found["observation_explained"] < 0.2 and found["latent_spread"] < 0.005
    (warning,) = said
    assert "reads 0% of the observations' variance" in warning and "decoder=True" in warning
    assert latest["observation_explained"] < 0.2


def test_measuring_leaves_no_trace_in_a_training():
    model, held_out = PWMWorldModel(4, 2, latent_dim=16, units=(12,)), drifting(64, 2, 0)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    found = representation(model, held_out)
    assert torch.equal(torch.rand(3), expected)
    assert representation(model, held_out) == found
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_task_whose_latents_are_alike_is_named_beside_others_that_are_not():
    torch.manual_seed(0)
    model = PWMWorldModel(4, 2, latent_dim=16, encoder_units=(12,), num_tasks=2, task_dim=4)
    model.set_observation_statistics(torch.zeros(2, 4), torch.tensor([[1.0] * 4, [1e6] * 4]))
    for parameter in model.encoder_network.parameters():
        torch.nn.init.normal_(parameter)
    states = TensorDict({"observation": torch.randn(400, 4), "task": torch.arange(400) % 2}, [400])
    found = representation_by_task(model, states)
    assert found[0]["observation_explained"] > 0.5 > found[1]["observation_explained"]
    assert found[1]["latent_spread"] < 1e-4 < found[0]["latent_spread"]
    warning = collapse_warning({"walk": found[0], "reach": found[1]})
    assert warning is not None and "1 of 2 tasks (worst: reach)" in warning


def test_entries_that_never_vary_and_steps_that_were_added_do_not_count():
    torch.manual_seed(0)
    model, states = PWMWorldModel(4, 2, latent_dim=16), drifting(128, 4, 0)
    states["observation"][..., 3] = 5.0
    expected = representation(model, states)["observation_explained"]
    assert expected > 0.3
    mask = torch.ones(128, 4, dtype=torch.bool)
    mask[:, 3] = False
    states["observation"][:, 3] = 1e4
    states["collector"] = TensorDict({"mask": mask}, [128, 4])
    assert representation(model, states)["observation_explained"] > 0.3


def test_a_watch_that_goes_on_measures_when_one_without_a_break_would():
    model, held_out = PWMWorldModel(4, 2, latent_dim=16, units=(12,)), drifting(64, 2, 0)
    watch, again = (RepresentationWatch(model, held_out, probe_interval=3, warn_from=99) for _ in range(2))
    probed = ["observation_explained" in watch() for _ in range(2)]
    again.load_state_dict(watch.state_dict())
    probed += ["observation_explained" in again() for _ in range(3)]
    assert probed == [True, False, False, True, False]
