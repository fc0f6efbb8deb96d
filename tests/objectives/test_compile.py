"""``torch.compile(fullgraph=True)`` of the losses: no graph breaks, and the numbers of eager mode."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDictBase

from tests.objectives.test_loss_checklist import ACTION, BATCH, HORIZON, TASKS, make_model, make_pwm, sequences, starts
from torchrl_pwm import PWMWorldModelLoss


def gradients(loss: torch.nn.Module, call: Callable[[], TensorDictBase]) -> tuple[dict, list[torch.Tensor]]:
    state = {key: value.clone() for key, value in loss.state_dict().items()}
    loss.zero_grad()
    out = call()
    sum(value for key, value in out.items() if key.startswith("loss_")).backward()
    found = [p.grad.clone() for p in loss.parameters() if p.grad is not None]
    loss.load_state_dict(state)
    return {key: value.detach().clone() for key, value in out.items()}, found


def compare(loss: torch.nn.Module, call: Callable[[], TensorDictBase], compiled: Callable[[], TensorDictBase]) -> None:
    eager, eager_gradients = gradients(loss, call)
    found, found_gradients = gradients(loss, compiled)
    assert len(eager_gradients) == len(found_gradients) > 0
    for key, value in eager.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)
    for a, b in zip(found_gradients, eager_gradients):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("num_tasks", [0, TASKS])
def test_pwm_loss_compiles_whole(num_tasks: int) -> None:
    loss, td = make_pwm(num_tasks), starts(num_tasks)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")

    def seeded(function) -> TensorDictBase:
        torch.manual_seed(7)
        return function(td)

    compare(loss, lambda: seeded(loss), lambda: seeded(compiled))


@pytest.mark.parametrize("num_tasks", [0, TASKS])
def test_world_model_loss_compiles_whole(num_tasks: int) -> None:
    loss, td = PWMWorldModelLoss(make_model(num_tasks)), sequences(num_tasks)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    compare(loss, lambda: loss(td), lambda: compiled(td))


def test_first_order_loss_of_rows_that_end_compiles_whole() -> None:
    loss = make_pwm()
    rollout = loss.imagine(starts(), torch.randn(HORIZON, BATCH, ACTION)).detach()
    done = torch.rand(BATCH, HORIZON, 1) < 0.4
    rollout["next", "done"], rollout["next", "terminated"] = done, done & (torch.rand_like(done.float()) < 0.5)
    rollout["next", "reward"].requires_grad_()
    compiled = torch.compile(loss._losses, fullgraph=True, backend="aot_eager")
    compare(loss, lambda: loss._losses(rollout), lambda: compiled(rollout))


def test_inductor_gives_the_numbers_of_eager_mode() -> None:
    loss, td = make_pwm(), starts()
    loss.horizon = 1
    noise = torch.randn(1, BATCH, ACTION)

    def actor_loss(td: TensorDictBase) -> TensorDictBase:
        return td.empty().set("loss_actor", loss.actor_loss(loss.imagine(td, noise)).expand(BATCH))

    compiled = torch.compile(actor_loss, fullgraph=True)

    def total(function) -> TensorDictBase:
        return {"loss_actor": function(td)["loss_actor"].mean()}

    compare(loss, lambda: total(actor_loss), lambda: total(compiled))
