"""The table of faults and attacks in docs/reliability.md: each kind, how often it was tried, and what happened.

    python -m benchmarks.reliability.faults        # runs the tests that try them, some minutes, and writes the table

The kills at random moments are those of ``python -m benchmarks.reliability``, which comes first.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.learning.jobs import ROOT
from benchmarks.machine import machine
from torchrl_pwm._utils.files import replace_file

PAGE = ROOT / "docs" / "reliability.md"
_BEGIN, _END = "<!-- begin of the table of faults -->\n", "<!-- end of the table of faults -->\n"
_SIGNALS, _RUNS = "tests/utils/test_stopping.py", "tests/runs/test_stopping.py"
_RECORDS, _TENSORS, _HDF5 = (f"tests/attacks/test_{name}.py" for name in ("records", "tensors", "hdf5"))
_MINARI, _DEPTHS = "tests/attacks/test_minari.py", "tests/attacks/test_depths.py"
_CONFIG = "tests/runs/test_damaged_config.py"
_CHANGED, _CHECKPOINT = "tests/attacks/test_changed.py", "tests/utils/test_checkpoint.py"
_ENGINES, _STEPS = "tests/runs/test_engines.py", "tests/trainers/test_bad_steps.py"
_DATA, _KILLED = "tests/trainers/test_non_finite.py", "tests/data/test_killed.py"
_HOSTILE, _RECORD = "test_a_hostile_file", "test_a_hostile_record"


@dataclass(frozen=True)
class Fault:
    """A kind of fault or attack.

    Args:
        kind: what goes wrong.
        outcome: what happens then, which the tests assert.
        file: of the tests that try it.
        chosen: regular expression that the names of these tests begin with.
    """

    kind: str
    outcome: str
    file: str
    chosen: str

    @property
    def command(self) -> str:
        """A command that tries it, and perhaps more of its kind."""
        chosen = re.fullmatch(r"(\w*)\(([^()]*)\)\w*", self.chosen)
        if chosen is None:
            names = re.sub(r"\W.*", "", self.chosen)
        else:
            names = " or ".join(chosen[1] + middle for middle in chosen[2].split("|"))
        return f'pytest {self.file} -k "{names}"'


def hostile(kind: str, *names: str) -> Fault:
    """Files of tensors, by the names of ``tests/attacks/hostile.py``."""
    return Fault(kind, _REFUSED, _TENSORS, rf"{_HOSTILE}.*\[({'|'.join(names)})\]")


def record(kind: str, name: str) -> Fault:
    """JSON of each of eight readers."""
    return Fault(kind, _REFUSED, _RECORDS, rf"{_RECORD}.*-{name}\]")


_REFUSED = "refused"
_LAST = "the last checkpoint stays in force"
FAULTS = [
    # What happens to processes.
    Fault(
        "SIGINT, SIGTERM or SIGHUP to the first process or to all", "all workers save and end", _SIGNALS, "test_a_first"
    ),
    Fault("a second signal", "all ends at once, no process left", _SIGNALS, "test_a_second_signal"),
    Fault(
        "a second signal, and cleaning up that never ends",
        "all ends, no semaphore left",
        _SIGNALS,
        "test_an_end_at_once",
    ),
    Fault("a signal where nothing can be finished", "ends at the first", _SIGNALS, "test_what_cannot"),
    Fault("a signal that was ignored before (`nohup`)", "stays ignored", _SIGNALS, "test_what_was_ignored"),
    Fault(
        "a signal in a run of each kind",
        "exit code 143; resumed to the same numbers",
        _RUNS,
        "test_a_run_that_a_signal",
    ),
    Fault("a signal while a world model learns in an online run", "resumed there", _RUNS, "test_pretraining_is"),
    Fault("signals to a run with collecting workers", "no process left", _RUNS, "test_a_collector"),
    Fault("signals to extraction in several processes", "saved; no process left", _RUNS, "test_extraction_in"),
    Fault(
        "a worker that is killed",
        "one sentence; what is done is kept",
        "tests/utils/test_processes.py",
        "test_a_killed",
    ),
    Fault("the first process is killed", "its workers end", "tests/utils/test_processes.py", "test_workers_end"),
    Fault("an evaluating worker is killed", "it is named", "tests/utils/test_evaluations.py", "test_a_worker_that"),
    Fault("a worker of Ray is killed", "tried again; equal to one process", _ENGINES, "test_six_policies_of_ray"),
    Fault("a job of submitit is killed", "tried again; equal to one process", _ENGINES, "test_six_policies_of_jobs"),
    Fault("the driver of a Ray run is killed", "resumed; nothing done twice", _ENGINES, "test_a_run_whose_driver"),
    Fault(
        "a rank of `torchrun` is killed",
        "started again; ends as one process does",
        "tests/runs/test_pretrain.py",
        "test_a_rank",
    ),
    Fault(
        "a training stops at any place of its loop",
        "resumed to the same numbers",
        "tests/trainers/test_resume.py",
        "test_every_place",
    ),
    Fault(
        "a training process is killed", "resumed to the same numbers", "tests/trainers/test_resume.py", "test_a_killed"
    ),
    Fault("a collection is killed", "resumed to the same bytes", _KILLED, "test_a_collection"),
    Fault("a conversion is killed", "the next one cleans up", _KILLED, "test_a_killed_conversion"),
    Fault(
        "a download is killed, breaks off or is longer than the file",
        "goes on where it broke",
        "tests/data/test_download.py",
        "test_a_(killed|connection|part)",
    ),
    # Two processes.
    Fault(
        "a second process in a run's folder", "kept out with one sentence", _RUNS, "test_(one_process|a_second_process)"
    ),
    Fault("a second process at a data set", "kept out, or leaves it alone", _KILLED, "test_(a_lock|what_a_living)"),
    # Disks.
    Fault("a full disk", "one sentence, exit code 1; logs whole, checkpoint in force", _RUNS, "test_a_full_disk"),
    Fault("a full disk in the middle of a checkpoint", f"{_LAST}, nothing left over", _CHECKPOINT, "test_a_full_disk"),
    Fault("any write of a checkpoint fails", _LAST, _CHECKPOINT, "test_a_failure_at_any_write"),
    Fault("what cannot be saved", _LAST, _CHECKPOINT, "test_what_cannot_be_saved"),
    Fault("a folder that cannot be written", "one sentence, exit code 1", _RUNS, "test_a_folder_that_cannot"),
    Fault("a clock that jumps", "nothing goes by the clock", _CHECKPOINT, "test_a_clock"),
    Fault("leftovers of killed processes", "removed at the next save", _CHECKPOINT, "test_what_killed"),
    Fault("a log cut short", "cut back to whole rows", "tests/trainers/test_resume.py", "test_resume_from_a_row"),
    # Checkpoints.
    Fault(
        "the newest checkpoint is damaged",
        "a warning; the run goes on from the one before",
        _CHECKPOINT,
        "test_where_the_newest",
    ),
    Fault(
        "the manifest of the checkpoints is damaged",
        "they are found by their names",
        _CHECKPOINT,
        "test_with_a_damaged",
    ),
    Fault(
        "one damaged byte, or a checkpoint cut short",
        "refused with what was found",
        _CHECKPOINT,
        "test_(one_damaged|a_truncated)",
    ),
    Fault("a manifest that leads out of its folder", _REFUSED, _CHECKPOINT, "test_a_manifest_does_not"),
    # Numbers.
    Fault(
        "NaN rewards, infinite observations in an online run",
        "stops at the step, named; nothing saved of it",
        _STEPS,
        "test_an_online_run",
    ),
    Fault("an action that is not finite", "laid at the policy's door", _STEPS, "test_an_action"),
    Fault("recorded steps that are not finite", "not written", _STEPS, "test_steps_are"),
    Fault("an evaluation meets an observation that is not finite", "stops, named", _STEPS, "test_an_evaluation"),
    Fault(
        "data, losses and gradients that are not finite",
        "stops with update, key and task; nothing saved",
        _DATA,
        "test_(bad_data|value_targets|a_critic|a_trainer)",
    ),
    Fault("weights that are not finite, of any type", _REFUSED, _TENSORS, "test_(weights|numbers|an_agent)"),
    # Files that changed.
    Fault(
        "bits flipped, bytes cut or inserted, in 33 kinds of files",
        "refused, or read as written",
        _CHANGED,
        "test_a_changed",
    ),
    # Files that were made to harm.
    hostile("code in pickles and archives", ".* code.*"),
    hostile("storages and tensors beyond what the file holds", ".*beyond.*", ".*of two sizes", ".*of true size"),
    hostile(
        "sizes, strides and names that cannot be",
        ".*strides",
        ".*negative.*",
        ".*huge numbers",
        ".*is text",
        ".*outside",
        "a storage that is not there",
    ),
    hostile("objects that take a terabyte", ".*terabyte.*", "a parameter of no tensor", "a compressed archive"),
    hostile("archives that can be read in two ways", "two records of one name", "an archive (after|before) something"),
    hostile(
        "pickles nested deep, endless or in themselves",
        "a pickle (of|with a).*",
        "a list in itself",
        "lists that double",
    ),
    hostile(
        "headers of gigabytes, deep, or cut short",
        "a header of.*",
        "a safetensors file cut short",
        "a deep safetensors header",
        "a long version",
    ),
    hostile(
        "what is no model: text, web pages, noise, nothing",
        "nothing.*",
        "text",
        "a web page",
        "noise",
        "no model",
        "a list",
        "a number",
        "tensors of no model",
        "an archive (without|of).*",
    ),
    record("JSON that is nested deep", "deep.*"),
    record("JSON that is empty, cut short or no text", "(nothing|text|half|no text)"),
    record("JSON of 18 MB, or with a number of 10,000 digits", "(large|a long number)"),
    record("JSON of other kinds", "(a list|null|entries of other kinds)"),
    Fault(
        "configurations with calls, references, the environment", _REFUSED, _RECORDS, "test_a_configuration_that_names"
    ),
    Fault(
        "configurations that are no YAML, deep, large, with types", _REFUSED, _RECORDS, "test_a_hostile_configuration"
    ),
    Fault("a model's configuration larger than its weights", _REFUSED, _RECORDS, "test_a_configuration_of"),
    Fault("hostile weights in a model's folder", _REFUSED, _RECORDS, "test_a_hostile_network"),
    Fault("memory maps that list what is not there", _REFUSED, _RECORDS, "test_a_memory_map"),
    Fault("manifests that claim what is not there or lead outside", _REFUSED, _RECORDS, "test_a_manifest"),
    Fault(
        "shards that were forged with their manifest",
        _REFUSED,
        "tests/trainers/test_distributed.py",
        "test_(forged_shards|a_shard_of_no)",
    ),
    Fault("loops of links, pipes", _REFUSED, _RECORDS, "test_links"),
    Fault("HDF5 with links, external files, arrays that are not there", _REFUSED, _HDF5, "test_(an_array|what_is_no)"),
    Fault("a Minari data set with the same, or cut short", _REFUSED, _MINARI, "test_a_(hostile|data_set_that)"),
    Fault("a network of thousands of layers", "refused before it is built", _DEPTHS, "test_a_(folder|file|run)"),
    Fault(
        "a run's configuration that was cut or changed",
        _REFUSED,
        _CONFIG,
        "test_(a_configuration_cut|an_earlier|an_option)",
    ),
    Fault(
        "running episodes of an env that its seeds do not decide",
        "a warning, new episodes",
        "tests/data/test_running_episodes.py",
        "test_an_env_that_its_seeds",
    ),
]


@dataclass(frozen=True)
class Tried:
    """A test that ran: its file, its name with its parameters, how often it tried, and whether it passed."""

    file: str
    name: str
    times: int
    passed: bool


def run_tests(faults: Sequence[Fault]) -> list[Tried]:
    """Runs the files of the faults' tests, those of the nightly target too."""
    files = sorted({fault.file for fault in faults})
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "junit.xml"
        options = ["-m", "slow or not slow", "-q", "-n", "2", "-p", "no:randomly", f"--junit-xml={out}"]
        subprocess.run([sys.executable, "-m", "pytest", *options, *files], cwd=ROOT, check=False)
        cases = ElementTree.parse(out).getroot().iter("testcase")
        return [_tried(case) for case in cases]


