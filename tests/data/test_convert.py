from __future__ import annotations

import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from tests.data.counting import counting_rows
from tests.data.shards import LENGTH, SHARDS, convert, make_shard, refused, save_shards
from torchrl_pwm.data import TDMPC2ExperienceReplay
from torchrl_pwm.envs.tasks import MT30, MT80, TaskSet


@pytest.mark.parametrize("layout", ["tensordict", "dict", "legacy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("filler", [float("nan"), 7.0])
def test_arrival_entries_become_transitions_grouped_by_task(tmp_path, layout, dtype, filler):
    paths = save_shards(tmp_path / "shards", layout=layout, dtype=dtype, filler=filler)
    store = convert(paths, tmp_path / "data")
    assert [(rows.name, rows.start, rows.stop) for rows in store.manifest.tasks] == [
        ("walker-stand", 0, 2),
        ("cheetah-run", 2, 3),
        ("mw-reach", 3, 6),
    ]
    for rows in store.manifest.tasks:
        expected = counting_rows("mt80", rows.name, rows.stop - rows.start, LENGTH)
        for name, array in zip(("observation", "action", "reward"), expected):
            stored = torch.tensor(array).to(dtype).float().numpy()
            assert np.array_equal(getattr(store, name)[rows.start : rows.stop], stored)
    replay = TDMPC2ExperienceReplay(store.root, 64, slice_len=3, verify=True)
    batch = replay.sample()
    assert all(batch[key].isfinite().all() for key in ("observation", "action", ("next", "reward")))
    assert not torch.any(batch["action"] == 7.0)


def test_the_result_does_not_depend_on_how_many_rows_are_moved_at_a_time(tmp_path, monkeypatch):
    paths = save_shards(tmp_path / "shards")
    whole = convert(paths, tmp_path / "whole")
    monkeypatch.setattr("torchrl_pwm.data.published.convert._CHUNK_BYTES", 1)
    assert convert(paths, tmp_path / "single").manifest == whole.manifest


@pytest.mark.parametrize(
    ("given", "actual", "message"),
    [
        ("mt30", MT80, r"\(1, 101, 39\), but a shard of mt30 has \(rows, 501, 24\); .*pass task_set='mt80'"),
        ("mt80", MT30, r"\(1, 501, 24\), but a shard of mt80 has \(rows, 101, 39\); .*pass task_set='mt30'"),
    ],
)
def test_the_other_published_set_is_recognised(tmp_path, given, actual, message):
    length = {"mt30": 500, "mt80": 100}[actual.name]
    torch.save(make_shard([("walker-run", 0)], task_set=actual, length=length), tmp_path / "s.pt")
    refused(tmp_path, ValueError, message, [tmp_path / "s.pt"], task_set=given, episode_length=None)


def test_the_published_lengths_are_accepted(tmp_path):
    torch.save(make_shard([("walker-run", 0)], task_set=MT30, length=500), tmp_path / "a.pt")
    torch.save(make_shard([("walker-run", 0)], task_set=MT80, length=100), tmp_path / "b.pt")
    for name, task_set, length in (("a", "mt30", 500), ("b", "mt80", 100)):
        store = convert([tmp_path / f"{name}.pt"], tmp_path / task_set, task_set=task_set, episode_length=None)
        assert store.row_length == length


def test_another_row_length_is_refused(tmp_path):
    refused(tmp_path, ValueError, r"\(3, 7, 39\), but a shard of mt80 has \(rows, 101, 39\)", episode_length=None)


@pytest.mark.parametrize(("task_set", "count"), [("mt30", 4), ("mt80", 20)])
def test_a_missing_shard_of_a_folder_is_named(tmp_path, task_set, count):
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in range(count):
        if i != 1:
            (folder / f"chunk_{i}.pt").touch()
    refused(tmp_path, FileNotFoundError, f"lacks chunk_1.pt of the {count} shards", folder, task_set=task_set)


def test_the_shards_of_another_set_in_the_folder_are_noticed(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in range(20):
        (folder / f"chunk_{i}.pt").touch()
    refused(tmp_path, ValueError, "chunk_4.pt, .* besides the 4 shards of mt30", folder, task_set="mt30")


def test_a_complete_folder_is_converted(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in range(4):
        torch.save(make_shard([("walker-run", i)], task_set=MT30), folder / f"chunk_{i}.pt")
    assert convert(folder, tmp_path / "data", task_set="mt30").num_rows == 4


def test_a_shard_given_twice_is_refused(tmp_path):
    paths = save_shards(tmp_path / "shards")
    refused(tmp_path, ValueError, "chunk_0.pt was given several times", [paths[0], paths[1], paths[0]])


def test_a_copy_of_a_shard_under_another_name_is_refused(tmp_path):
    paths = save_shards(tmp_path / "shards")
    paths[1].write_bytes(paths[0].read_bytes())
    refused(tmp_path, ValueError, "chunk_1.pt and chunk_0.pt hold the same bytes", paths)


@pytest.mark.parametrize("layout", ["tensordict", "legacy"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.95])
def test_a_shard_that_was_cut_short_is_refused(tmp_path, layout, keep):
    paths = save_shards(tmp_path / "shards", layout=layout)
    size = int(paths[1].stat().st_size * keep)
    with open(paths[1], "r+b") as file:
        file.truncate(size)
    message = (
        rf"chunk_1\.pt .*(cut short or damaged.* \({size} bytes\)|\({size} bytes\).*cut short)"
        if size
        else "it is empty"
    )
    refused(tmp_path, ValueError, message, paths)


def test_a_file_that_is_no_shard_is_refused(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    refused(tmp_path, ValueError, r"text\.pt", [tmp_path / "text.pt"])
    refused(tmp_path, FileNotFoundError, "does not exist", [tmp_path / "nothing.pt"])
    refused(tmp_path, FileNotFoundError, "no folder or shard", tmp_path / "nothing")
    refused(tmp_path, ValueError, "no shards were given", [])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s["task"].__setitem__((1, 4), 3), r"row 1 of chunk_0.pt belongs to several tasks \(\[0, 3\]\)"),
        (lambda s: s["task"].__setitem__(2, 80), "row 2 of chunk_0.pt has the task index 80, but mt80 has .* 0 to 79"),
        (lambda s: s["task"].__setitem__(2, -1), "task index -1"),
        (
            lambda s: s["obs"].__setitem__((2, 0, 5), float("nan")),
            "observation of task mw-reach is nan in row 2 of chunk_0.pt at step 0",
        ),
        (
            lambda s: s["obs"].__setitem__((1, 6, 5), float("inf")),
            "observation of task walker-stand is inf in row 1 .* at step 6",
        ),
        (
            lambda s: s["action"].__setitem__((2, 3, 1), float("nan")),
            "action of task mw-reach is nan in row 2 .* at step 2",
        ),
        (
            lambda s: s["reward"].__setitem__((0, 1), float("nan")),
            "reward of task mw-reach is nan in row 0 .* at step 0",
        ),
        (lambda s: s.pop("reward"), "has no tensor 'reward'; .* found"),
        (lambda s: s.update(action=s["action"][..., :4]), r"action of shape \(3, 7, 4\), expected \(3, 7, 6\)"),
        (lambda s: s.update(reward=s["reward"][:2]), r"reward of shape \(2, 7\), expected \(3, 7\)"),
        (lambda s: s.update(obs=s["obs"][0]), r"obs of shape \(7, 39\)"),
    ],
)
def test_a_damaged_shard_is_refused_and_nothing_is_left(tmp_path, edit, message):
    paths = save_shards(tmp_path / "shards")
    shard = make_shard(SHARDS[0])
    edit(shard)
    torch.save(shard, paths[0])
    refused(tmp_path, ValueError, message, paths)


def test_an_existing_data_set_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").touch()
    with pytest.raises(FileExistsError, match="exists already"):
        convert(["no-such-file"], tmp_path / "data")


class _Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["top", "value", "tensordict"])
def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path, protocol, place):
    trap = tmp_path / "trap"
    shard = make_shard(SHARDS[0])
    if place == "top":
        shard = _Hostile(str(trap))
    elif place == "value":
        shard["extra"] = _Hostile(str(trap))
    else:
        shard = TensorDict(shard, batch_size=shard["task"].shape)
        shard._tensordict["extra"] = _Hostile(str(trap))
    torch.save(shard, tmp_path / "hostile.pt", pickle_protocol=protocol)
    message = r"hostile\.pt was refused: it refers to posix\.mkdir"
    refused(tmp_path, ValueError, message, [tmp_path / "hostile.pt"])
    assert not trap.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_is_refused_and_not_executed(tmp_path):
    trap = tmp_path / "trap"
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(_Hostile(str(trap))))
    refused(tmp_path, ValueError, r"bare\.pt", [tmp_path / "bare.pt"])
    assert not trap.exists()


