"""Rows and curves of a group: normalised scores, intervals, equal budgets, and where PWM loses."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("rliable")

from torchrl.record.loggers import CSVLogger

from benchmarks.learning.earlier import add_earlier, read_earlier
from benchmarks.learning.groups import Group, groups
from benchmarks.learning.offline_records import add_sac, join_curves
from benchmarks.learning.plans import Plan
from benchmarks.learning.records import env_steps_curve, progress_to_controller, read_records
from benchmarks.learning.report import loss_sentences, markdown, write_page
from benchmarks.learning.results import equal, interval, losses, summarize
from benchmarks.learning.rows import Curve, Records
from torchrl_pwm.data import EpisodeStore, EpisodeStoreWriter
from torchrl_pwm.runs.cli import command_config

GROUP = Group("mini", "two tasks", ("a", "b"), ("pwm", "cloning_half"), "a share", offline=True)


def make_records(**scores: list[list[float]]) -> Records:
    """Scores [seeds][tasks] by method."""
    records = Records(budgets={"pwm": "much"})
    for method, matrix in scores.items():
        for seed, row in enumerate(matrix):
            for task, score in zip("ab", row):
                records.add(method, task, seed, [score], score=score, seconds_model=60.0, seconds_policy=30.0)
    return records


def test_pwm_loses_where_another_mean_is_higher_and_only_there():
    records = make_records(pwm=[[0.5, 0.9], [0.5, 0.9]], cloning_half=[[0.9, 0.1], [0.7, 0.1]])
    (entry,) = losses(records, {method: records.matrix(method) for method in records.methods()})
    assert (entry["task"], entry["method"]) == ("a", "cloning_half")
    assert entry["difference"] == pytest.approx(0.3)
    assert (entry["low"], entry["high"]) == (pytest.approx(0.2), pytest.approx(0.4))
    content = summarize(GROUP, records, {"pwm": {"1": 2.0}, "tdmpc2_prior": {"1": 1.0}})
    sentences = list(loss_sentences(content))
    assert sentences[0] == (
        "On a, where PWM has 0.50: cloning of the better half 0.80 (+0.30, interval +0.20 to +0.40, without 0)."
    )
    assert sentences[1] == "A decision of PWM takes 2.00 ms; faster: TD-MPC2, no planning 1.00 ms."


def test_one_seed_has_no_interval_and_no_loss_is_said():
    alone = summarize(GROUP, make_records(pwm=[[0.5, 0.9]], cloning_half=[[0.9, 0.1]]), {})
    assert alone["losses"][0]["low"] is None
    assert "one seed has no interval" in next(iter(loss_sentences(alone)))
    best = summarize(GROUP, make_records(pwm=[[0.5, 0.9]], cloning_half=[[0.4, 0.1]]), {})
    assert list(loss_sentences(best)) == ["No method's mean score is higher by a hundredth, over all tasks or on one."]
    none = summarize(GROUP, make_records(cloning_half=[[0.4, 0.1]]), {})
    assert list(loss_sentences(none)) == []


def test_aggregates_leave_out_seeds_that_lack_a_task():
    records = make_records(pwm=[[0.5, 0.9], [0.7, 0.9], [0.1]])
    content = summarize(GROUP, records, {})
    assert content["methods"]["pwm"]["seeds"] == 2
    assert content["methods"]["pwm"]["mean"]["value"] == pytest.approx(0.75)
    assert content["tasks"]["a"]["pwm"]["each"] == [0.5, 0.7, 0.1]
    alone = summarize(GROUP, make_records(pwm=[[0.5, 0.9]], cloning_half=[[0.4]]), {})
    assert (
        alone["methods"]["cloning_half"]["mean"]["value"] is None and alone["tasks"]["a"]["cloning_half"]["mean"] == 0.4
    )
    assert "| mean | 0.70 | - |" in markdown(GROUP, alone)
    # of the model once for each seed, of the policies for each task
    assert content["methods"]["pwm"]["minutes_model"] == pytest.approx(1.0)
    assert content["methods"]["pwm"]["minutes_policies"] == pytest.approx(2 * 0.5)
    assert alone["methods"]["cloning_half"]["minutes_policies"] is None


def test_the_interval_of_equal_seeds_is_a_point():
    assert interval([0.3, 0.3, 0.3]) == (pytest.approx(0.3), pytest.approx(0.3))
    low, high = interval([0.0, 0.5, 1.0])
    assert 0.0 <= low < 0.5 < high <= 1.0


def test_curves_are_compared_where_the_shortest_ends():
    def curve(method, minutes, score):
        return Curve(method, 0, None, 100 * np.array(minutes), np.array(minutes), np.array(score))

    curves = [curve("tdmpc2_prior", [1.0, 2.0], [0.1, 0.2]), curve("pwm", [1.5, 3.0, 4.0], [0.4, 0.5, 0.6])]
    (table,) = equal(curves, "minutes")
    assert table == {"task": None, "minutes": 2.0, "methods": {"pwm": [0.4], "tdmpc2_prior": [0.2]}}
    (table,) = equal(curves, "minutes", 1.2)
    assert table["methods"] == {"pwm": [None], "tdmpc2_prior": [0.1]}
    (table,) = equal(curves, "amount")
    assert table["amount"] == 200.0


def test_steps_and_minutes_of_a_run_without_clock_follow_its_iterations():
    summary = {"iterations": 10, "steps": 1000, "seconds": 120.0}
    steps, minutes, score = env_steps_curve({"real_return": ([5, 10], [1.0, 2.0])}, summary)
    assert (steps.tolist(), minutes.tolist(), score.tolist()) == ([500, 1000], [1.0, 2.0], [1.0, 2.0])
    logged = {"real_return": ([5], [1.0]), "env_steps": ([0, 10], [0, 50]), "training_seconds": ([0, 10], [0.0, 60.0])}
    steps, minutes, _ = env_steps_curve(logged, summary)
    assert (steps.tolist(), minutes.tolist()) == ([25.0], [0.5])


def test_the_way_to_the_controller_begins_at_the_better_of_random_actions_and_none():
    returns = {"policy": 4.0, "random actions": -7.0, "no action": 2.0, "hand-written controller": 6.0}
    assert progress_to_controller({name: {"return_mean": value} for name, value in returns.items()}) == 0.5


def test_the_page_and_the_table_show_every_number_that_there_is(tmp_path):
    records = make_records(pwm=[[0.5, 0.9], [0.5, 0.9]], cloning_half=[[0.9, 0.1], [0.7, 0.1]])
    records.references = {"a": {"the data's behaviour": 0.123}}
    content = summarize(GROUP, records, {"pwm": {"1": 2.0, "8": 0.25}})
    write_page(GROUP, content, [], tmp_path / "page.html")
    page, table = (tmp_path / "page.html").read_text(), markdown(GROUP, content)
    for text in (page, table):
        assert "0.80" in text and "2.00" in text and "cloning of the better half" in text and "Where PWM loses" in text
    assert "0.12" in page and "2 seeds" in page and content["machine"]["processor"] in page
    assert "<script" not in page and "http" not in page


@pytest.mark.parametrize(
    ("override", "message"), [("nothing:a=1", "the method 'nothing', which there is none of"), ("a", "'a'")]
)
def test_an_override_of_no_method_is_refused(override, message):
    plan = Plan(groups()["mini"], (), (), (), None, overrides=(override,))
    with pytest.raises(ValueError, match=message):
        plan.overrides_of("pwm")


def test_offline_methods_have_the_updates_and_rounds_of_the_preset_where_none_are_given(tmp_path):
    tasks = ("mw-reach", "mw-drawer-close")
    with EpisodeStoreWriter(tmp_path, "mt80", dict.fromkeys(tasks, 1), row_length=100) as writer:
        for task in tasks:
            writer.write(task, np.zeros((1, 101, 39)), np.zeros((1, 100, 6)), np.zeros((1, 100)))
    methods = ("pwm", "pwm_joint", "tdmpc2", "iql")
    plan = Plan(groups()["mini"], methods, tasks, (3,), tmp_path / "runs", tmp_path)
    found = {job.name: job for job in plan.jobs()}
    assert set(found) == {f"{run}/{task}/3" for run in ("pwm", "tdmpc2", "iql") for task in tasks} | {"pwm_joint/3"}
    assert len({job.folder for job in found.values()}) == len(found)
    configs = [
        command_config(command, list(found[name].settings))
        for command, name in (("mt80", "pwm/mw-reach/3"), ("tdmpc2-mt80", "tdmpc2/mw-reach/3"), ("mt80", "pwm_joint/3"))
    ]
    pwm, tdmpc2, joint = configs
    preset = command_config("mt80", ["preset=mini"])
    for key in ("count", "iterations", "share", "newest", "noise", "episodes"):
        share = len(preset.task) if key == "iterations" else 1
        expected = preset.rounds[key] // share if share > 1 else preset.rounds[key]
        assert pwm.rounds[key] == tdmpc2.rounds[key] == expected
    for key, share in (("iterations", len(preset.task)), ("batch_size", 1)):
        assert pwm.world_model[key] == tdmpc2.training[key] == preset.world_model[key] // share
    assert joint.world_model.iterations == len(tasks) * pwm.world_model.iterations
    assert joint.rounds.iterations == len(tasks) * pwm.rounds.iterations
    # as many evaluations of each, the first of a round before its updates
    assert 1 + preset.rounds.policy_iterations / pwm.extraction.eval_interval == tdmpc2.rounds.evaluations
    assert pwm.extraction.warm_start.behavior_updates == pwm.loss.behavior_coef == 0
    assert {config.evaluation.seed for config in configs} == {1300}


def test_curves_of_single_tasks_become_the_mean_of_seeds_that_have_all():
    def curve(task, seed, score, method="pwm"):
        return Curve(method, seed, task, np.array([10.0, 20.0]), np.array([1.0, 2.0]), np.array(score), 10.0)

    joint = curve(None, 0, [0.3, 0.3], "pwm_joint")
    parts = [curve("a", 0, [0.2, 0.4]), joint, curve("b", 0, [0.6, 0.8]), curve("a", 1, [0.1, 0.1])]
    first, own = join_curves(parts, ("a", "b"))
    assert first is joint and (own.method, own.seed, own.task, own.before_rounds) == ("pwm", 0, None, 20.0)
    assert own.amount.tolist() == [20.0, 40.0] and own.minutes.tolist() == [2.0, 4.0]
    assert own.score == pytest.approx([0.4, 0.6])


def test_a_report_takes_in_the_rows_and_curves_of_one_from_another_machine(tmp_path):
    def curve(task, seed):
        return Curve("pwm", seed, task, np.array([10.0, 20.0]), np.array([1.0, 2.0]), np.array([0.5, 0.25]), 10.0)

    first = make_records(pwm=[[0.5, 0.9], [0.6, 0.9]], cloning_half=[[0.9, 0.1]])
    first.parts, first.trust = [curve("a", 0), curve("b", 0), curve("a", 1)], {("a", 0): "exploits", ("a", 1): "no"}
    first.machine, first.commit, first.references = {"processor": "P"}, "c", {"a": {"the data's behaviour": 0.3}}
    file = tmp_path / "suite_mini.json"
    file.write_text(json.dumps(summarize(GROUP, first, {"pwm": {"1": 2.0}, "cloning_half": {"1": 1.0}})))
    second = make_records(pwm=[[0.7, 0.9]])
    second.rows = [{**row, "seed": 1} for row in second.rows]  # anew, beside a further task's curve
    second.parts, second.trust = [curve("b", 1)], {("a", 1): "yes"}
    second.machine, second.commit = {"processor": "Q"}, "d"
    add_earlier(second, read_earlier(file))
    assert second.values("pwm", "a") == [0.5, 0.7] and second.values("cloning_half", "b") == [0.1]
    assert second.trust == {("a", 0): "exploits", ("a", 1): "yes"} and second.references == first.references
    assert (second.machine, second.commit) == ({"processor": "Q; P"}, "d; c")
    assert [joined.seed for joined in join_curves(second.parts, ("a", "b"))] == [1, 0]
    # a report of the merged records says the same as one of both
    again = summarize(GROUP, second, {"pwm": {"1": 3.0}})
    assert again["decisions"] == {"pwm": {"1": 3.0}, "cloning_half": {"1": 1.0}}
    assert again["methods"]["pwm"]["seeds"] == 2 and len(again["curves"]) == 4
    # the data of a seed may have been recorded anew, elsewhere
    for row in second.rows:
        row["score_data"] = {0: 0.3, 1: 0.5}[row["seed"]] if row["method"] == "pwm" and row["task"] == "a" else None
    second.refer_to_data()
    assert second.references == {"a": {"the data's behaviour": pytest.approx(0.4)}}
    # a file of before the column says it of all its seeds
    content = json.loads(file.read_text())
    content["rows"] = [{key: row[key] for key in row if key != "score_data"} for row in content["rows"]]
    file.write_text(json.dumps(content))
    assert read_earlier(file).values("pwm", "a", "score_data") == [0.3, 0.3]
    none = read_earlier(tmp_path / "nowhere.json")
    assert none.rows == [] and none.parts == []


def test_overrides_go_to_all_methods_or_to_one():
    plan = Plan(groups()["mini"], (), (), (), None, overrides=("a=b:c", "pwm:d=1", "tdmpc2:e=2"))
    assert plan.overrides_of("pwm") == ["a=b:c", "d=1"]
    assert plan.overrides_of("cloning_half") == ["a=b:c"]


def make_selected() -> Records:
    """PWM whose best policy counts, cloning whose last one does, and random actions; one task, two seeds."""
    records = Records()
    for seed in (0, 1):
        records.add("pwm", "a", seed, [0.9], score=0.9, select="best", return_last=0.7, score_last=0.7 + 0.1 * seed)
        records.add("cloning_half", "a", seed, [0.6], score=0.6, select="last")
        records.add("random", "a", seed, [0.1], score=0.1)
    return records


def test_the_table_has_a_line_of_the_best_and_of_the_last_policies_with_their_intervals(tmp_path):
    content = summarize(GROUP, make_selected(), {})
    assert [content["methods"][name]["select"] for name in ("pwm", "cloning_half", "random")] == ["best", "last", None]
    lines = markdown(GROUP, content).splitlines()
    assert "| task | policy | PWM | cloning of the better half | random actions |" in lines
    # cloning's best one was not recorded, so that none is the highest, and random actions have no choice
    assert "| a | best | 0.90 [0.90, 0.90] | - | 0.10 [0.10, 0.10] |" in lines
    assert "| a | last | **0.75 [0.70, 0.80]** | 0.60 [0.60, 0.60] | 0.10 [0.10, 0.10] |" in lines
    assert "| mean | last | 0.75 [0.70, 0.80] | 0.60 [0.60, 0.60] | 0.10 [0.10, 0.10] |" in lines
    (said,) = [line for line in lines if line.startswith("Best: ")]
    assert said.endswith("unequal policies: the best one of PWM; the last one of cloning of the better half.")
    write_page(GROUP, content, [], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<td>best</td>" in page and "<td>last</td>" in page and "0.70 to 0.80" in page and said in page


def test_equal_policies_are_said_to_be_equal():
    records = Records()
    for method in ("pwm", "cloning_half"):
        records.add(method, "a", 0, [0.9], score=0.9, select="best", return_last=0.7, score_last=0.7)
    text = markdown(GROUP, summarize(GROUP, records, {}))
    assert "Figures and sentences are of the best policies." in text


def test_both_returns_of_an_online_run_are_normalised_alike(tmp_path):
    outcomes = {"policy": 4.0, "last policy": 2.0, "best policy": 4.0, "random actions": -7.0, "no action": 0.0}
    outcomes |= {"hand-written controller": 8.0}
    content = {
        **{"task": "cartpole_swingup", "seed": 0, "iterations": 1, "steps": 10, "seconds": 1.0, "made": "2026-11-28"},
        "outcomes": {name: {"return_mean": value, "returns": [value]} for name, value in outcomes.items()},
    }
    folder = tmp_path / "shac" / "cartpole_swingup" / "seed-0"
    folder.mkdir(parents=True)
    job = {"script": "a.py", "settings": ["data.root=/home/x", "b=1"], "machine": {"processor": "P"}, "commit": "c"}
    (folder / "job.json").write_text(json.dumps(job))
    logger = CSVLogger("seed-0", log_dir=str(folder.parent))
    logger.log_scalar("real_return", 3.0, step=1)
    for settings, expected in (("select: best\n", ("best", 0.25, 0.5)), ("", ("last", 0.5, 0.5))):
        (folder / "config.yaml").write_text(f"{settings}iterations: 1\n")
        if not settings:  # a run of before there was a choice
            content["outcomes"] = {name: value for name, value in content["outcomes"].items() if "t policy" not in name}
        (folder / "summary.json").write_text(json.dumps(content))
        records = read_records(groups()["closed_form"], tmp_path)
        assert records.commands == {"shac": "python a.py data.root=DIR b=1"} and records.machine == {"processor": "P"}
        row = records.rows[0]
        assert (row["select"], row["score_last"], row["score"]) == expected
        assert row["score_best"] == (0.5 if expected[0] == "best" else None)


def test_sac_is_read_from_the_last_episodes_of_the_data_that_it_collected(tmp_path):
    tasks = {"pendulum-swingup": 35, "mw-reach": 1}
    source = {"tasks": {"pendulum-swingup": {"behavior": "sac", "seed": 4}, "mw-reach": {"behavior": "scripted"}}}
    with EpisodeStoreWriter(
        tmp_path, "mt80", tasks, row_length=100, success=True, whole_episodes=True, source=source
    ) as writer:
        for task, rows in tasks.items():
            reward = np.repeat(np.arange(rows) // 5, 100).reshape(rows, 100)  # 0 in the first episode, 6 in the last
            success = np.zeros((rows, 100), bool)
            writer.write(task, np.zeros((rows, 101, 39)), np.zeros((rows, 100, 6)), reward, success)
    records = Records()
    add_sac(records, EpisodeStore(tmp_path), list(tasks))
    (row,) = records.rows
    assert (row["task"], row["seed"], row["episodes"], row["env_steps"]) == ("pendulum-swingup", 4, 5, 3500)
    assert row["return_mean"] == 500 * np.mean([2, 3, 4, 5, 6]) and row["score_last"] == row["return_mean"] / 1000
