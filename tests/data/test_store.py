from __future__ import annotations

import hashlib
import json
import pickle
import sys

import numpy as np
import pytest
import torch

from tests.data.counting import COUNTS, counting_rows, write_counting_store
from tests.handles import open_handles
from torchrl_pwm.data import EpisodeStorage, EpisodeStore, EpisodeStoreWriter
from torchrl_pwm.envs.tasks import MT80, TaskSet


def test_rows_are_grouped_by_task_in_the_order_of_the_set(counting_root):
    store = EpisodeStore(counting_root, verify=True)
    assert store.tasks == ("walker-stand", "cheetah-run", "mw-reach")
    assert [(rows.start, rows.stop) for rows in store.manifest.tasks] == [(0, 2), (2, 6), (6, 9)]
    for rows in store.manifest.tasks:
        observation, action, reward = counting_rows("mt80", rows.name, COUNTS[rows.name], 12)
        assert np.array_equal(store.observation[rows.start : rows.stop], observation)
        assert np.array_equal(store.action[rows.start : rows.stop], action)
        assert np.array_equal(store.reward[rows.start : rows.stop], reward)


def test_rows_may_be_written_in_pieces_and_in_any_order_of_tasks(tmp_path):
    whole = write_counting_store(tmp_path / "whole")
    with EpisodeStoreWriter(tmp_path / "pieces", "mt80", COUNTS, row_length=12) as writer:
        for first in range(4):
            for task, rows in reversed(COUNTS.items()):
                if first < rows:
                    writer.write(task, *(a[first : first + 1] for a in counting_rows("mt80", task, rows, 12)))
    for name in ("steps", "returns"):
        assert (tmp_path / "pieces" / f"{name}.bin").read_bytes() == (whole / f"{name}.bin").read_bytes()


def test_statistics_scale_the_return_of_a_row_to_an_episode(tmp_path):
    reward = np.arange(40, dtype=np.float32).reshape(4, 10)
    with EpisodeStoreWriter(tmp_path / "d", "mt30", {"walker-run": 4}, row_length=10) as writer:
        writer.write("walker-run", np.zeros((4, 11, 24)), np.zeros((4, 10, 6)), reward)
    statistics = EpisodeStore(tmp_path / "d").statistics()["walker-run"]
    assert statistics["behavior_return_mean"] == pytest.approx(reward.sum(1).mean() * 50)
    assert statistics["behavior_return_std"] is None
    assert statistics["transitions"] == 40


def test_statistics_of_whole_episodes_join_their_rows(tmp_path):
    reward = np.random.default_rng(0).random((10, 100))
    success = np.zeros((10, 100), bool)
    with EpisodeStoreWriter(
        tmp_path / "d", "mt80", {"walker-run": 10, "mw-reach": 4}, row_length=100, success=True, whole_episodes=True
    ) as writer:
        writer.write("walker-run", np.zeros((10, 101, 39)), np.zeros((10, 100, 6)), reward, success)
        success[1:3, -1] = success[3, 50] = True
        writer.write("mw-reach", np.zeros((4, 101, 39)), np.zeros((4, 100, 6)), reward[:4], success[:4])
    statistics = EpisodeStore(tmp_path / "d").statistics()
    assert statistics["walker-run"]["behavior_return_mean"] == pytest.approx(reward.sum() / 2)
    assert statistics["walker-run"]["behavior_return_std"] == pytest.approx(
        abs(reward[:5].sum() - reward[5:].sum()) / 2
    )
    assert statistics["walker-run"]["success_mean"] is None
    assert statistics["mw-reach"]["success_mean"] == 0.5


def test_a_truncated_file_is_found_when_opening(counting_root):
    with open(counting_root / "steps.bin", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match=r"steps\.bin has 1000 bytes, the manifest says 21528"):
        EpisodeStore(counting_root)


def test_a_missing_file_is_found_when_opening(counting_root):
    (counting_root / "returns.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"returns\.bin is missing"):
        EpisodeStore(counting_root)


@pytest.mark.parametrize(("name", "place"), [("steps", 101), ("steps", 39 * 4), ("steps", 21527), ("returns", 7)])
def test_one_flipped_bit_is_found_by_verify_only(counting_root, name, place):
    with open(counting_root / f"{name}.bin", "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    EpisodeStore(counting_root)
    with pytest.raises(ValueError, match=rf"{name}\.bin has sha256 .* the manifest says"):
        EpisodeStore(counting_root, verify=True)


def _edited(root, edit):
    path = root / "manifest.json"
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))
    return root


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(format="other"), "not a manifest of this package"),
        (lambda m: m.update(version=99), "format version 99, this package reads versions 2 and 3"),
        (lambda m: m.pop("tasks"), "lacks or misnames an entry"),
        (lambda m: m["fields"].pop("steps"), r"lists no file for \['steps'\]"),
        (lambda m: m["fields"]["returns"].update(file="../returns.bin"), "not a file name inside its folder"),
        (lambda m: m["fields"]["steps"].update(dtype="object"), "dtype 'object'"),
        (lambda m: m["fields"]["steps"].update(dtype="bool"), "dtype 'bool'"),
        (lambda m: m["fields"]["steps"].update(shape=[9, 12, 46]), "expected"),
        (lambda m: m["fields"].update(other=m["fields"]["returns"]), "gives other the shape"),
        (lambda m: m["tasks"][1].update(start=3), "expected 2 on"),
        (lambda m: m["tasks"][1].update(index=0), "another task's"),
        (lambda m: m["tasks"].clear(), "describes no data"),
        (lambda m: m["tasks"][0]["observation_std"].pop(), "gives walker-stand the statistics of 38 .*expected 39"),
        (lambda m: m["tasks"][0].update(return_mean=1.0), "changed after it was written: .* checksum that it holds"),
        (lambda m: m["tasks"][0].pop("observation_mean"), "lacks or misnames an entry"),
        (lambda m: m["fields"]["steps"].update(sha256="0" * 64), "changed after it was written"),
        (lambda m: m["source"].update(kind="other"), "changed after it was written"),
    ],
)
def test_a_damaged_manifest_is_refused(counting_root, edit, message):
    with pytest.raises(ValueError, match=message):
        EpisodeStore(_edited(counting_root, edit))


