"""Value targets and running moments agree with the published implementation."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.objectives.utils import ValueEstimators

from tests.objectives.build import FORWARD, time_major
from torchrl_pwm import FirstOrderLoss, make_pwm_actor
from torchrl_pwm.modules import RunningMoments

TD_CASES = ["case0_end", "case1_mid", "case2_mid", "case3_end", "case4_end", "case5_first", "case6_dense"]
STREAMS = ["scalar_stream_shape1", "vector", "column"]


@pytest.mark.parametrize("case", TD_CASES)
@pytest.mark.parametrize("estimator", [ValueEstimators.TDLambda, ValueEstimators.TD0])
def test_value_target_is_the_published_recursion(golden, case: str, estimator: ValueEstimators) -> None:
    recorded = golden("td_lambda")[case]
    config, inputs = recorded["config"], recorded["inputs"]

    def batch_major(name: str) -> torch.Tensor:
        return inputs[name].transpose(0, 1).unsqueeze(-1)

    identity = TensorDictModule(torch.nn.Identity(), ["known"], ["state_value"])
    loss = FirstOrderLoss(make_pwm_actor(2, 1), identity)
    is_lambda = estimator is ValueEstimators.TDLambda
    loss.make_value_estimator(estimator, gamma=config["gamma"], **({"lmbda": config["lam"]} if is_lambda else {}))
    step = {"known": batch_major("next_value"), "reward": batch_major("reward"), "done": batch_major("done_mask") > 0}
    shape = [config["batch"], config["horizon"]]
    rollout = TensorDict({"known": batch_major("next_value"), "next": TensorDict(step, shape)}, shape)
    expected = recorded["outputs"]["td_lambda" if is_lambda else "one_step"]
    torch.testing.assert_close(time_major(loss.value_target(rollout)), expected, **FORWARD)


@pytest.mark.parametrize("stream", STREAMS)
def test_running_moments_are_the_published_ones(golden, stream: str) -> None:
    recorded = golden("running_mean_std")[stream]
    moments = RunningMoments(tuple(recorded["config"]["shape"]))
    updates, states = recorded["inputs"]["updates"], recorded["outputs"]["states"]
    for number in sorted(updates, key=int):
        moments.update(updates[number])
        for name in ("mean", "var"):
            torch.testing.assert_close(getattr(moments, name), states[number][name], **FORWARD)
        torch.testing.assert_close(float(moments.count), float(states[number]["count"]), **FORWARD)
    query = recorded["inputs"]["query"]
    torch.testing.assert_close(moments.normalize(query, clip=5.0), recorded["outputs"]["normalized"], **FORWARD)
    torch.testing.assert_close(moments.unnormalize(query), recorded["outputs"]["unnormalized"], **FORWARD)
