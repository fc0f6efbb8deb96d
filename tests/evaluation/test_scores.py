"""Scores, the papers' numbers and their averages, and a run beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.evaluation.rows import full_row
from torchrl_pwm.envs import MT30, MT80, TaskSet
from torchrl_pwm.evaluation import (
    compare_with_published,
    normalized_score,
    published_results,
    reference_average,
    reference_score,
    reference_scores,
)


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


# As the published notebook prints them, rounded to whole returns; and the last points of the published curves.
@pytest.mark.parametrize(
    "task, ppo, sac, shac, tdmpc2, pwm, tdmpc2_final, pwm_final",
    [
        ("hopper", 4742, 4126, 4837, 4027, 5680, (3430, 1861), (5649, 48)),
        ("ant", 6605, 6274, 7661, 6592, 9672, (6413, 420), (9546, 933)),
        ("anymal", 12029, 11788, 15157, 11787, 13928, (9020, 4478), (14073, 1050)),
        ("humanoid", 7293, 7584, 8387, 7476, 8661, (7032, 1484), (8773, 653)),
        ("snu_humanoid", 4246, 3737, 6114, 1121, 5767, (1156, 249), (5851, 267)),
    ],
)
def test_dflex_results_are_the_published_ones(task, ppo, sac, shac, tdmpc2, pwm, tdmpc2_final, pwm_final):
    result = published_results("dflex")["tasks"][task]
    peaks = [result["methods"][method]["peak"] for method in ("ppo", "sac", "shac", "tdmpc2", "pwm")]
    assert peaks == pytest.approx([ppo, sac, shac, tdmpc2, pwm], abs=0.5)
    assert result["ppo_peak"] == peaks[0]
    for method, final in (("tdmpc2", tdmpc2_final), ("pwm", pwm_final)):
        entry = result["methods"][method]
        assert (round(entry["final_mean"]), round(entry["final_std"])) == final
        assert entry["seeds"] == len(entry["final_by_seed"]) == 5
        assert np.mean(entry["final_by_seed"]) == pytest.approx(entry["final_mean"], rel=1e-4)


def test_dflex_averages_follow_from_the_tasks():
    table = published_results("dflex")
    average = {"ppo": 1.00, "sac": 0.94, "shac": 1.21, "tdmpc2": 0.82, "pwm": 1.27}
    assert {method: round(value, 2) for method, value in table["average_normalised_peak"].items()} == average
    for method in ("tdmpc2", "pwm"):
        own = [task["methods"][method]["final_mean"] / task["ppo_peak"] for task in table["tasks"].values()]
        assert np.mean(own) == pytest.approx(table["average_normalised_final"][method], abs=1e-3)
    assert round(table["average_normalised_final"]["pwm"], 2) == 1.28


@pytest.mark.parametrize(
    "name, tasks, average, middle, better, horizon3, counted, seconds",
    [
        ("mt30", MT30, (0.768, 0.598), (0.864, 0.681), 24, 0.722, 29, (2441, 2340, 2566)),
        ("mt80", MT80, (0.818, 0.678), (0.913, 0.846), 46, 0.765, 77, (2247, 2056, 2582)),
    ],
)
def test_multi_task_results_are_the_published_ones(name, tasks, average, middle, better, horizon3, counted, seconds):
    table = published_results(name)
    rows = table["tasks"]
    assert tuple(rows) == tasks.names
    for method, mean, iqm in zip(("pwm", "tdmpc2"), average, middle):
        assert round(table["average"][method], 3) == mean and round(table["interquartile_mean"][method], 3) == iqm
        assert np.mean([row[method] for row in rows.values()]) == pytest.approx(table["average"][method], abs=1e-5)
    assert sum(row["pwm"] > row["tdmpc2"] for row in rows.values()) == table["pwm_higher_than_tdmpc2"] == better
    short = [row["pwm_horizon3"] for row in rows.values() if "pwm_horizon3" in row]
    assert len(short) == counted and round(np.mean(short), 3) == horizon3
    assert round(reference_average(name, "pwm_horizon3"), 3) == horizon3
    time = table["seconds_per_10k_iterations"]
    assert tuple(round(time[key]) for key in ("pwm", "pwm_min", "pwm_max")) == seconds


def test_scores_of_dm_control_are_returns_over_a_thousand():
    for row in published_results("mt30")["tasks"].values():
        assert row["pwm"] == pytest.approx(row["pwm_return"] / 1000)


def test_all_tables_come_with_source_and_units_and_may_be_changed():
    everything = published_results()
    assert "2407.02466" in everything["source"] and set(everything["units"]) <= {*everything["notes"], "multitask"}
    everything["mt80"]["tasks"].clear()
    published_results("mt80")["average"].clear()
    assert len(published_results("mt80")["tasks"]) == 80 and published_results("mt80")["average"]
    assert published_results("ablations")["pwm_ant_bsz1024"] == published_results("ablations")["pwm_ant_bsz2048"]


def test_unknown_tables_methods_and_missing_scores_are_refused():
    with pytest.raises(ValueError, match=r"no published table 'mt50'; there are mt30, mt80, dflex, ablations"):
        published_results("mt50")
    missing = set(MT80.names) - {
        task for task, row in published_results("mt80")["tasks"].items() if "pwm_horizon3" in row
    }
    assert len(missing) == 3
    with pytest.raises(ValueError, match=r"no published score of pwm_horizon3 in .*method='pwm'"):
        reference_score(missing.pop(), method="pwm_horizon3")
    with pytest.raises(ValueError, match="no dm_control average of pwm_horizon3"):
        reference_average("mt80", "pwm_horizon3", part="dm_control")


ROWS = [full_row("walker-run", [0.9, 0.7]), full_row("mw-reach", [0.8, 0.8]), full_row("mw-push", [0.4, 0.6])]


def test_a_run_is_compared_on_the_tasks_that_both_have():
    result = compare_with_published(ROWS, "mt80", remarks=["Other data."])
    pwm = result["methods"]["pwm"]
    # published: 0.824062, 0.8 and 1.0
    assert pwm["tasks"] == 3 and (pwm["higher"], pwm["equal"], pwm["lower"]) == (0, 1, 2)
    assert pwm["own"]["mean"] == pytest.approx(0.7) and pwm["published"]["mean"] == pytest.approx(2.624062 / 3)
    assert pwm["difference"]["value"] == pytest.approx(0.7 - 2.624062 / 3)
    assert result["tasks"]["walker-run"]["pwm"]["difference"] == pytest.approx(0.8 - 0.824062)
    tdmpc2 = {"score": 0.527329, "std": 0.0251772, "difference": pytest.approx(0.8 - 0.527329)}
    assert result["tasks"]["walker-run"]["tdmpc2"] == tdmpc2
    assert result["methods"]["tdmpc2"]["higher"] == 1
    assert result["remarks"] == ["Other data."] and result["task_set"] == "mt80"
    whole = {"tasks": 80, "mean": 0.817942, "iqm": 0.913441, "dm_control": 0.751178, "metaworld": 0.858}
    assert pwm["whole_set"] == whole
    assert set(result["methods"]["pwm_horizon3"]["whole_set"]) == {"tasks", "mean", "iqm"}


def test_the_interval_of_the_difference_is_that_of_the_run():
    pytest.importorskip("rliable")
    from torchrl_pwm.evaluation import aggregate_scores

    pwm = compare_with_published(ROWS, "mt80")["methods"]["pwm"]
    own = aggregate_scores(np.array([[0.9, 0.8, 0.4], [0.7, 0.8, 0.6]])).mean
    bounds = (own.low - pwm["published"]["mean"], own.high - pwm["published"]["mean"])
    assert (pwm["difference"]["low"], pwm["difference"]["high"]) == pytest.approx(bounds)
    alone = compare_with_published([full_row("walker-run", [0.9])], "mt80")["methods"]["pwm"]["difference"]
    assert alone["low"] is None is alone["high"]


def test_runs_without_published_results_are_refused():
    with pytest.raises(ValueError, match=r"published results of mt30 and mt80, not of pair"):
        compare_with_published(ROWS, TaskSet("pair", ["walker-run", "mw-reach"]))
    with pytest.raises(ValueError, match=r"no task of this run has a published mt30 result"):
        compare_with_published([full_row("mw-reach", [0.5])], "mt30")