def test_a_manifest_changed_on_purpose_is_read_without_its_checksum(counting_root):
    def change(record):
        del record["sha256"]
        record["source"]["note"] = "mine"

    assert EpisodeStore(_edited(counting_root, change), verify=True).manifest.source == {"note": "mine"}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_step_is_its_observation_action_and_reward_one_after_the_other(tmp_path, dtype):
    store = EpisodeStore(write_counting_store(tmp_path / "d", dtype=dtype))
    steps = np.fromfile(store.root / "steps.bin", dtype).reshape(9, 13, 39 + 6 + 1)
    assert np.array_equal(steps[..., :39], store.observation)
    assert np.array_equal(steps[:, :-1, 39:45], store.action)
    assert np.array_equal(steps[:, :-1, 45], store.reward)
    assert not steps[:, -1, 39:].any(), "no action is taken at the last step"
    assert np.array_equal(store.returns, store.reward.astype(np.float64).sum(1))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("has_preadv", [True, False])
@pytest.mark.parametrize("at_once", [1, 400, 1 << 17])
def test_blocks_reach_the_last_step_and_no_further(tmp_path, monkeypatch, dtype, has_preadv, at_once):
    if not has_preadv:
        monkeypatch.setattr("torchrl_pwm.data.store.steps._HAS_PREADV", False)
    store = EpisodeStore(write_counting_store(tmp_path / "d", dtype=dtype))
    monkeypatch.setattr("torchrl_pwm.data.store.steps._AT_ONCE", at_once)
    row, step = np.array([8, 0, 3]), np.array([9, 0, 4])
    seen = []
    for here, steps in store.blocks(row, step, 3):
        for i, *block in zip(range(3)[here], *steps, strict=True):
            transitions = slice(step[i], step[i] + 3)
            assert np.array_equal(block[0], store.observation[row[i], step[i] : step[i] + 4])
            assert np.array_equal(block[1], store.action[row[i], transitions])
            assert np.array_equal(block[2], store.reward[row[i], transitions])
            seen.append(i)
    assert seen == [0, 1, 2]
    assert list(store.blocks(row[:0], step[:0], 3)) == []


def test_a_file_cut_after_it_was_opened_is_named_when_read(counting_root):
    store = EpisodeStore(counting_root)
    with open(counting_root / "steps.bin", "r+b") as file:
        file.truncate(21_000)
    assert len(list(store.blocks(np.array([8]), np.array([5]), 3))) == 1
    with pytest.raises(ValueError, match=r"steps\.bin has 21000 bytes, .* was cut .*: restore it or make"):
        list(store.blocks(np.array([0, 8]), np.array([0, 9]), 3))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_file_is_closed_with_the_store(counting_root):
    def opened():
        return [target for _, target in open_handles() if target.startswith(str(counting_root))]

    store = EpisodeStore(counting_root)
    assert opened()
    del store
    assert not opened()


