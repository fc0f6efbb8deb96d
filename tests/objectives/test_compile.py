"""``torch.compile(fullgraph=True)`` of the losses: no graph breaks, and the numbers of eager mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from tests.objectives.test_loss_checklist import (
    BATCH,
    TASKS,
    ending_rollouts,
    flagged_sequences,
    make_first_order,
    make_model,
    make_pwm,
    make_tdmpc2,
    sequences,
    starts,
)
from torchrl_pwm import PWMWorldModelLoss

Call = Callable[[TensorDictBase], TensorDictBase]
# A loss of several tasks has all that one of a single task has.
SINGLE = pytest.param(0, marks=pytest.mark.slow, id="single")
TASK_COUNTS = pytest.mark.parametrize("num_tasks", [0, TASKS], ids=["single", "multitask"])


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def losses_and_gradients(
    loss: nn.Module, call: Call, td: TensorDictBase, leaves: Sequence[Tensor]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """From the same noise and return scale each time."""
    state = {key: value.clone() for key, value in loss.state_dict().items()}
    for leaf in leaves:
        leaf.grad = None
    torch.manual_seed(7)
    out = call(td)
    sum(value for key, value in out.items() if key.startswith("loss_")).backward()
    result = {key: value.detach().clone() for key, value in out.items()}
    moments = {f"after.{key}": value.clone() for key, value in loss.state_dict().items() if "moments" in key}
    loss.load_state_dict(state)
    assert all(leaf.grad is not None for leaf in leaves)
    return result | moments, [leaf.grad.clone() for leaf in leaves]


def check(
    loss: nn.Module, td: TensorDictBase, leaves: Sequence[Tensor] | None = None, backend: str = "aot_eager"
) -> None:
    """Losses, metrics, return scale and the gradients of ``leaves`` (all parameters) agree with eager mode."""
    leaves = list(loss.parameters()) if leaves is None else leaves
    expected, expected_gradients = losses_and_gradients(loss, loss, td, leaves)
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    result, gradients = losses_and_gradients(loss, compiled, td, leaves)
    assert result.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(result[key], value, rtol=1e-5, atol=1e-5)
    assert any(gradient.any() for gradient in expected_gradients)
    for gradient, value in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_tasks", [SINGLE, pytest.param(TASKS, id="multitask")])
def test_pwm_loss_compiles_whole(num_tasks: int) -> None:
    loss = make_pwm(num_tasks)
    loss.horizon = 2
    check(loss, starts(num_tasks))


@TASK_COUNTS
@pytest.mark.parametrize("ends", ["never", "dones", "padding"])
def test_world_model_loss_compiles_whole(num_tasks: int, ends: str) -> None:
    loss, td = PWMWorldModelLoss(make_model(num_tasks)), sequences(num_tasks)[:, :3]
    if ends == "dones":
        td["next", "done"] = torch.rand(*td.shape, 1) < 0.3
    elif ends == "padding":
        td["collector", "mask"] = torch.arange(td.shape[1]).expand(td.shape) < torch.randint(1, 4, (BATCH, 1))
    check(loss, td)


@pytest.mark.parametrize(
    ("num_tasks", "episodic"),
    [
        pytest.param(0, False, marks=pytest.mark.slow, id="single"),
        pytest.param(TASKS, True, id="multitask-episodic"),
    ],
)
def test_tdmpc2_loss_compiles_whole(num_tasks: int, episodic: bool) -> None:
    loss, td = make_tdmpc2(num_tasks, episodic), flagged_sequences(num_tasks)[:, :2]
    check(loss, td, [parameter for parameter in loss.parameters() if parameter.requires_grad])


@pytest.mark.parametrize("bootstrap", ["standard", "reference"])
def test_first_order_loss_of_envs_that_end_compiles_whole(bootstrap: str) -> None:
    loss, td = make_first_order(bootstrap=bootstrap), ending_rollouts()[:, :3].detach()
    inputs = [td["next", "reward"].requires_grad_(), td["next", "latent"].requires_grad_()]
    check(loss, td, [*loss.value_network_params.parameters(), *inputs])


@pytest.mark.slow
def test_inductor_gives_the_numbers_of_eager_mode() -> None:
    loss = make_pwm()
    loss.horizon = 2
    with torch._inductor.config.patch(fallback_random=True):
        check(loss, starts(), backend="inductor")
