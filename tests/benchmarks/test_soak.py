"""The soak test does each kind of work, sees what a process holds, and sounds for what grows and for nothing else."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("hydra")
pytest.importorskip("dm_control")
pytest.importorskip("metaworld")
if not os.path.isdir("/proc/self/fd"):
    pytest.skip("what processes hold is read from /proc", allow_module_level=True)

from benchmarks.reliability import soak, soak_work
from benchmarks.reliability.process_tree import below, held, processor_seconds, size
from benchmarks.reliability.soak_page import MEASURES, read, verdicts, write
from torchrl_pwm.envs import tasks
from torchrl_pwm.evaluation.task_envs import TaskEnvs
from torchrl_pwm.runs.cli import command_config

COLUMNS = sorted({column for measure in MEASURES for column in (*measure.columns, *measure.less)})
OTHERS = ["short_workers_megabytes", "short_first_handles", "short_workers_handles", "short_first_processes"]
DONE = dict.fromkeys(["short_workers_processes", *OTHERS, "updates", "evaluations", "checkpoints", "rounds"], 1.0)


def rows(**growing):
    """A hundred rows of flat numbers, but for those that grow by so much from the first row to the last."""
    return [
        {"seconds": 10.0 * number, **DONE, **{name: 100.0 + growing.get(name, 0) * number / 100 for name in COLUMNS}}
        for number in range(101)
    ]


def grown(*args, **growing):
    return {each.measure.name for each in verdicts(rows(**growing), *args) if each.grew}


def test_the_verdict_is_silent_for_flat_numbers_and_for_a_warm_up():
    assert grown() == set()
    begun = rows()
    for row in begun[:10]:
        row.update(dict.fromkeys(COLUMNS, 5.0))
    assert not any(each.grew for each in verdicts(begun))


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_the_verdict_sounds_for_what_grows_beyond_the_rule(measure):
    name = measure.columns[0]
    # Of megabytes a tenth of what they were is allowed; of what is counted nothing.
    assert measure.name in grown(**{name: 2.0 if measure.counted else 100.0})
    assert measure.name not in grown(**{name: 0.0})


def test_a_tenth_of_memory_is_allowed_and_a_passing_file_is_not_counted():
    assert grown(rest_megabytes=9.0) == set()
    spiked = rows()
    for row in spiked[90::4]:
        row["long_first_handles"] += 3
    assert not any(each.grew for each in verdicts(spiked))


def test_logs_may_grow_and_what_else_is_in_the_folder_may_not():
    growing = rows(folder_megabytes=900.0, folder_logs=900.0)
    assert not any(each.grew for each in verdicts(growing))


def test_a_measurement_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="measure for longer"):
        verdicts(rows()[:1] + rows()[-1:])


def test_what_was_not_measured_does_not_pass_as_flat():
    begun = rows()
    for row in begun[:30]:
        row["rest_handles"] = math.nan
    assert [each.measure.columns for each in verdicts(begun) if each.grew is not False] == [("rest_handles",)]


def test_the_page_is_made_of_the_table_of_a_run_that_was_cut_short(tmp_path):
    pytest.importorskip("matplotlib")
    found = rows(rest_handles=4.0)
    lines = [",".join(found[0]), *(",".join(str(value) for value in row.values()) for row in found)]
    (tmp_path / "soak.csv").write_text("\n".join([*lines, "1010.0,1.0"]) + "\n")
    assert read(tmp_path / "soak.csv") == found
    assert len(write(tmp_path, {"command": "soak", "date": "today", "commit": "abc"}, {})) == 1
    page, content = (tmp_path / "soak.md").read_text(), json.loads((tmp_path / "soak.json").read_text())
    assert "| handles of the process of short runs, after a round | 101 | 104 |" in page and page.count("**yes**") == 1
    assert [each["name"] for each in content["verdicts"] if each["grew"]] == [
        "handles of the process of short runs, after a round"
    ]
    assert (tmp_path / "soak.png").stat().st_size > 10_000


def test_what_processes_hold_is_seen(tmp_path):
    code = "import sys; files = [open(sys.executable) for _ in range(40)]; print(1, flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        assert child.pid in below(os.getpid())
        found = held([child.pid])
        assert found.handles >= 43 and found.threads == found.processes == 1 and 2 < found.megabytes < 200
        assert held([os.getpid(), child.pid]).processes == 2
        own = os.times()
        assert own.user + own.system <= processor_seconds([os.getpid()]) + 0.1 <= sum(os.times()[:4]) + 0.2
    finally:
        child.communicate(b"\n")
    assert child.pid not in below(os.getpid()) and held([child.pid]) == (0, 0, 0, 0)
    (tmp_path / "a.csv").write_bytes(bytes(2**20))
    (tmp_path / "b.pt").write_bytes(bytes(2**19))
    assert size(tmp_path) == (1.5, 1.0, 2)


def test_rounds_do_each_kind_of_work_and_the_row_counts_it(tmp_path, monkeypatch, short_episodes):
    run, play, commands, played = soak_work.main, soak_work.evaluate_policy, [], []

    def main(arguments):
        commands.append(arguments)
        if len(commands) <= 2:
            run(arguments)
            shutil.rmtree(tmp_path / "made", ignore_errors=True)
            shutil.copytree(tmp_path / "short", tmp_path / "made")
        else:  # as the first round left it
            shutil.copytree(tmp_path / "made", tmp_path / "short", dirs_exist_ok=True)

    def evaluate(policy, task, **options):
        played.append(options)
        return play(policy, task, **{**options, "parallel": False})

    monkeypatch.setattr(soak_work, "main", main)
    monkeypatch.setattr(soak_work, "evaluate_policy", evaluate)
    with TaskEnvs() as kept:
        soak_work.open_all(kept, ["mw-drawer-close"])
        done = soak_work.one_round(2, tmp_path / "short", kept, tasks=["mw-drawer-close"] * 4)
        assert len(kept) == 2 and not played
        for number in (3, 4):
            soak_work.one_round(number, tmp_path / "short", kept, tasks=["mw-drawer-close"] * 4)
    assert [options.get("parallel", False) for options in played] == [False, True]
    assert [command[1].startswith("resume=") for command in commands] == [False, True] * 3
    assert ["workers=1" in command for command in commands[::2]] == [True, True, False]
    assert (done["updates"], done["checkpoints"], done["loaded"]) == (20, 4, 3)
    assert done["evaluations"] == 7  # at 10 and at 20, each time of the last policy and of the best, and at the end
    assert done["megabytes"] > 50 and done["handles"] > 2 and done["threads"] > 0
    assert not (tmp_path / "short").exists()

    scalars = tmp_path / "long" / "policies" / "cup-catch" / "seed-0" / "scalars"
    scalars.mkdir(parents=True)
    (scalars / "loss_actor.csv").write_text("10,0.5\n50,0.4\n60,0.")
    (scalars / "real_return.csv").write_text("0,1.0\n")
    (tmp_path / soak_work.ROUNDS).write_text(json.dumps(done) + "\n")
    row = soak.sample({"long": os.getpid(), "short": os.getpid()}, tmp_path)
    assert (row["updates"], row["checkpoints"], row["rounds"]) == (70, 6, 1)
    assert row["evaluations"] == done["evaluations"] + 1 and row["rest_handles"] == done["handles"]
    assert set(COLUMNS) | set(DONE) <= set(row)


def test_the_long_run_is_one_of_the_command_line():
    config = command_config("mt80", soak_work.LONG)
    families = {tasks.MT80[task].suite for task in config.task}
    assert len(families) == 2 and config.workers == 2 * len(config.task) and config.extraction.save_interval
    assert {tasks.MT80[task].suite for task in soak_work.TASKS} == families
