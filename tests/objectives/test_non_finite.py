"""Batches that are empty or hold numbers that are not finite, in a plain loop without steppers."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from tests.modules import tdmpc2
from tests.objectives.test_loss_checklist import (
    ACTION,
    BATCH,
    LATENT,
    OBSERVATION,
    make_model,
    make_pwm,
    sequences,
    starts,
)
from torchrl_pwm import (
    FirstOrderLoss,
    ObservationNormalizer,
    PWMWorldModel,
    PWMWorldModelLoss,
    SHACLoss,
    TDMPC2Loss,
    make_pwm_actor,
    make_value_ensemble,
)
from torchrl_pwm.modules import PercentileScale, RunningMoments

BAD = [float("nan"), float("inf"), 3e38]


@pytest.mark.parametrize("value", BAD)
def test_running_statistics_keep_what_they_have_when_a_batch_is_not_finite(value: float) -> None:
    moments, scale, normalizer = RunningMoments((2,)), PercentileScale(tau=0.5), ObservationNormalizer(2)
    good, bad = torch.randn(20, 2), torch.randn(20, 2)
    bad[3, 1] = value
    moments.update(good)
    scale.update(good * 100)
    normalizer.update(TensorDict({"observation": good}, [20]))
    states = [{k: v.clone() for k, v in module.state_dict().items()} for module in (moments, scale, normalizer)]
    moments.update(bad)
    if value != 3e38:  # a large number moves a percentile within its bounds
        scale.update(bad)
    normalizer.update(TensorDict({"observation": bad}, [20]))
    for module, state in zip((moments, scale, normalizer), states, strict=True):
        assert all(torch.equal(module.state_dict()[key], saved) for key, saved in state.items())


def test_running_statistics_take_no_notice_of_an_empty_batch() -> None:
    moments, scale = RunningMoments(), PercentileScale()
    moments.update(torch.zeros(0))
    scale.update(torch.zeros(0))
    assert (moments.mean, moments.var, scale.value) == (0, 1, 1)


def shac_window(rows: int) -> TensorDict:
    td = TensorDict({"observation": torch.randn(rows, 3, OBSERVATION)}, [rows, 3])
    step = TensorDict({"observation": torch.randn(rows, 3, OBSERVATION), "reward": torch.randn(rows, 3, 1)}, [rows, 3])
    td["next"] = step
    normalizer = ObservationNormalizer(OBSERVATION)
    for part in (td, step):
        normalizer(part)
    return td


def cases():
    model = PWMWorldModel(OBSERVATION, ACTION, latent_dim=LATENT, units=(12,), normalize_rewards=True)
    key = "normalized_observation"
    networks = make_pwm_actor(OBSERVATION, ACTION, in_key=key), make_value_ensemble(OBSERVATION, in_key=key)
    loss = SHACLoss(*networks, horizon=3, normalizer=ObservationNormalizer(OBSERVATION))
    return {
        "pwm": (make_pwm(), starts(), "observation"),
        "model": (PWMWorldModelLoss(make_model()), sequences(), ("next", "reward")),
        "normalised": (PWMWorldModelLoss(model), sequences(), ("next", "reward")),
        "tdmpc2": (TDMPC2Loss(tdmpc2.make_model()), tdmpc2_sequences(), ("next", "reward")),
        "shac": (loss, shac_window(BATCH), "observation"),
        "first_order": (FirstOrderLoss(*networks), shac_window(BATCH), ("next", "reward")),
    }


def tdmpc2_sequences() -> TensorDict:
    from tests.objectives.test_tdmpc2 import sequences as tdmpc2_batch

    return tdmpc2_batch()


NAMES = ("pwm", "model", "normalised", "tdmpc2", "shac", "first_order")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", NAMES)
def test_a_loss_names_what_is_not_finite_and_its_statistics_stay(name: str, value: float) -> None:
    loss, good, key = cases()[name]
    loss(good)
    model = getattr(loss, "world_model", loss)
    before = {k: v.clone() for module in (loss, model) for k, v in module.state_dict().items()}
    bad = good.clone()
    bad[key][1] = value
    named = key if isinstance(key, str) else key[-1]
    with pytest.raises(FloatingPointError, match=rf"non-finite .*{named}.* in 1 of {len(bad)} rows"):
        loss(bad)
    after = {k: v for module in (loss, model) for k, v in module.state_dict().items()}
    assert (
        all(v.isfinite().all() for v in after.values() if isinstance(v, torch.Tensor)) and after.keys() == before.keys()
    )
    assert loss(good).values() is not None


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_is_named(name: str) -> None:
    loss, good, _ = cases()[name]
    with pytest.raises(ValueError, match="at least one"):
        loss(good[:0])
