"""The whole path in one command: what it prints and leaves, and that it goes on where it was killed."""

from __future__ import annotations

import importlib.util
import signal
import sys

import pytest
import torch

from tests.data.test_convert import make_shard
from tests.examples.running import (
    EVALUATION,
    EXTRACTION,
    NETWORKS,
    TINY,
    call,
    finish,
    session_members,
    start,
    wait_until,
)
from tests.trainers.tiny import assert_same
from torchrl_pwm import PWMWorldModel
from torchrl_pwm.data import EpisodeStoreWriter
from torchrl_pwm.evaluation import read_summary

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("hydra", "metaworld", "dm_control", "matplotlib")),
    reason="the extras mt80, hydra and plots are not installed",
)

TASKS = ("pendulum-swingup", "mw-reach")
ROW = {
    "task",
    "return_mean",
    "return_std",
    "success",
    "score",
    "behavior_return_mean",
    "episodes",
    "seconds_extraction",
    "seeds",
    "baselines",
    "published",
    "last",
    "best",
    "trust",
}
OUTCOME = ("return_mean", "return_std", "success", "score", "episodes")


def without_times(summary):
    rows = [{key: value for key, value in row.items() if key != "seconds_extraction"} for row in summary["tasks"]]
    return {**summary, "tasks": rows, "seconds_total": None, "phases": None}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing interrupts, and what it printed."""
    cwd = tmp_path_factory.mktemp("whole")
    out = finish(start([*TINY, "folder=run", "workers=1"], cwd))
    return cwd / "run", out


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of the same run, killed in the middle of the extractions, and resumed."""
    cwd = tmp_path_factory.mktemp("killed")
    folder = cwd / "run"
    process = start([*TINY, "folder=run", "workers=2"], cwd)
    wait_until(lambda: process.poll() is not None or any(folder.glob("policies/*/seed-0/checkpoint/checkpoint.json")))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert len(list(folder.glob("policies/*/seed-0/result.json"))) < len(TASKS)
    assert not (folder / "summary.json").exists()
    if sys.platform == "linux":
        wait_until(lambda: not session_members(process.pid), 60)
    finish(start(["resume=run", "workers=1"], cwd))
    return folder


def test_the_last_line_is_the_path_of_the_summary(whole):
    folder, out = whole
    lines = out.rstrip("\n").splitlines()
    assert lines[-1] == "run/summary.json"
    assert (folder.parent / lines[-1]).is_file()
    # The table stands beside the published scores.
    assert all(task in out for task in TASKS) and "PWM*" in out


def test_the_summary_has_exactly_the_promised_entries(whole):
    summary = read_summary(whole[0])
    expected = {"tasks", "score_mean", "statistics", "notes", "seconds_total", "seed", "versions"}
    assert set(summary) == expected | {"select", "last", "best", "phases"}
    trained = {"loading", "cloning before the updates", "evaluation along the way", "updates", "final evaluation"}
    assert set(summary["phases"]) == trained | {"behaviour cloning", "films"}
    assert [row["task"] for row in summary["tasks"]] == list(TASKS)
    for row in summary["tasks"]:
        assert set(row) == ROW
        assert row["episodes"] == 2 and row["seconds_extraction"] > 0
        assert set(row["baselines"]) == {"random", "cloning", "data"}
    pendulum, reach = summary["tasks"]
    assert pendulum["success"] is None and pendulum["score"] == pendulum["return_mean"] / 1000
    assert reach["success"] == reach["score"] and reach["return_mean"] > 0
    assert summary["seed"] == 0 and summary["seconds_total"] > 0
    assert {"torch", "torchrl", "mujoco", "metaworld", "dm_control"} <= set(summary["versions"])


def test_policies_and_clones_have_a_last_and_a_best_one_of_which_the_same_counts(whole):
    summary = read_summary(whole[0])
    assert summary["select"] == "best" and summary["score_mean"] == summary["best"]["score_mean"]
    for row in summary["tasks"]:
        for entry in (row, row["baselines"]["cloning"]):
            assert set(entry["last"]) == set(entry["best"]) == {*OUTCOME, "seeds"}
            assert {key: entry[key] for key in OUTCOME} == {key: entry["best"][key] for key in OUTCOME}
    head = next(line for line in whole[1].splitlines() if line.startswith("task ")).split()
    assert head[6:] == ["best", "last", "BC", "best", "BC", "last", "data", "random", "PWM*", "TD-MPC2*"]
    assert "The best one counts (select=best)" in whole[1]