def test_the_manifest_names_every_file_with_its_size_and_checksum(counting_root):
    record = json.loads((counting_root / "manifest.json").read_text())
    assert record["task_set"] == "mt80" and record["task_names"] == list(MT80.names)
    for name in ("steps", "returns"):
        content = (counting_root / f"{name}.bin").read_bytes()
        field = record["fields"][name]
        assert (field["size"], field["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert {task["name"]: task["stop"] - task["start"] for task in record["tasks"]} == COUNTS


def test_a_verification_of_some_time_shows_its_progress(counting_root, monkeypatch, capsys):
    store = EpisodeStore(counting_root)
    monkeypatch.setattr("torchrl_pwm._utils.files.BAR_DELAY", 0.0)
    store.verify(progress=False)
    assert capsys.readouterr().err == ""
    store.verify()
    assert "checking counting: 100%" in capsys.readouterr().err


def test_a_manifest_that_is_not_json_is_refused(counting_root):
    (counting_root / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        EpisodeStore(counting_root)


def test_a_folder_without_manifest_says_how_to_make_a_data_set(tmp_path):
    with pytest.raises(FileNotFoundError, match="make one with convert_shards"):
        EpisodeStore(tmp_path)


def test_nothing_is_left_when_writing_fails(tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        EpisodeStoreWriter(tmp_path / "d", "mt30", {"walker-run": 1}, row_length=5) as writer,
    ):
        writer.write("walker-run", np.zeros((1, 6, 24)), np.zeros((1, 5, 6)), np.zeros((1, 5)))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_rows_are_missing_at_the_end(tmp_path):
    with (
        pytest.raises(ValueError, match="announced with 2 rows, but 1 were written"),
        EpisodeStoreWriter(tmp_path / "d", "mt30", {"walker-run": 2}, row_length=5) as writer,
    ):
        writer.write("walker-run", np.zeros((1, 6, 24)), np.zeros((1, 5, 6)), np.zeros((1, 5)))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_data_set_is_never_overwritten(counting_root):
    before = (counting_root / "manifest.json").read_bytes()
    with (
        pytest.raises(FileExistsError, match="exists already"),
        EpisodeStoreWriter(counting_root, "mt30", {"walker-run": 1}, row_length=5),
    ):
        pass
    assert (counting_root / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("key", ["observation", "action", "reward"])
def test_a_value_that_is_not_finite_is_refused_by_task_row_step_and_key(tmp_path, key, value):
    arrays = dict(zip(("observation", "action", "reward"), counting_rows("mt30", "walker-run", 3, 5)))
    arrays[key][2, 4] = value
    with (
        pytest.raises(ValueError, match=rf"{key} of task walker-run is {value} in row 2 at step 4"),
        EpisodeStoreWriter(tmp_path / "d", "mt30", {"walker-run": 3}, row_length=5) as writer,
    ):
        writer.write("walker-run", **arrays)
    assert list(tmp_path.iterdir()) == []


def test_a_value_too_large_for_float16_is_refused(tmp_path):
    observation, action, reward = counting_rows("mt30", "walker-run", 1, 5)
    observation[0, 1, 0] = 1e6
    with (
        pytest.raises(ValueError, match="is inf in row 0 at step 1"),
        EpisodeStoreWriter(tmp_path / "d", "mt30", {"walker-run": 1}, row_length=5, dtype="float16") as writer,
    ):
        writer.write("walker-run", observation, action, reward)


@pytest.mark.parametrize(
    ("rows", "kwargs", "message"),
    [
        ({"walker-runs": 1}, {}, "did you mean 'walker-run'"),
        ({"walker-run": 0}, {}, "at least one row"),
        ({}, {}, "at least one row"),
        ({"walker-run": 1}, {"dtype": "int8"}, "'float32' or 'float16'"),
        ({"walker-run": 1}, {"row_length": 0}, "at least 1, found 0"),
    ],
)
def test_the_writer_refuses_what_it_cannot_write(tmp_path, rows, kwargs, message):
    with pytest.raises(ValueError, match=message):
        EpisodeStoreWriter(tmp_path / "d", "mt30", rows, **{"row_length": 5, **kwargs})


def test_selection_takes_names_and_indices_and_refuses_others(counting_root):
    store = EpisodeStore(counting_root)
    reach = MT80["mw-reach"].index
    assert [rows.name for rows in store.select([reach, "walker-stand"])] == ["walker-stand", "mw-reach"]
    assert store.select("cheetah-run") == store.select([3])
    with pytest.raises(ValueError, match="holds no data of 'walker-run'"):
        store.select(["walker-run"])
    with pytest.raises(ValueError, match="did you mean 'walker-run'"):
        store.select(["walker-runn"])
    with pytest.raises(ValueError, match="from 0 to 79"):
        store.select([80])
    with pytest.raises(ValueError, match="tasks is empty"):
        store.select([])


def test_a_task_set_of_your_own_is_known_again(tmp_path):
    pair = TaskSet("pair", ["mw-reach", "walker-run"])
    with EpisodeStoreWriter(tmp_path / "d", pair, {"walker-run": 1}, row_length=5) as writer:
        writer.write("walker-run", np.zeros((1, 6, 39)), np.zeros((1, 5, 6)), np.zeros((1, 5)))
    store = EpisodeStore(tmp_path / "d")
    assert store.task_set == pair
    assert store.select()[0].index == 1


def test_a_store_travels_to_another_process_by_its_path(counting_root):
    store = EpisodeStore(counting_root)
    payload = pickle.dumps(store)
    assert len(payload) < 500
    assert np.array_equal(pickle.loads(payload).observation, store.observation)


def test_arrays_of_a_store_are_read_only(counting_root):
    with pytest.raises(ValueError, match="read-only"):
        EpisodeStore(counting_root).observation[0, 0, 0] = 1


def test_a_store_too_large_to_read_ahead_gives_the_same_values(counting_root, monkeypatch):
    index = torch.arange(9)[:, None] * 12 + torch.arange(4)
    expected = EpisodeStorage(EpisodeStore(counting_root))[index]
    monkeypatch.setattr("torchrl_pwm.data.store.steps._READAHEAD_LIMIT", 0)
    assert (EpisodeStorage(EpisodeStore(counting_root))[index] == expected).all()
