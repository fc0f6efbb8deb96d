"""The running range of values, as published."""

from __future__ import annotations

import pytest
import torch

from torchrl_pwm.modules import PercentileScale


def test_percentiles_values_and_scaled_numbers_are_the_published_ones(golden):
    fixture = golden("running_mean_std")["tdmpc2_running_scale"]
    scale = PercentileScale(**fixture["config"])
    for step, batch in enumerate(fixture["inputs"]):
        torch.testing.assert_close(scale.percentiles(batch), fixture["percentiles"][step].flatten())
        scale.update(batch)
        torch.testing.assert_close(scale.value, fixture["values"][step][0])
        torch.testing.assert_close(scale(batch), fixture["scaled"][step])


def test_the_range_is_never_counted_below_one():
    scale = PercentileScale(tau=1.0)
    scale.update(torch.zeros(50))
    assert scale.value == 1
    scale.update(torch.arange(101.0))
    assert scale.value == pytest.approx(90)
    scale.reset_parameters()
    assert scale.value == 1


@pytest.mark.parametrize("options", [{"low": 95.0, "high": 5.0}, {"high": 101.0}, {"tau": 0.0}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="found"):
        PercentileScale(**options)
