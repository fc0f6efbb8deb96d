"""Speed of the two updates, each as a ratio to the matrix products it cannot avoid. Run with ``make speed``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from benchmarks.speed.products import bare_run, mlp_products, side_by_side
from torchrl_pwm import PWMLoss, PWMWorldModel, PWMWorldModelLoss, make_pwm_actor, make_value_ensemble
from torchrl_pwm.trainers import PWMOptimizationStepper, WorldModelOptimizationStepper

TASKS, OBSERVATION, ACTION, EMBEDDING, LATENT, UNITS, ENCODER, BINS = 80, 39, 6, 96, 512, 512, 256, 101
HORIZON, CRITICS, ACTOR, CRITIC = 16, 3, (400, 200, 100), (400, 200)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model() -> PWMWorldModel:
    torch.manual_seed(0)
    return PWMWorldModel.from_preset("5M", observation_dim=OBSERVATION, action_dim=ACTION, num_tasks=TASKS)


def report(benchmark: Any, update: Callable[[], object], bare: Callable[[], object]) -> None:
    found = side_by_side(update, bare)
    benchmark.extra_info.update({name: round(value, 3) for name, value in found.items()})
    benchmark.pedantic(update, rounds=3, warmup_rounds=0)
    print(f"\n{benchmark.name}: {found['update_seconds']:.3f} s, {found['ratio']:.2f} x the bare matrix products")


def test_pwm_update(benchmark: Any, model: PWMWorldModel, batch: int = 512) -> None:
    """One actor step and 8 x 4 critic minibatches; 5M preset, batch 512, H = 16, three critics."""
    loss = PWMLoss(make_pwm_actor(LATENT, ACTION), make_value_ensemble(LATENT), model, horizon=HORIZON)
    stepper = PWMOptimizationStepper(loss)
    start = TensorDict({"observation": torch.randn(batch, OBSERVATION), "task": torch.full((batch,), 3)}, [batch])

    joint, rows = LATENT + ACTION, batch * HORIZON
    critic = [LATENT, *CRITIC, 1]
    products = [
        *mlp_products(batch, [OBSERVATION + EMBEDDING, ENCODER, LATENT]),
        *mlp_products(batch, [EMBEDDING, UNITS], 2),
        *mlp_products(batch, [LATENT, *ACTOR, ACTION], HORIZON, weights=True, inputs=True),
        *mlp_products(batch, [joint, UNITS, UNITS, LATENT], HORIZON, inputs=True, first=True),
        *mlp_products(rows, [joint, UNITS, UNITS, BINS], inputs=True, first=True),
        *mlp_products(batch, critic, CRITICS, inputs=True, first=True),
        *mlp_products(rows, critic, CRITICS),
        *mlp_products(rows // 4, critic, 8 * 4 * CRITICS, weights=True, inputs=True),
    ]
    report(benchmark, lambda: stepper.update(start), bare_run(products))


def test_world_model_update(benchmark: Any, model: PWMWorldModel, batch: int = 128) -> None:
    """One world-model step on 128 sequences of 16 transitions, 5M preset (published: 1024 sequences)."""
    stepper = WorldModelOptimizationStepper(PWMWorldModelLoss(model), iterations=1000)
    shape = (batch, HORIZON)
    sequences = TensorDict(
        {
            "observation": torch.randn(*shape, OBSERVATION),
            "action": torch.rand(*shape, ACTION) * 2 - 1,
            "task": torch.full(shape, 3),
            "next": TensorDict(
                {"observation": torch.randn(*shape, OBSERVATION), "reward": torch.rand(*shape, 1)}, shape
            ),
        },
        shape,
    )
    joint, rows, encoder = LATENT + ACTION, batch * HORIZON, [OBSERVATION + EMBEDDING, ENCODER, LATENT]
    products = [
        *mlp_products(rows, encoder),
        *mlp_products(batch, encoder, weights=True, inputs=True),
        *mlp_products(batch, [EMBEDDING, UNITS], 2, weights=True, inputs=True, first=True),
        *mlp_products(batch, [joint, UNITS, UNITS, LATENT], HORIZON, weights=True, inputs=True, first=True),
        *mlp_products(rows, [joint, UNITS, UNITS, BINS], weights=True, inputs=True, first=True),
    ]
    report(benchmark, lambda: stepper.update(sequences), bare_run(products))
