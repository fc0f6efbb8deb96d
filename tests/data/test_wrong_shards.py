"""Shards that are not what they should be are noticed, whatever is wrong with them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from tests.data.shards import LENGTH, SHARDS, convert, make_shard, refused, save_shards
from torchrl_pwm._utils.door import check_archive
from torchrl_pwm.data import EpisodeStore, TDMPC2ExperienceReplay

FILES = ("steps.bin", "returns.bin")


def flip(path, place):
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))


def arrays(store):
    return {name: (store.root / name).read_bytes() for name in FILES}


def test_a_flipped_byte_in_the_numbers_of_a_shard_is_noticed(tmp_path):
    paths = save_shards(tmp_path / "shards")
    number = np.float32(make_shard(SHARDS[1])["reward"][1, 2]).tobytes()
    place = paths[1].read_bytes().index(number)
    flip(paths[1], place)
    torch.load(paths[1], weights_only=False)  # torch itself does not look
    refused(
        tmp_path,
        ValueError,
        r"chunk_1\.pt is no shard, or damaged: the bytes of .*data/\d+ in it do not have the checksum .*copy it",
        paths,
    )


@pytest.mark.parametrize("first", range(4))
def test_no_flipped_byte_of_a_shard_changes_the_data_unnoticed(tmp_path, first):
    paths = save_shards(tmp_path / "shards")
    expected = arrays(convert(paths, tmp_path / "undamaged"))
    size = paths[0].stat().st_size
    places = {*range(size - 64 + first, size, 4), *range(37 * first, size, size // 24)}
    noticed = 0
    for number, place in enumerate(sorted(places)):
        flip(paths[0], place)
        try:
            converted = arrays(convert(paths, tmp_path / f"data_{number}"))
        except ValueError as error:
            assert "chunk_0.pt" in str(error)
            noticed += 1
        else:
            assert converted == expected
        flip(paths[0], place)
    assert noticed > len(places) / 3
    assert arrays(convert(paths, tmp_path / "again")) == expected


def test_a_shard_without_checksums_of_its_own_is_read(tmp_path):
    paths = save_shards(tmp_path / "shards", layout="legacy")
    check_archive(paths[0], what="shard")
    assert convert(paths, tmp_path / "data").num_rows == 6


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_float16_shards_lose_nothing(tmp_path, dtype):
    """The values are not of the kind that any type holds."""
    draws = torch.Generator().manual_seed(0)
    shard = make_shard(SHARDS[0])
    shard = {
        key: x if key == "task" else torch.randn(x.shape, generator=draws).clamp(-1, 1).half()
        for key, x in shard.items()
    }
    torch.save(TensorDict(shard, batch_size=shard["task"].shape), tmp_path / "s.pt")
    store = convert([tmp_path / "s.pt"], tmp_path / "data", dtype=dtype)
    row = {name: store.select(name)[0].start for name in ("mw-reach", "walker-stand")}
    order = [row["mw-reach"], row["walker-stand"], row["mw-reach"] + 1]
    for i, at in enumerate(order):
        assert np.array_equal(store.observation[at].astype(np.float32), shard["obs"][i].float().numpy())
        assert np.array_equal(store.action[at].astype(np.float32), shard["action"][i, 1:].float().numpy())
        assert np.array_equal(store.reward[at].astype(np.float32), shard["reward"][i, 1:].float().numpy())
    assert store.observation.dtype == dtype
    assert TDMPC2ExperienceReplay(store.root, 4, slice_len=3).sample()["observation"].dtype == torch.float32
    (record,) = store.manifest.source["shards"]
    assert record["dtypes"] == {"obs": "float16", "action": "float16", "reward": "float16", "task": "int64"}


@pytest.mark.parametrize("key", ["obs", "action", "reward"])
def test_numbers_that_were_scaled_to_integers_are_refused(tmp_path, key):
    shard = make_shard(SHARDS[0], filler=0.0)
    shard[key] = shard[key].to(torch.int16)
    torch.save(shard, tmp_path / "s.pt")
    refused(
        tmp_path, ValueError, rf"{key} of type torch.int16, expected a floating-point type; .*", [tmp_path / "s.pt"]
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32, torch.bfloat16])
def test_task_indices_may_be_of_any_type_that_holds_them(tmp_path, dtype):
    shard = make_shard(SHARDS[0])
    shard["task"] = shard["task"].to(dtype)
    torch.save(shard, tmp_path / "s.pt")
    assert convert([tmp_path / "s.pt"], tmp_path / "data").tasks == ("walker-stand", "mw-reach")


@pytest.mark.parametrize("filler", [0.0, -3.5, float("inf"), float("nan")])
def test_filler_of_any_kind_stays_out_of_the_data(tmp_path, filler):
    shard = make_shard(SHARDS[0], filler=filler)
    torch.save(shard, tmp_path / "s.pt")
    store = convert([tmp_path / "s.pt"], tmp_path / "data")
    torch.save(make_shard(SHARDS[0]), tmp_path / "nan.pt")
    assert arrays(store) == arrays(convert([tmp_path / "nan.pt"], tmp_path / "nan"))
    assert store.reward.shape == (3, LENGTH)


def test_the_manifest_says_which_shards_were_converted(tmp_path):
    paths = save_shards(tmp_path / "shards")
    store = convert(paths, tmp_path / "data")
    for path, record in zip(paths, store.manifest.source["shards"], strict=True):
        content = path.read_bytes()
        assert (record["name"], record["size"], record["rows"]) == (path.name, len(content), 3)
        assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert EpisodeStore(store.root, verify=True).manifest == store.manifest
