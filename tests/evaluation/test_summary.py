from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import torchrl_pwm
from torchrl_pwm.evaluation import format_table, make_summary, package_versions, read_summary, write_summary


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
        ("{not json", "no valid JSON"),
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
