"""Methods side by side: in the summary, in the table and in the picture."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.evaluation.rows import full_row, outcome
from torchrl_pwm.evaluation import (
    aggregate_scores,
    compare_with_published,
    format_table,
    make_summary,
    plot_scores,
    read_summary,
)
from torchrl_pwm.evaluation import write_summary as write
from torchrl_pwm.evaluation.statistics import compare_methods, headline, method_scores

ROWS = [full_row("walker-run", [0.2, 0.6], [0.5, 0.3]), full_row("mw-reach", [1.0, 0.8], [0.9, 0.9])]


def make(rows=ROWS):
    return make_summary(rows, seed=0, seconds_total=60.0)


def test_scores_of_each_method_are_those_of_its_seeds():
    found = {method: method_scores(ROWS[0], method) for method in ("policy", "cloning", "data", "random", "pwm")}
    assert found == {"policy": [0.2, 0.6], "cloning": [0.5, 0.3], "data": [0.3], "random": [0.05], "pwm": [0.9]}
    plain = {"score": None}
    assert method_scores(plain, "policy") == method_scores(plain, "cloning") == method_scores(plain, "pwm") == []


def test_each_method_is_aggregated_over_its_seeds_and_tasks():
    pytest.importorskip("rliable")
    found = compare_methods(ROWS)
    assert list(found) == ["policy", "cloning", "data", "random", "pwm", "tdmpc2"]
    assert found["policy"] == aggregate_scores([[0.2, 1.0], [0.6, 0.8]]).to_dict()
    assert found["data"]["iqm"] == {"value": pytest.approx(0.3), "low": None, "high": None}


def test_a_task_without_a_score_is_left_out_and_counted():
    unscored = full_row("mw-reach", [1.0, 0.8])
    unscored["baselines"]["data"] = {**outcome("mw-reach", 0.3), "success": None, "score": None}
    found = compare_methods([ROWS[0], unscored])
    assert (found["policy"]["tasks"], found["data"]["tasks"], found["cloning"]["tasks"]) == (2, 1, 1)


def test_tasks_with_different_numbers_of_seeds_are_refused():
    with pytest.raises(ValueError, match=r"as many seeds in every task.*'mw-reach': 1"):
        make([ROWS[0], full_row("mw-reach", [1.0])])


def test_few_tasks_are_headed_by_their_mean():
    assert headline(compare_methods(ROWS)["policy"]) == ("mean", "mean")
    four = [full_row(task, [0.5]) for task in ("walker-run", "mw-reach", "cup-catch", "mw-push")]
    assert headline(compare_methods(four)["policy"]) == ("iqm", "interquartile mean")


def test_summary_with_all_entries_is_written_and_read_back(tmp_path):
    written = write(tmp_path, ROWS, seed=0, seconds_total=60.0)
    assert read_summary(tmp_path) == written
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content["tasks"][0]["seeds"][1] == {"seed": 1, **outcome("walker-run", 0.6)}
    assert content["statistics"]["policy"]["mean"]["value"] == pytest.approx(0.65) == content["score_mean"]


def test_numbers_of_numpy_are_plain_at_every_depth():
    row = full_row("walker-run", [0.5], [0.5])
    row["baselines"]["cloning"]["seeds"][0]["score"] = np.float32(0.5)
    json.dumps(make([row]))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seeds": {"0": 1}}, "seeds of walker-run .* must be a list"),
        ({"seeds": [{"seed": 0}]}, "a seed of walker-run.*missing.*return_mean"),
        ({"seeds": [{"seed": 0, **outcome("walker-run", float("nan"))}]}, "seed 0 of walker-run.*nan"),
        ({"baselines": {"expert": outcome("walker-run", 1.0)}}, "baselines of walker-run .* must be a mapping of"),
        ({"baselines": {"data": {"score": 1.0}}}, "data of walker-run.*missing"),
        ({"published": {"pwm": None}}, "pwm of walker-run.*finite number, found None"),
        ({"published": 0.9}, "published of walker-run"),
    ],
)
def test_damaged_further_entries_are_refused_with_their_name(change, message):
    with pytest.raises(ValueError, match=message):
        make([full_row("walker-run", [0.5], **change)])


def test_table_shows_spread_baselines_and_both_means():
    pytest.importorskip("rliable")
    lines = format_table(make()).splitlines()
    head = ["task", "return", "data", "mean", "ratio", "success", "score", "by", "seed", "BC", "data", "random"]
    assert lines[0].split() == [*head, "PWM*", "TD-MPC2*"]
    # published scores are those of the reference files
    cells = ["400.0", "+-", "100.0", "300.0", "1.33", "-", "0.400", "0.20-0.60", "0.400", "0.300", "0.050", "0.824"]
    assert lines[2].split() == ["walker-run", *cells, "0.527"]
    assert lines[5].split() == ["mean", "0.650", "0.650", "0.300", "0.050", "0.812", "0.664"]
    # of 2 x 2 runs the middle two
    assert lines[6].split()[:3] == ["IQM", "0.700", "0.700"]
    low, high = (make()["statistics"]["policy"]["mean"][key] for key in ("low", "high"))
    assert lines[7] == (f"Mean 0.650 [{low:.3f}, {high:.3f}], 95% stratified bootstrap interval over 2 seeds per task.")
    assert lines[8].startswith("BC, behaviour cloning on the same data: 0.650 [")
    assert len({len(line) for line in lines[:7]}) == 1


def test_table_of_a_run_beside_the_papers_shows_every_difference():
    pytest.importorskip("rliable")
    comparison = compare_with_published(ROWS, "mt80", remarks=["Not the published data."])
    text = format_table(make_summary(ROWS, seed=0, seconds_total=60.0, comparison=comparison))
    lines = text.splitlines()
    assert lines[0].split()[-6:] == ["PWM*", "diff", "TD-MPC2*", "diff", "PWM-H3*", "diff"]
    assert lines[2].split()[-6:-2] == ["0.824", "-0.424", "0.527", "-0.127"]
    assert lines[3].split()[-6:-2] == ["0.800", "+0.100", "0.800", "+0.100"]
    assert lines[5].split()[-6:-2] == ["0.812", "-0.162", "0.664", "-0.014"]
    assert len({len(line) for line in lines[:6]}) == 1
    assert "This run minus published PWM: -0.162 [" in text and "(higher in 1, equal in 0, lower in 1)" in text
    assert "As published over 80 tasks: mean 0.818, IQM 0.913, DMControl 0.751, Meta-World 0.858." in text
    assert lines[-1] == "Not the published data." and "other data" not in text


def test_damaged_comparison_is_refused():
    comparison = compare_with_published(ROWS, "mt80")
    short = {key: comparison[key] for key in ("task_set", "source", "remarks", "tasks")}
    with pytest.raises(ValueError, match=r"comparison of the summary must have the entries .*missing \['methods'\]"):
        make_summary(ROWS, seed=0, seconds_total=1.0, comparison=short)
    comparison["tasks"]["walker-run"]["pwm"]["score"] = float("nan")
    with pytest.raises(ValueError, match=r"score of pwm of walker-run in the comparison.*nan"):
        make_summary(ROWS, seed=0, seconds_total=1.0, comparison=comparison)


def test_notes_are_kept_and_shown(tmp_path):
    written = write(tmp_path, ROWS, seed=0, seconds_total=1.0, notes=["The policy is the best of ten."])
    assert read_summary(tmp_path)["notes"] == written["notes"] == ["The policy is the best of ten."]
    assert format_table(written).splitlines()[-1] == "The policy is the best of ten."
    (tmp_path / "summary.json").write_text(json.dumps({**written, "notes": [3]}))
    with pytest.raises(ValueError, match=r"notes of .* must be a list of sentences"):
        read_summary(tmp_path)


def test_table_of_one_seed_says_that_there_is_no_interval():
    text = format_table(make([full_row("walker-run", [0.5], [0.4])]))
    assert "by seed" not in text and "one seed per task gives no confidence interval" in text


def test_table_without_rliable_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    summary = make()
    monkeypatch.undo()
    assert summary["statistics"]["policy"]["iqm"]["low"] is None
    assert 'pip install "torchrl-pwm[stats]"' in format_table(summary)


def test_picture_shows_each_seed_and_baseline_in_place_of_error_bars(tmp_path, figures):
    plot_scores(make(), tmp_path / "scores.png")
    left, right = figures[0].axes
    marks = {scatter.get_label(): scatter.get_offsets()[:, 0].tolist() for scatter in left.collections}
    assert marks["policy, each seed"] == [0.2, 0.6, 1.0, 0.8]
    assert marks["behaviour cloning"] == [0.4, 0.9] and marks["random actions"] == [0.05, 0.05]
    assert [patch.get_width() for patch in left.patches] == [0.4, 0.9]
    assert [s.get_offsets()[:, 0].tolist() for s in right.collections if s.get_label() == "policy, each seed"] == [
        pytest.approx([0.2, 0.6, 1.0, 0.8])
    ]
    for axes in (left, right):
        (errors,) = [container for container in axes.containers if hasattr(container, "has_xerr")]
        assert not any(len(segment) for segment in errors.lines[2][0].get_segments())
    assert "over 2 seeds" in figures[0].legends[0].get_title().get_text()
