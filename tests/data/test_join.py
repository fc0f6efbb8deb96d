"""Several data sets made one: rows and episodes in their order, statistics of all, and what does not go together."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.data.recorded import episode, episodes
from torchrl_pwm import TDMPC2ExperienceReplay, write_episodes
from torchrl_pwm.data import EpisodeStore, EpisodeStoreWriter, join_datasets

REACH, PUSH = "mw-reach", "mw-push"


def write(root, rows, *, first=0, dtype="float32", success=True, whole=True, task_set="mt80", length=100):
    """Rows whose observations are their numbers from ``first`` on, and which succeed where these are odd."""
    with EpisodeStoreWriter(
        root, task_set, rows, row_length=length, dtype=dtype, success=success, whole_episodes=whole
    ) as writer:
        for task, count in rows.items():
            number = np.arange(first, first + count, dtype=np.float64)
            observation = np.broadcast_to(number[:, None, None], (count, length + 1, writer.task_set.observation_dim))
            reward = np.broadcast_to(number[:, None], (count, length))
            done = np.broadcast_to(number[:, None] % 2 == 1, (count, length)) if success else None
            action = np.zeros((count, length, writer.task_set.action_dim))
            writer.write(task, observation, action, reward, done)
    return root


def test_rows_of_a_task_follow_each_other_in_the_order_of_the_parts(tmp_path):
    parts = [write(tmp_path / "a", {REACH: 3, PUSH: 2}), write(tmp_path / "b", {REACH: 300}, first=10)]
    store = join_datasets(tmp_path / "all", parts, progress=False)
    both = {rows.name: rows for rows in store.select()}
    reach, push = both[REACH], both[PUSH]
    assert store.observation[reach.start : reach.stop, 0, 0].tolist() == [0, 1, 2, *range(10, 310)]
    assert store.reward[push.start : push.stop, -1].tolist() == [0, 1]
    assert reach.success_mean == pytest.approx(151 / 303) and reach.behavior_return_std == pytest.approx(
        100 * np.std([0, 1, 2, *range(10, 310)])
    )
    assert (store.success[reach.start : reach.stop, -1] == (store.reward[reach.start : reach.stop, 0] % 2 == 1)).all()
    assert store.manifest.source == {"kind": "joined", "parts": [{}, {}]}
    store.verify(progress=False)
    assert TDMPC2ExperienceReplay(store.root, 32, slice_len=8, tasks=[PUSH]).sample().shape == (32, 8)


def test_one_part_of_parts_of_episodes_leaves_their_spread_unknown(tmp_path):
    rows = {"walker-stand": 10}
    whole = join_datasets(tmp_path / "whole", [write(tmp_path / "a", rows), write(tmp_path / "b", rows)])
    assert whole.select()[0].behavior_return_std == pytest.approx(100 * np.std([10, 35, 10, 35]))
    mixed = join_datasets(tmp_path / "mixed", [tmp_path / "a", write(tmp_path / "c", rows, whole=False)])
    assert mixed.select()[0].behavior_return_std is None and mixed.num_rows == 20


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [(("float16", "float16"), "float16"), (("float16", "float32"), "float32"), (("float32", "float16"), "float32")],
)
def test_no_number_is_rounded(tmp_path, dtypes, expected):
    parts = [write(tmp_path / str(number), {REACH: 2}, dtype=dtype) for number, dtype in enumerate(dtypes)]
    assert join_datasets(tmp_path / "all", parts, progress=False).observation.dtype == expected


def test_episodes_of_any_length_keep_their_ends_and_the_bounds_of_their_actions(tmp_path):
    bounds = {"action_low": -2.0, "action_high": 3.0, "name": "arm", "dtype": "float32"}
    success = [{"success": number % 2 == 0} for number in range(8)]
    recorded = [{**each, **flag} for each, flag in zip([*episodes(), episode(6, 40), episode(7, 2)], success)]
    write_episodes(tmp_path / "expected", recorded, **bounds)
    parts = [tmp_path / "monday", tmp_path / "tuesday"]
    write_episodes(parts[0], recorded[:6], **bounds)
    write_episodes(parts[1], recorded[6:], **bounds)
    store, expected = join_datasets(tmp_path / "all", parts, progress=False), EpisodeStore(tmp_path / "expected")
    for name in ("steps", "returns", "lengths", "terminated", "success"):
        assert (store.root / f"{name}.bin").read_bytes() == (expected.root / f"{name}.bin").read_bytes(), name
    found, wanted = (json.loads((each.root / "manifest.json").read_text()) for each in (store, expected))
    assert found["task_specs"] == wanted["task_specs"] and store.task_set["arm"].episode_length == 40
    assert [found["tasks"][0][key] for key in ("action_low", "action_high")] == [[-2.0] * 2, [3.0] * 2]


def test_tasks_of_several_recordings_are_padded_to_one_size(tmp_path):
    for name, size in (("lift", 5), ("turn", 3)):
        record = {**episode(0, 6, task=name), "observation": np.full((7, size), size, np.float64)}
        write_episodes(tmp_path / name, [record], name="arm")
    store = join_datasets(tmp_path / "arm", [tmp_path / "lift", tmp_path / "turn"], progress=False)
    assert store.tasks == ("lift", "turn") and store.observation.shape[1] == 5
    assert [store.episode(row).observation[0].tolist() for row in (0, 1)] == [[5.0] * 5, [3.0, 3.0, 3.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"rows": {REACH: 1}, "success": False},
            r"whether they say where episodes succeeded: .*a has True, .*b False",
        ),
        ({"rows": {"cup-catch": 1}, "task_set": "mt30", "length": 500}, r"in their task set: .*a has mt80, .*b mt30"),
        ({"rows": {REACH: 1}, "length": 50}, r"in the length of their rows .*a has 100, .*b 50"),
    ],
)
def test_what_is_of_another_kind_is_refused_and_nothing_is_left(tmp_path, other, message):
    parts = [write(tmp_path / "a", {REACH: 2}), write(tmp_path / "b", **other)]
    with pytest.raises(ValueError, match=message):
        join_datasets(tmp_path / "all", parts, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_actions_that_were_scaled_from_other_bounds_are_refused(tmp_path):
    for name, high in (("a", 1.0), ("b", 2.0)):
        write_episodes(tmp_path / name, episodes(), name="arm", action_low=-1.0, action_high=high)
    with pytest.raises(
        ValueError, match=r"actions of arm are scaled from \(-1.0, -1.0\) and \(1.0, 1.0\) in .*a, from"
    ):
        join_datasets(tmp_path / "all", [tmp_path / "a", tmp_path / "b"], progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_folders_are_asked_for_where_there_are_none(tmp_path):
    for parts in ([], str(tmp_path)):
        with pytest.raises(ValueError, match="folders of the data sets to join, one or more in a list"):
            join_datasets(tmp_path / "all", parts)
    with pytest.raises(FileNotFoundError, match=r"holds no manifest\.json, so it is not a data set"):
        join_datasets(tmp_path / "all", [tmp_path])