def _tried(case: ElementTree.Element) -> Tried:
    times = [entry.get("value") for entry in case.iter("property") if entry.get("name") == "tries"]
    bad = any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
    file = case.get("classname", "").replace(".", "/") + ".py"
    return Tried(file, case.get("name", ""), int(times[0] or 1) if times else 1, not bad)


def rows(faults: Sequence[Fault], tried: Sequence[Tried]) -> list[str]:
    """A row for each kind.

    Raises:
        ValueError: if no test tries one of them.
    """
    lines = []
    for fault in faults:
        mine = [test for test in tried if test.file == fault.file and re.match(fault.chosen, test.name)]
        if not mine:
            raise ValueError(f"no test of {fault.file} tries {fault.kind!r}: {fault.chosen}")
        failed = [test.name for test in mine if not test.passed]
        outcome = fault.outcome if not failed else f"**not so in {len(failed)} of {len(mine)} tests**"
        lines.append(f"| {fault.kind} | {sum(test.times for test in mine):,} | {outcome} | `{fault.command}` |")
    return lines


def kills() -> list[str]:
    """The row of the kills at random moments, if there were any."""
    file = ROOT / "benchmarks" / "results" / "kills.json"
    if not file.exists():
        return []
    runs = json.loads(file.read_text())["runs"]
    bad = sum(bool(run["lost"] or run["different"]) for run in runs)
    outcome = "resumed to the same bits" if not bad else f"**{bad} of {len(runs)} runs came to others**"
    kind = "SIGKILL at random moments of all that writes ([by kind](../benchmarks/results/kills.md))"
    count = sum(len(run["kills"]) for run in runs)
    return [f"| {kind} | {count} | {outcome} | `python -m benchmarks.reliability` |"]


def write(lines: Sequence[str], seconds: float) -> None:
    """Puts the table into the page of the documentation."""
    about = machine(torch.device("cpu"))
    said = (
        f"{len(lines)} kinds, each as often as one call tries it: `python -m benchmarks.reliability.faults`, "
        f"{time.strftime('%Y-%m-%d')}, {about['processor']}, {about['system']}, torch {torch.__version__}, "
        f"{seconds / 60:.0f} minutes. *Refused* is `DamagedFileError`, or a ValueError that says what to do: nothing "
        "was run, written or connected to, and memory stayed bounded.\n"
    )
    table = ["| fault or attack | tried | what happened | command |", "|---|---|---|---|", *lines]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    text = f"{before}{_BEGIN}\n{said}\n" + "\n".join(table) + f"\n\n{_END}{after}"
    replace_file(PAGE, text.encode())


def main() -> int:
    """The exit code: 1 if something else happened."""
    start = time.monotonic()
    tried = run_tests(FAULTS)
    lines = [*kills(), *rows(FAULTS, tried)]
    write(lines, time.monotonic() - start)
    return int(any("**" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
