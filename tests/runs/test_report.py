"""Report of a run: summary, page and pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("omegaconf")
pytest.importorskip("dm_control")
pytest.importorskip("metaworld")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytest.importorskip("rliable")

from omegaconf import OmegaConf
from torchrl.record.loggers import CSVLogger

from tests.trainers.tiny import write_store
from torchrl_pwm.data import EpisodeStore
from torchrl_pwm.evaluation import format_table, read_summary, reference_score
from torchrl_pwm.runs.clock import RunClock
from torchrl_pwm.runs.report import write_report

RESULTS = [
    {"task": "pendulum-swingup", "seed": 3, "returns": [100.0, 300.0], "successes": None, "seconds": 10.0},
    {"task": "pendulum-swingup", "seed": 4, "returns": [600.0, 800.0], "successes": None, "seconds": 20.0},
    {"task": "mw-reach", "seed": 3, "returns": [1500.0, 1000.0], "successes": [True, False], "seconds": 10.0},
    {"task": "mw-reach", "seed": 4, "returns": [1800.0, 1900.0], "successes": [True, True], "seconds": 10.0},
]
CONFIG = {
    "task_set": "mt80",
    "seed": 3,
    "seeds": 2,
    "workers": 1,
    "progress": False,
    "logger": "csv",
    "extraction": {"select": "best", "starts": {"top": 0.5}},
    "rounds": {"count": 2},
    "evaluation": {
        "episodes": 1,
        "seed": 1000,
        "film": 0,
        "baselines": {"cloning": {"updates": 2, "batch_size": 4, "units": [8], "eval_episodes": 1}},
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    store = EpisodeStore(write_store(tmp_path_factory.mktemp("data") / "store"))
    for result in RESULTS:
        logger = CSVLogger(f"seed-{result['seed']}", log_dir=str(folder / "policies" / result["task"]))
        for step in (5, 10):
            for name in ("predicted_return", "real_return", "trust_step1", "trust_step8"):
                logger.log_scalar(name, float(step), step=step)
    for number in range(2):
        (folder / "rounds" / str(number) / "data").mkdir(parents=True)
    (folder / "seconds.json").write_text("100.0")
    config = OmegaConf.create(CONFIG)
    path = write_report(config, folder, store, folder / "none", RESULTS, clock=RunClock(folder))
    return path, folder, store


def test_the_row_of_a_task_is_of_all_its_episodes_and_keeps_each_seed(run):
    pendulum, reach = read_summary(run[0])["tasks"]
    assert (pendulum["return_mean"], pendulum["score"], pendulum["episodes"]) == (450.0, 0.45, 4)
    assert [(seed["seed"], seed["score"]) for seed in pendulum["seeds"]] == [(3, 0.2), (4, pytest.approx(0.7))]
    assert pendulum["return_std"] == pytest.approx(np.std([100, 300, 600, 800]))
    assert (reach["success"], reach["score"]) == (0.75, 0.75)
    assert [seed["success"] for seed in reach["seeds"]] == [0.5, 1.0]
    assert pendulum["seconds_extraction"] == 15.0


def test_baselines_and_published_scores_stand_beside_it(run):
    _, folder, store = run
    for row in read_summary(run[0])["tasks"]:
        assert set(row["baselines"]) == {"random", "cloning", "data"}
        measured = json.loads((folder / "baselines" / f"{row['task']}.json").read_text())
        assert [entry["seed"] for entry in row["baselines"]["cloning"]["seeds"]] == [3, 4]
        assert row["baselines"]["random"]["return_mean"] == pytest.approx(np.mean(measured["random"][0]["returns"]))
        known = store.statistics()[row["task"]]["behavior_return_mean"]
        assert row["baselines"]["data"]["return_mean"] == known == row["behavior_return_mean"]
        assert row["published"] == {m: reference_score(row["task"], "mt80", m) for m in ("pwm", "tdmpc2")}


def test_data_whose_success_is_not_known_have_no_score(run):
    pendulum, reach = read_summary(run[0])["tasks"]
    assert reach["baselines"]["data"]["score"] is None
    assert pendulum["baselines"]["data"]["score"] == pytest.approx(pendulum["behavior_return_mean"] / 1000)
    assert read_summary(run[0])["statistics"]["data"]["tasks"] == 1


def test_statistics_are_over_seeds_and_tasks(run):
    found = read_summary(run[0])["statistics"]["policy"]
    assert (found["seeds"], found["tasks"]) == (2, 2)
    assert found["mean"]["value"] == pytest.approx(0.6)
    assert found["mean"]["low"] < 0.6 < found["mean"]["high"]


def test_what_the_policies_had_before_the_baselines_is_said(run):
    notes = read_summary(run[0])["notes"]
    assert len(notes) == 3 and "extraction.select=best" in notes[0] and "2 round(s)" in notes[1] and "50%" in notes[2]
    page = (run[1] / "report.html").read_text(encoding="utf-8")
    assert all(note.replace("'", "&#39;") in page and note in format_table(read_summary(run[0])) for note in notes)


def test_rounds_that_were_not_played_are_not_told(run, tmp_path):
    shutil.copytree(run[1] / "policies", tmp_path / "policies")
    path = write_report(
        OmegaConf.create(CONFIG), tmp_path, run[2], tmp_path / "none", RESULTS, clock=RunClock(tmp_path)
    )
    assert len(read_summary(path)["notes"]) == 2 and "round(s)" not in path.read_text()


def test_the_page_holds_curves_configuration_and_no_film(run):
    text = (run[1] / "report.html").read_text(encoding="utf-8")
    assert text.count('class="plot"') == 4 and "<img" not in text
    assert "PWM on pendulum-swingup, mw-reach" in text and "task_set: mt80" in text
    assert {file.name for file in run[1].iterdir()} >= {"summary.json", "scores.png", "report.html", "baselines"}
    assert (run[1] / "policies" / "mw-reach" / "seed-4" / "training.png").exists()


def test_a_run_is_set_beside_the_papers_where_asked(run):
    path, folder, store = run
    assert "comparison" not in read_summary(path)
    sizes = {"_target_": "torchrl_pwm.PWMWorldModel", "latent_dim": 16, "units": [16], "task_dim": 4, "num_bins": 11}
    config = OmegaConf.create({**CONFIG, "compare": "published", "checkpoint": None, "model": sizes})
    try:
        write_report(config, folder, store, folder / "none", RESULTS, clock=RunClock(folder))
        found = read_summary(path)
        page = (folder / "report.html").read_text(encoding="utf-8")
    finally:
        write_report(OmegaConf.create(CONFIG), folder, store, folder / "none", RESULTS, clock=RunClock(folder))
    pendulum = found["comparison"]["tasks"]["pendulum-swingup"]["pwm"]
    assert pendulum["score"] == reference_score("pendulum-swingup")
    assert pendulum["difference"] == pytest.approx(0.45 - pendulum["score"])
    data, size, settings = found["comparison"]["remarks"]
    assert "Not the published data" in data and "19,188,581" in size
    assert (
        "extraction.select=best (last)" in settings and "rounds.count=2 (0)" in settings and "horizon" not in settings
    )
    assert "Beside the papers" in page and settings.partition("'")[0] in page
    text = format_table(found)
    assert data in text and "PWM-H3*" in text and "[" in text.split("This run minus published PWM: ")[1][:8]


def test_the_published_settings_need_no_remark_but_for_targets_and_bootstrap(run):
    pytest.importorskip("hydra")
    from torchrl_pwm.runs.cli import compose_config
    from torchrl_pwm.runs.deviations import protocol_deviations

    exact = ["preset=published", "extraction.value_estimator=TD0", "loss.bootstrap=reference"]
    default, same = compose_config("pwm_mt80", exact[:1]), compose_config("pwm_mt80", exact)
    data, settings = protocol_deviations(default, run[2], Path("none"))
    assert settings.endswith("extraction.value_estimator=TDLambda (TD0), loss.bootstrap=standard (reference).")
    assert protocol_deviations(same, run[2], Path("none")) == [data]
    further = ["stepper.actor_lr=1e-3", "model.residual=true"]
    remarks = protocol_deviations(compose_config("pwm_mt80", [*exact, *further]), run[2], Path("none"))
    assert remarks[-1].endswith(": stepper.actor_lr=0.001 (0.0005), model.residual=True (False).")


def test_a_report_that_is_written_again_has_the_same_numbers_and_the_seconds_of_before(run):
    path, folder, store = run
    first = read_summary(path)
    write_report(OmegaConf.create(CONFIG), folder, store, folder / "none", RESULTS, clock=RunClock(folder))
    second = read_summary(path)
    assert min(second.pop("seconds_total"), first.pop("seconds_total")) >= 100.0
    assert set(second.pop("phases")) == set(first.pop("phases")) >= {"behaviour cloning", "films"}
    assert second == first


def probed(exploited, gap):
    """What an extraction keeps of the trust probe."""
    line = f"{'exploits its model' if exploited else 'no sign of exploitation'}: ..."
    value_gap = None if gap is None else {"closed": gap}
    figures = {"imagined_return": 900.0 if exploited else 300.0, "real_return": 400.0, "value_gap": value_gap}
    return {"trust": {"exploited": exploited, "line": line, **figures}}


@pytest.mark.parametrize(
    "second, line, note",
    [
        (
            probed(True, 30.0),
            "exploits its model: imagined 600, real 400, V - G +16 (means of 2 seeds, of which 1 show it)",
            "pendulum-swingup exploits its model: imagined 600",
        ),
        (
            probed(False, None),
            "no sign of exploitation: imagined 300, real 400, V - G +2",
            "Trust probe: no policy shows",
        ),
        ({}, "no sign of exploitation: imagined 300, real 400, V - G +2", "Trust probe: no policy shows"),
    ],
)
def test_the_alarm_of_a_task_is_of_all_its_seeds_and_stands_in_the_notes(run, tmp_path, second, line, note):
    results = [{**RESULTS[0], **probed(False, 2.0)}, {**RESULTS[1], **second}]
    settings = {"logger": "tensorboard", "evaluation": {"baselines": {"random": False, "cloning": None}}}
    config = OmegaConf.merge(OmegaConf.create(CONFIG), settings)
    path = write_report(config, tmp_path, run[2], tmp_path / "none", results, clock=RunClock(tmp_path))
    (row,) = read_summary(path)["tasks"]
    assert row["trust"]["line"] == line and len(row["trust"]["seeds"]) == 1 + bool(second)
    assert read_summary(path)["notes"][-1].startswith(note)
    assert line in path.with_name("report.html").read_text(encoding="utf-8")


def test_a_run_of_before_the_probe_has_no_alarm_and_keeps_its_curves(run):
    """Its results say nothing of it, and its predicted_return had another meaning."""
    assert not any("trust" in row for row in read_summary(run[0])["tasks"])
    page = run[0].with_name("report.html").read_text(encoding="utf-8")
    assert "predicted return, 10 at the end" in page and "imagined step 8, +10.000 at the end" in page
