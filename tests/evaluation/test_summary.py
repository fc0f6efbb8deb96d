"""Summaries with all their entries, damaged ones, and their table."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

import torchrl_pwm
from tests.evaluation.rows import TWO_SEEDS, full_row, outcome, selected
from torchrl_pwm.evaluation import (
    compare_with_published,
    format_table,
    make_summary,
    package_versions,
    read_summary,
    write_summary,
)


def row(task="walker-run", **changes):
    content = {
        "task": task,
        "return_mean": 600.0,
        "return_std": 10.0,
        "success": None,
        "score": 0.6,
        "behavior_return_mean": 300.0,
        "episodes": 10,
        "seconds_extraction": 40.0,
    }
    return {**content, **changes}


MW = row("mw-reach", success=0.8, score=0.8, return_mean=1500.0, behavior_return_mean=500.0)


def test_file_has_exactly_the_documented_entries(tmp_path):
    write_summary(tmp_path / "summary.json", [row(), MW], seed=3, seconds_total=61.5)
    content = json.loads((tmp_path / "summary.json").read_text())
    assert list(content) == ["tasks", "score_mean", "seconds_total", "seed", "versions"]
    assert content["tasks"] == [row(), MW]
    assert content["score_mean"] == pytest.approx(0.7)
    assert (content["seconds_total"], content["seed"]) == (61.5, 3)


def test_what_is_written_is_read_back_from_file_or_folder(tmp_path):
    written = write_summary(tmp_path, [row(), MW], seed=0, seconds_total=1)
    assert read_summary(tmp_path) == read_summary(tmp_path / "summary.json") == written


def test_folder_is_made_and_nothing_else_is_left_in_it(tmp_path):
    write_summary(tmp_path / "runs" / "a" / "summary.json", [row()], seed=0, seconds_total=1)
    assert [file.name for file in (tmp_path / "runs" / "a").iterdir()] == ["summary.json"]


def test_failed_write_leaves_the_old_file_as_it_was(tmp_path):
    old = write_summary(tmp_path, [row()], seed=0, seconds_total=1)
    with pytest.raises(ValueError):
        write_summary(tmp_path, [row(return_mean=float("nan"))], seed=0, seconds_total=1)
    assert read_summary(tmp_path) == old
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_numbers_of_numpy_and_torch_are_written_as_plain_ones(tmp_path):
    numbers = row(return_mean=np.float32(5.5), episodes=np.int64(4), score=torch.tensor(0.5))
    content = write_summary(tmp_path, [numbers], seed=0, seconds_total=1)["tasks"][0]
    assert (content["return_mean"], content["episodes"], content["score"]) == (5.5, 4, 0.5)


def test_versions_name_the_packages_that_numbers_depend_on():
    versions = package_versions()
    assert {"python", "torch", "torchrl", "tensordict", "torchrl_pwm"} <= set(versions)
    assert versions["torchrl_pwm"] == torchrl_pwm.__version__
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_mean_score_is_over_the_tasks_that_have_one():
    mean = make_summary([row(), row("Pendulum-v1", score=None)], seed=0, seconds_total=1)["score_mean"]
    assert mean == 0.6
    assert make_summary([row("Pendulum-v1", score=None)], seed=0, seconds_total=1)["score_mean"] is None


@pytest.mark.parametrize("key", ["return_mean", "return_std", "success", "score", "behavior_return_mean"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_number_that_is_not_finite_is_refused_with_its_name(key, value):
    with pytest.raises(ValueError, match=f"{key} of walker-run.*finite number"):
        make_summary([row(**{key: value})], seed=0, seconds_total=1)


@pytest.mark.parametrize("key", ["return_mean", "return_std", "episodes"])
def test_number_that_every_task_has_may_not_be_null(key):
    with pytest.raises(ValueError, match=f"{key} of walker-run"):
        make_summary([row(**{key: None})], seed=0, seconds_total=1)


def test_missing_and_unknown_entries_and_repeated_tasks_are_refused():
    short = row()
    del short["score"]
    with pytest.raises(ValueError, match=r"missing \['score'\]"):
        make_summary([short], seed=0, seconds_total=1)
    with pytest.raises(ValueError, match=r"unknown \['note'\]"):
        make_summary([row(note="good")], seed=0, seconds_total=1)
    with pytest.raises(ValueError, match=r"repeats \['walker-run'\]"):
        make_summary([row(), row()], seed=0, seconds_total=1)


@pytest.mark.parametrize(
    "content, message",
    [
        ("{not json", "expected JSON"),
        ("[]", "must be a mapping"),
        ('{"tasks": []}', "missing"),
        ('{"tasks": 1, "score_mean": null, "seconds_total": 1, "seed": 0, "versions": {}}', "must be a list"),
        ('{"tasks": [], "score_mean": NaN, "seconds_total": 1, "seed": 0, "versions": {}}', "score_mean.*nan"),
    ],
)
def test_damaged_file_is_refused_with_its_path(tmp_path, content, message):
    file = tmp_path / "summary.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_summary(file)
    assert str(file) in str(caught.value)


def test_table_stands_beside_the_data_and_the_published_scores():
    lines = format_table(make_summary([row(), MW], seed=7, seconds_total=61.0)).splitlines()
    assert lines[0].split() == ["task", "return", "data", "mean", "ratio", "success", "score", "PWM*", "TD-MPC2*"]
    assert lines[2].split() == ["walker-run", "600.0", "+-", "10.0", "300.0", "2.00", "-", "0.600", "0.824", "0.527"]
    assert lines[3].split() == ["mw-reach", "1500.0", "+-", "10.0", "500.0", "3.00", "80%", "0.800", "0.800", "0.800"]
    assert lines[-2].split() == ["mean", "0.700", "0.812", "0.664"]
    assert "10 episodes per task, seed 7, 61 s" in lines[-1] and "other data" in lines[-1]
    assert len({len(line) for line in lines[:-1]}) == 1


def test_table_leaves_unknown_numbers_out():
    unknown = row("Pendulum-v1", score=None, behavior_return_mean=None, seconds_extraction=None)
    lines = format_table(make_summary([unknown], seed=0, seconds_total=1)).splitlines()
    assert lines[2].split() == ["Pendulum-v1", "600.0", "+-", "10.0", "-", "-", "-", "-", "-", "-"]
    lines = format_table(make_summary([row(behavior_return_mean=-5.0)], seed=0, seconds_total=1)).splitlines()
    assert lines[2].split()[4:7] == ["-5.0", "-", "-"]


def test_table_can_do_without_published_scores():
    table = format_table(make_summary([row()], seed=0, seconds_total=1), references=())
    assert "PWM" not in table and "published" not in table


def make(rows=TWO_SEEDS):
    return make_summary(rows, seed=0, seconds_total=60.0)


def test_tasks_with_different_numbers_of_seeds_are_refused():
    with pytest.raises(ValueError, match=r"as many seeds in every task.*'mw-reach': 1"):
        make([TWO_SEEDS[0], full_row("mw-reach", [1.0])])


def test_summary_with_all_entries_is_written_and_read_back(tmp_path):
    written = write_summary(tmp_path, TWO_SEEDS, seed=0, seconds_total=60.0)
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
    comparison = compare_with_published(TWO_SEEDS, "mt80", remarks=["Not the published data."])
    text = format_table(make_summary(TWO_SEEDS, seed=0, seconds_total=60.0, comparison=comparison))
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
    comparison = compare_with_published(TWO_SEEDS, "mt80")
    short = {key: comparison[key] for key in ("task_set", "source", "remarks", "tasks")}
    with pytest.raises(ValueError, match=r"comparison of the summary must have the entries .*missing \['methods'\]"):
        make_summary(TWO_SEEDS, seed=0, seconds_total=1.0, comparison=short)
    comparison["tasks"]["walker-run"]["pwm"]["score"] = float("nan")
    with pytest.raises(ValueError, match=r"score of pwm of walker-run in the comparison.*nan"):
        make_summary(TWO_SEEDS, seed=0, seconds_total=1.0, comparison=comparison)


def test_notes_are_kept_and_shown(tmp_path):
    written = write_summary(tmp_path, TWO_SEEDS, seed=0, seconds_total=1.0, notes=["The policy is the best of ten."])
    assert read_summary(tmp_path)["notes"] == written["notes"] == ["The policy is the best of ten."]
    assert format_table(written).splitlines()[-1] == "The policy is the best of ten."
    (tmp_path / "summary.json").write_text(json.dumps({**written, "notes": [3]}))
    with pytest.raises(ValueError, match=r"notes of .* must be a list of sentences"):
        read_summary(tmp_path)


def test_table_of_one_seed_says_that_there_is_no_interval():
    text = format_table(make([full_row("walker-run", [0.5], [0.4])]))
    assert "by seed" not in text and "one seed per task gives no confidence interval" in text


def test_table_without_rliable_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rliable", None)
    summary = make()
    monkeypatch.undo()
    assert summary["statistics"]["policy"]["iqm"]["low"] is None
    assert 'pip install "torchrl-pwm[stats]"' in format_table(summary)


@pytest.mark.parametrize("select", ["best", "last"])
def test_table_and_summary_have_the_last_and_the_best_policies(select, tmp_path):
    rows = [selected(row, select, 0.1) for row in TWO_SEEDS]
    summary = write_summary(tmp_path, rows, seed=0, seconds_total=1.0, select=select)
    assert read_summary(tmp_path) == summary
    other = "last" if select == "best" else "best"
    assert (summary["select"], summary["score_mean"]) == (select, summary[select]["score_mean"])
    assert summary[other]["score_mean"] == pytest.approx(summary["score_mean"] - 0.1)
    assert summary[select]["statistics"] == summary["statistics"]
    gap = summary["statistics"]["cloning"]["iqm"]["value"] - summary[other]["statistics"]["cloning"]["iqm"]["value"]
    assert gap == pytest.approx(0.1)
    lines = format_table(summary, references=()).splitlines()
    head = [select, other, "by", "seed", "BC", select, "BC", other, "data", "random"]
    assert lines[0].split()[6:] == head
    assert lines[2].split()[-7:] == ["0.400", "0.300", "0.20-0.60", "0.400", "0.300", "0.300", "0.050"]
    assert lines[5].split() == ["mean", "0.650", "0.550", "0.650", "0.550", "0.300", "0.050"]
    assert f"The {select} one counts (select={select})." in "\n".join(lines)


def test_summaries_without_a_selection_are_read_and_a_wrong_one_is_refused(tmp_path):
    write_summary(tmp_path, TWO_SEEDS, seed=0, seconds_total=1.0)
    old = read_summary(tmp_path)
    assert not {"select", "last", "best"} & set(old) and "counts" not in format_table(old)
    with pytest.raises(ValueError, match=r"select of the summary must be one of last, best, found 'first'"):
        make_summary(TWO_SEEDS, seed=0, seconds_total=1.0, select="first")
    broken = selected(TWO_SEEDS[0], "best", 0.1)
    del broken["last"]["score"]
    with pytest.raises(ValueError, match=r"the last policy of walker-run in the summary .*missing \['score'\]"):
        make_summary([broken], seed=0, seconds_total=1.0)
