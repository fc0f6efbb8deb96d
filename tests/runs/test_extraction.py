"""Choice of the policy that an extraction keeps."""

from __future__ import annotations

import torch
from torch import nn

from torchrl_pwm.runs.evaluator import BestPolicy


def test_the_best_policy_is_that_of_the_best_score_and_then_of_the_best_return():
    actor = nn.Linear(1, 1)
    best = BestPolicy(actor)
    for place, (score, real_return) in enumerate([(0.8, 900.0), (1.0, 500.0), (1.0, 600.0), (0.6, 1000.0)]):
        nn.init.constant_(actor.weight, float(place))
        best.offer(score, real_return)
    other = BestPolicy(actor)
    other.load_state_dict(best.state_dict())
    other.offer(1.0, 599.0)
    other.restore()
    assert torch.equal(actor.weight, torch.tensor([[2.0]]))