def test_a_run_leaves_its_configuration_metrics_policies_and_pictures(whole):
    folder, _ = whole
    assert (folder / "config.yaml").read_text().count("pendulum-swingup") == 1
    assert (folder / "scores.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(text in page for text in (*TASKS, "behaviour<br>cloning", "Trust probe", "critic_iterations"))
    assert (folder / "world_model" / "world_model.pt").is_file()
    steps = [line.split(",")[0] for line in (folder / "world_model/scalars/loss_reward.csv").read_text().splitlines()]
    assert steps == ["2", "4", "6"]
    for task in TASKS:
        policy = folder / "policies" / task / "seed-0"
        assert (policy / "policy.pt").is_file()
        assert (policy / "training.png").read_bytes().startswith(b"\x89PNG")
        # Evaluated every twenty updates, and before the first: the policy begins as a clone.
        for metric, count in (("loss_actor", 20), ("predicted_return", 3), ("real_return", 3)):
            assert len((policy / "scalars" / f"{metric}.csv").read_text().splitlines()) == count
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_summary_policies_and_metrics(whole, killed):
    folder, _ = whole
    assert without_times(read_summary(killed)) == without_times(read_summary(folder))
    for file in ("world_model/world_model.pt", *(f"policies/{task}/seed-0/policy.pt" for task in TASKS)):
        assert_same(torch.load(killed / file), torch.load(folder / file), file)
    for file in folder.rglob("scalars/*.csv"):
        if file.stem != "training_seconds":
            assert (killed / file.relative_to(folder)).read_text() == file.read_text(), file
    assert not list(killed.rglob("*.tmp"))


def test_resuming_a_finished_run_changes_no_number(whole, monkeypatch, capsys):
    folder, _ = whole
    before = without_times(read_summary(folder))
    monkeypatch.chdir(folder.parent)
    call(["resume=run"], monkeypatch)
    assert capsys.readouterr().out.splitlines()[-1] == "run/summary.json"
    assert without_times(read_summary(folder)) == before


def test_a_finished_run_is_set_beside_the_papers(whole, monkeypatch, capsys):
    folder, _ = whole
    before = without_times(read_summary(folder))
    monkeypatch.chdir(folder.parent)
    call(["resume=run", "compare=published"], monkeypatch)
    shown = capsys.readouterr().out
    found = without_times(read_summary(folder))
    assert set(found.pop("comparison")["tasks"]) == set(TASKS) and found == before
    assert "PWM-H3*" in shown and "This run minus published TD-MPC2" in shown
    assert "Beside the papers" in (folder / "report.html").read_text(encoding="utf-8")
    call(["resume=run"], monkeypatch)
    assert without_times(read_summary(folder)) == before


def test_published_data_and_a_checkpoint_give_policies_of_several_seeds(tmp_path, monkeypatch, capsys):
    """The line for published data and a published model, at a tiny size."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mt80").mkdir()
    for number in range(20):
        shard = make_shard([("mw-reach", number), ("walker-stand", number)], length=100)
        torch.save(shard, tmp_path / "mt80" / f"chunk_{number}.pt")
    write_model(tmp_path / "mt80-tiny.pt")
    line = ["checkpoint=mt80-tiny.pt", "data=published", "data.root=mt80", "task=mw-reach", "seeds=2", "workers=1"]
    call([*line, *NETWORKS, *EXTRACTION, *EVALUATION, "extraction.iterations=2", "folder=run"], monkeypatch)
    assert capsys.readouterr().out.splitlines()[-1] == "run/summary.json"
    (row,) = read_summary(tmp_path / "run")["tasks"]
    assert row["episodes"] == 4
    policies = [torch.load(tmp_path / f"run/policies/mw-reach/seed-{seed}/policy.pt") for seed in (0, 1)]
    assert not torch.equal(*(next(iter(policy["actor"].values())) for policy in policies))
    # No model was trained; the given one is kept with what was made of it.
    assert [file.name for file in (tmp_path / "run" / "world_model").iterdir()] == ["world_model.pt"]
    # Converted once, beside the shards.
    assert (tmp_path / "mt80" / "episodes" / "manifest.json").is_file()


def write_model(path, **sizes):
    options = {"observation_dim": 39, "action_dim": 6, "num_tasks": 80, "task_dim": 4, **sizes}
    model = PWMWorldModel(**options, latent_dim=16, encoder_units=(16,), units=(16, 16), num_bins=11)
    torch.save({"model": model.state_dict()}, path)


@pytest.fixture
def place(tmp_path, monkeypatch, whole):
    """A folder with what the wrong commands below name."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text((whole[0] / "config.yaml").read_text())
    write_model(tmp_path / "action4.pt", action_dim=4)
    write_model(tmp_path / "mt30.pt", observation_dim=24, num_tasks=30)
    torch.save({"what": torch.zeros(1)}, tmp_path / "unknown.pt")
    (tmp_path / "empty").mkdir()
    with EpisodeStoreWriter(tmp_path / "episodes30", "mt30", {"walker-run": 1}, row_length=4) as writer:
        writer.write("walker-run", *(torch.zeros(shape).numpy() for shape in ((1, 5, 24), (1, 4, 6), (1, 4))))
    (tmp_path / "shards").mkdir()
    torch.save(make_shard([("mw-reach", 0)], length=100), tmp_path / "shards" / "chunk_0.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


WRONG = {
    "unknown task": (["task=walker-fly"], "ValueError: unknown task 'walker-fly'.*did you mean 'walker"),
    "unknown task set": (["task_set=mt50"], "mt50"),
    "task of another set": (["task_set=mt30", "task=mw-reach"], "unknown task 'mw-reach'"),
    "unknown comparison": (["compare=paper"], "compare must be null or published, found 'paper'"),
    "no policies": (["seeds=0"], "at least 1, found 0"),
    "unknown selection": (["extraction.select=first"], "last or best, found 'first'"),
    "model without embedding": (["model=custom", "preset=from_scratch"], "num_tasks=80 and task_dim=0: give both"),
    "latent of another size": (["model.latent_dim=20", "preset=from_scratch"], "latent_dim.*8"),
    "task that the quickstart lacks": (["task=mw-reach"], "knows walker-stand.*, not mw-reach.*preset=from_scratch"),
    "rounds without data": (["rounds.count=1"], "no episodes.*rounds.count=0"),
    "missing run": (["resume=nowhere"], "FileNotFoundError: No run to resume in nowhere"),
    "run of another seed": (["resume=run", "seed=3"], "another configuration.*seed: the run has 0, the command says 3"),
    "run of another task": (["resume=run", "task=mw-push"], "another configuration.*task: .*mw-push"),
    "run of another preset": (["resume=run", "preset=published"], "another configuration.*preset: the run has from_sc"),
    "folder in use": (["folder=run"], "run already holds a run: go on with resume=run"),
    "missing checkpoint": (["checkpoint=missing.pt"], "No checkpoint at missing.pt"),
    "unknown checkpoint": (["checkpoint=unknown.pt"], "unknown keys.*what"),
    "another action size": (["checkpoint=action4.pt"], r"does not fit mt80: action size 4 \(expected 6\)"),
    "another set's model": (["checkpoint=mt30.pt"], r"observation size 24 \(expected 39\).*tasks 30 \(expected 80\)"),
    "missing data": (["data=published", "data.root=/nowhere"], "No data in /nowhere: expected .*chunk_"),
    "no data in folder": (["data=published", "data.root=empty"], "No data in empty"),
    "data of another set": (["data=open", "data.root=episodes30"], "configured for task_set=mt80.*are of mt30"),
    "data without the task": (
        ["data=open", "data.root=episodes30", "task_set=mt30", "task=walker-walk"],
        "walker-walk",
    ),
    "missing shards": (["data=published", "data.root=shards", "task=mw-reach"], "shards lacks chunk_1.pt, chunk_2.pt"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_command_says_what_to_do_and_writes_nothing(name, place, monkeypatch):
    arguments, message = WRONG[name]
    before = sorted(place.rglob("*"))
    with pytest.raises(SystemExit) as end:
        call([*arguments, "progress=false"], monkeypatch)
    # sys.exit(text) prints the text to stderr and ends with code 1.
    assert isinstance(end.value.code, str)
    assert "Traceback" not in end.value.code
    assert_matches(message, end.value.code)
    assert sorted(place.rglob("*")) == before


def assert_matches(pattern, text):
    with pytest.raises(ValueError, match=rf"(?s){pattern}"):
        raise ValueError(text)


def test_a_missing_extra_is_named_before_anything_is_written(place, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "metaworld" else find(name, *rest)
    )
    before = sorted(place.rglob("*"))
    with pytest.raises(SystemExit, match=r"pip install \"torchrl-pwm\[mt80\]\""):
        call(["task=mw-reach"], monkeypatch)
    assert sorted(place.rglob("*")) == before


def test_the_traceback_can_be_asked_for(place, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="walker-fly"):
        call(["task=walker-fly"], monkeypatch)


def test_an_unexpected_error_keeps_its_traceback(place, monkeypatch):
    monkeypatch.setattr("torchrl_pwm.runs.pwm_offline.get_task_set", lambda name: {}["surprise"])
    with pytest.raises(KeyError, match="surprise"):
        call([], monkeypatch)


def test_the_configuration_of_a_run_is_whole(whole):
    text = (whole[0] / "config.yaml").read_text()
    for entry in ("preset: from_scratch", "betas", "critic_iterations", "simnorm_dim", "_target_: torchrl_pwm.PWMLoss"):
        assert entry in text
