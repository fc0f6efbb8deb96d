"""Conversions and collections that are killed outright leave nothing behind that stays, and lose nothing."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import torch

from tests.data.killed import REPOSITORY, run, run_until_killed
from tests.data.shards import LENGTH, convert, save_shards
from torchrl_pwm._utils.files import locked, staged_folder
from torchrl_pwm.data import EpisodeStore, collect_dataset

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs SIGKILL, file locks and /proc")

KILLED_CONVERSION = f"""
import os, signal, sys
from torchrl_pwm.data import EpisodeStoreWriter, convert_shards

class Writer(EpisodeStoreWriter):
    def write(self, *args):
        super().write(*args)
        if self._written == {{"walker-stand": 1, "cheetah-run": 0, "mw-reach": 2}}:
            os.kill(os.getpid(), signal.SIGKILL)

sys.modules["torchrl_pwm.data.published.convert"].EpisodeStoreWriter = Writer
convert_shards(sys.argv[2:], sys.argv[1], task_set="mt80", episode_length={LENGTH}, progress=False)
"""


def sums(root):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in root.iterdir()}


def test_a_killed_conversion_is_cleaned_up_by_the_next(tmp_path):
    paths = save_shards(tmp_path / "shards")
    before = sums(tmp_path / "shards")
    run_until_killed(KILLED_CONVERSION, tmp_path / "data", *paths)
    (left,) = tmp_path.glob(".data-*.tmp")
    assert not (tmp_path / "data").exists()
    store = convert(paths, tmp_path / "data")
    assert not left.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "shards"]
    assert sums(tmp_path / "shards") == before
    assert store.num_rows == 6 and sums(convert(paths, tmp_path / "other").root) == sums(store.root)


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    code = """
import sys
from torchrl_pwm._utils.files import staged_folder
with staged_folder(sys.argv[1]) as stage:
    print(stage, flush=True)
    sys.stdin.readline()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "data"],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    stage = tmp_path / process.stdout.readline().strip()
    other = tmp_path / ".data-more-01234567.tmp"
    other.mkdir()
    with staged_folder(tmp_path / "data"):
        assert stage.is_dir() and other.is_dir()
    process.kill()
    process.communicate()
    (tmp_path / "data").rmdir()
    with staged_folder(tmp_path / "data"):
        assert not stage.exists() and other.is_dir(), "that of another data set whose name begins alike stays"


def test_a_lock_is_held_once(tmp_path):
    with locked(tmp_path) as first, locked(tmp_path) as second:
        assert first and not second
    with locked(tmp_path) as again:
        assert again


MEMORY = """
import sys
import torchrl_pwm.data.published.convert as convert
from tests.data.killed import memory, restart_peak
from torchrl_pwm.data import convert_shards

convert._CHUNK_BYTES = 1 << 20
convert_shards([sys.argv[2]], sys.argv[1] + "-small", task_set="mt80", progress=False)
before = restart_peak()
assert memory("VmHWM") < before + 8
convert_shards(sys.argv[3:], sys.argv[1], task_set="mt80", progress=False)
print(memory("VmHWM") - before)
"""


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_converting_never_holds_more_than_one_shard(tmp_path, layout):
    """Five shards of 48 MB: the peak grows by one of them and a bit."""
    rows = 2600
    paths = []
    for i, count in enumerate([10, *[rows] * 5]):
        shard = {
            "obs": torch.randn(count, 101, 39),
            "action": torch.zeros(count, 101, 6),
            "reward": torch.zeros(count, 101),
            "task": torch.full((count, 101), i, dtype=torch.uint8),
        }
        paths.append(tmp_path / f"chunk_{i}.pt")
        torch.save(shard, paths[-1], _use_new_zipfile_serialization=layout == "zip")
    size = paths[1].stat().st_size / 2**20
    grown = float(run(MEMORY, tmp_path / "data", *paths).stdout)
    assert EpisodeStore(tmp_path / "data").num_rows == 5 * rows
    assert grown < 1.8 * size, f"{grown:.0f} MiB for shards of {size:.0f} MiB"


KILLED_COLLECTION = """
import os, signal, sys
import torchrl_pwm.data.collect.dataset as collect
import torchrl_pwm.data.store.writer as writer

root, place = sys.argv[1:]
episodes, finish = collect.task_episodes, writer.EpisodeStoreWriter._finish

def killed_episodes(job):
    for number, episode in enumerate(episodes(job)):
        if place == f"{job.task} {number}":
            os.kill(os.getpid(), signal.SIGKILL)
        yield episode

def killed_finish(self):
    if self.root.name == "data" and place == "assembling":
        os.kill(os.getpid(), signal.SIGKILL)
    finish(self)

collect.task_episodes, writer.EpisodeStoreWriter._finish = killed_episodes, killed_finish
collect.collect_dataset(
    ["pendulum-swingup", "mw-reach"], root, behavior={"pendulum-swingup": "random", "mw-reach": "scripted"},
    episodes={"pendulum-swingup": 2, "mw-reach": 3}, seed=3, workers=1, progress=False,
)
"""


def test_a_collection_killed_and_resumed_gives_the_same_bytes(tmp_path):
    collect_dataset(
        ["pendulum-swingup", "mw-reach"],
        tmp_path / "whole",
        behavior={"pendulum-swingup": "random", "mw-reach": "scripted"},
        episodes={"pendulum-swingup": 2, "mw-reach": 3},
        seed=3,
        workers=1,
        progress=False,
    )
    partial = tmp_path / "data.partial"
    run_until_killed(KILLED_COLLECTION, tmp_path / "data", "pendulum-swingup 1")
    assert [path.name[:17] for path in partial.iterdir()] == [".pendulum-swingup"], "half-written"
    run_until_killed(KILLED_COLLECTION, tmp_path / "data", "mw-reach 2")
    finished = sums(partial / "pendulum-swingup")
    assert len(list(partial.glob(".mw-reach-*.tmp"))) == 1
    run_until_killed(KILLED_COLLECTION, tmp_path / "data", "assembling")
    assert sums(partial / "pendulum-swingup") == finished and (partial / "mw-reach").is_dir()
    assert not (tmp_path / "data").exists() and len(list(tmp_path.glob(".data-*.tmp"))) == 1
    run(KILLED_COLLECTION, tmp_path / "data", "nowhere")
    assert sums(tmp_path / "data") == sums(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "whole"]
