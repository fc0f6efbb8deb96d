from __future__ import annotations

import numpy as np
import pytest
import torch

from torchrl_pwm.envs import MT30, MT80, TaskSet
from torchrl_pwm.evaluation import normalized_score, reference_average, reference_score, reference_scores


def test_dm_control_is_scored_by_return_and_meta_world_by_success():
    assert normalized_score("cheetah-run", 250.0) == 0.25
    assert normalized_score("mw-push", 1999.0, success=0.3) == 0.3
    torch.testing.assert_close(normalized_score("cheetah-run", torch.tensor([0.0, 1000.0])), torch.tensor([0.0, 1.0]))
    assert normalized_score("mw-push", np.zeros(2), np.array([True, False])).tolist() == [1.0, 0.0]


def test_meta_world_score_without_success_is_refused():
    with pytest.raises(ValueError, match="mw-push is scored by success"):
        normalized_score("mw-push", 1999.0)


@pytest.mark.parametrize("task_set, table", [("mt30", MT30), ("mt80", MT80)])
def test_every_task_has_published_scores_whose_mean_is_the_published_average(task_set, table):
    for method, average in {"mt30": {"pwm": 0.768, "tdmpc2": 0.598}, "mt80": {"pwm": 0.818, "tdmpc2": 0.678}}[
        task_set
    ].items():
        scores = reference_scores(task_set, method)
        assert set(scores) == set(table.names)
        assert np.mean(list(scores.values())) == pytest.approx(average, abs=5e-4)
        assert reference_average(task_set, method) == pytest.approx(average, abs=5e-4)


def test_suite_averages_agree_with_the_tasks():
    for part, suite in (("dm_control", "dm_control"), ("metaworld", "metaworld")):
        mean = np.mean([reference_score(spec.name) for spec in MT80 if spec.suite.startswith(suite)])
        assert reference_average("mt80", part=part) == pytest.approx(mean, abs=1e-4)
    assert reference_average("mt80", part="interquartile_mean") == pytest.approx(0.913, abs=5e-4)


def test_published_score_depends_on_set_and_method():
    assert reference_score("walker-run", "mt30", "pwm") == 0.857758
    assert reference_score("walker-run", MT80, "pwm") == 0.824062
    assert reference_score("walker-run", "mt80", "TD-MPC2") == 0.527329


def test_table_of_ones_own_is_answered_from_mt80():
    pair = TaskSet("pair", ["walker-run", "mw-reach"])
    assert reference_score("walker-run", pair) == reference_score("walker-run", "mt80")


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="did you mean 'walker-run'"):
        reference_score("walker_run")
    with pytest.raises(ValueError, match="mt30"):
        reference_score("mw-reach", "mt30")
    with pytest.raises(ValueError, match="unknown method 'sac'"):
        reference_score("walker-run", method="sac")
    with pytest.raises(ValueError, match="unknown part"):
        reference_average("mt80", part="walkers")
    with pytest.raises(ValueError, match="mt30 has no metaworld average of pwm"):
        reference_average("mt30", part="metaworld")
