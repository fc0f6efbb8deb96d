"""Numbers outside their ranges are refused where they are given, for those who build without a configuration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.objectives import ValueEstimators

from torchrl_pwm import (
    FirstOrderLoss,
    PWMLoss,
    PWMTrainer,
    PWMWorldModel,
    PWMWorldModelLoss,
    SHACLoss,
    TDMPC2Loss,
    TDMPC2Model,
    TDMPC2Trainer,
    WorldModelTrainer,
    make_pwm_actor,
    make_value_ensemble,
)
from torchrl_pwm._utils.ranges import COUNT, SHARE, Range, check_range
from torchrl_pwm.data import make_online_replay
from torchrl_pwm.trainers import (
    PWMOptimizationStepper,
    SHACOptimizationStepper,
    TDMPC2OptimizationStepper,
    WorldModelOptimizationStepper,
    warm_start,
)


def model():
    return PWMWorldModel(5, 2, latent_dim=16, units=(16,), num_bins=11)


def pwm_loss(**options):
    return PWMLoss(make_pwm_actor(16, 2), make_value_ensemble(16), model(), horizon=2, **options)


def shac_loss():
    return SHACLoss(make_pwm_actor(5, 2, in_key="observation"), make_value_ensemble(5, in_key="observation"))


def tdmpc2_loss(**options):
    return TDMPC2Loss(TDMPC2Model(model()), **options)


def buffer():
    replay = ReplayBuffer(storage=LazyTensorStorage(8), batch_size=2)
    replay.extend(TensorDict({"observation": torch.zeros(8, 5), "action": torch.zeros(8, 2)}, [8]))
    return replay


def start_warm(**options):
    loss = pwm_loss()
    warm_start(loss, PWMOptimizationStepper(loss), buffer(), **options)


INTERVALS = ["iterations", "log_interval", "eval_interval", "save_interval"]
WRONG = [
    *((lambda **o: PWMTrainer(pwm_loss(), buffer(), **{"iterations": 1, **o}), name, 0) for name in INTERVALS),
    *((lambda **o: TDMPC2Trainer(tdmpc2_loss(), buffer(), **{"iterations": 1, **o}), name, -1) for name in INTERVALS),
    (lambda **o: WorldModelTrainer(PWMWorldModelLoss(model()), buffer(), **o), "iterations", 2.5),
    *((lambda **o: PWMOptimizationStepper(pwm_loss(), **o), name, 0) for name in ("actor_lr", "critic_lr")),
    *((lambda **o: PWMOptimizationStepper(pwm_loss(), **o), name, 0) for name in ("actor_clip", "critic_clip")),
    *(
        (lambda **o: PWMOptimizationStepper(pwm_loss(), **o), name, 0)
        for name in ("critic_iterations", "critic_batches")
    ),
    (lambda **o: PWMOptimizationStepper(pwm_loss(), **o), "final_lr", -1e-5),
    (lambda **o: PWMOptimizationStepper(pwm_loss(), **o), "iterations", -1),
    (lambda **o: SHACOptimizationStepper(shac_loss(), **o), "critic_iterations", 0),
    (lambda **o: WorldModelOptimizationStepper(PWMWorldModelLoss(model()), iterations=1, **o), "lr", math.nan),
    (lambda **o: WorldModelOptimizationStepper(PWMWorldModelLoss(model()), iterations=1, **o), "clip", -1),
    (lambda **o: TDMPC2OptimizationStepper(tdmpc2_loss(), **o), "lr", math.inf),
    (lambda **o: TDMPC2OptimizationStepper(tdmpc2_loss(), **o), "encoder_lr_scale", -0.1),
    (lambda **o: pwm_loss().make_value_estimator(ValueEstimators.TDLambda, **o), "gamma", 1.5),
    (lambda **o: pwm_loss().make_value_estimator(ValueEstimators.TDLambda, **o), "lmbda", -0.1),
    (lambda **o: shac_loss().make_value_estimator(ValueEstimators.TD0, **o), "gamma", math.nan),
    (lambda **o: FirstOrderLoss(make_pwm_actor(16, 2), make_value_ensemble(16), **o), "loss_function", "huber"),
    (lambda **o: PWMWorldModelLoss(model(), **o), "rho", 0),
    (lambda **o: PWMWorldModelLoss(model(), **o), "reward_coef", -1),
    (lambda **o: tdmpc2_loss(**o), "rho", 1.5),
    (lambda **o: tdmpc2_loss(**o), "entropy_coef", math.inf),
    *((lambda **o: make_online_replay(100, **o), name, 0) for name in ("slice_len", "batch_size")),
    (lambda **o: make_pwm_actor(16, **o), "action_dim", 0),
    (lambda **o: make_value_ensemble(16, **o), "num_nets", 0),
    (lambda **o: PWMWorldModel(observation_dim=5, **o), "action_dim", 0),
    (start_warm, "behavior_updates", -1),
    (start_warm, "value_updates", 0.5),
]


@pytest.mark.parametrize(("build", "name", "value"), WRONG, ids=[f"{name}={value}" for _, name, value in WRONG])
def test_a_number_outside_its_range_is_refused(build, name, value):
    with pytest.raises(ValueError, match=rf"{name} must be .*, found"):
        build(**{name: value})


@pytest.mark.parametrize("value", [1, 1.0, np.int64(1), np.float32(1), torch.tensor(1)])
def test_numbers_of_other_libraries_are_numbers(value):
    check_range(SHARE, share=value)
    check_range(COUNT, count=value)


@pytest.mark.parametrize("value", [True, "1", None, [1], math.nan, math.inf, 0.5, 0])
def test_what_is_no_count_is_none(value):
    with pytest.raises(ValueError, match=r"count must be a whole number of at least 1, found"):
        check_range(COUNT, count=value)


def test_a_range_says_what_it_allows():
    assert str(Range(above=0, below=2)) == "a number above 0 and below 2"
    assert str(Range(least=1, whole=True)) == "a whole number of at least 1"
    assert str(Range()) == "a number"