def test_a_tensordict_pickled_by_an_old_release_is_read(tmp_path, monkeypatch):
    # until 0.3 the class lived in tensordict.tensordict, was built without arguments and kept a dict of its own kind
    module = types.ModuleType("tensordict.tensordict")

    class _StringOnlyDict(dict):
        pass

    class OldTensorDict:
        pass

    for cls, name in ((_StringOnlyDict, "_StringOnlyDict"), (OldTensorDict, "TensorDict")):
        cls.__module__, cls.__qualname__, cls.__name__ = "tensordict.tensordict", name, name
        setattr(module, name, cls)
    monkeypatch.setitem(sys.modules, "tensordict.tensordict", module)
    old = OldTensorDict()
    shard = make_shard(SHARDS[0])
    old.__dict__.update(
        _tensordict=_StringOnlyDict(shard),
        _batch_size=shard["task"].shape,
        _device=torch.device("cpu"),
        _is_locked=False,
    )
    torch.save(old, tmp_path / "old.pt")
    monkeypatch.undo()
    assert convert([tmp_path / "old.pt"], tmp_path / "data").num_rows == 3


def test_a_task_set_of_your_own_is_converted(tmp_path):
    pair = TaskSet("pair", ["mw-reach", "walker-run"])
    torch.save(make_shard([("walker-run", 0)], task_set=pair), tmp_path / "s.pt")
    assert convert(tmp_path / "s.pt", tmp_path / "data", task_set=pair).select()[0].index == 1
