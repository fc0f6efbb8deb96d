from __future__ import annotations

import hashlib
import multiprocessing
import pickle
import sys

import numpy as np
import pytest
import torch
from torchrl.data.replay_buffers import TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import RandomSampler
from torchrl.envs.transforms import RewardScaling

from tests.data.counting import COUNTS, write_counting_store
from tests.data.killed import run
from torchrl_pwm.data import (
    EpisodeSliceSampler,
    EpisodeStorage,
    EpisodeStore,
    EpisodeStoreWriter,
    TDMPC2ExperienceReplay,
)
from torchrl_pwm.envs.tasks import MT80

LENGTH = 12
INDEX = {name: MT80[name].index for name in COUNTS}


def _windows(batch):
    """(task, row, start) of each slice, after checking every relation between its entries."""
    observation, following = batch["observation"], batch["next", "observation"]
    steps = batch.shape[1]
    task, row, step = observation[..., 0], observation[..., 1], observation[..., 2]
    assert torch.equal(following[..., :2], observation[..., :2]), "a transition crosses a row or a task"
    assert torch.equal(following[..., 2], step + 1)
    assert torch.equal(step, step[:, :1] + torch.arange(steps))
    assert (row == row[:, :1]).all() and (task == task[:, :1]).all()
    assert torch.equal(batch["task"], task.long())
    assert torch.equal(batch["action"][..., :3] * 512, observation[..., :3])
    assert torch.equal(batch["next", "reward"][..., 0], task % 16 * 128 + row * 16 + step)
    assert torch.equal(batch["next", "truncated"][..., 0], step == LENGTH - 1)
    assert torch.equal(batch["next", "done"], batch["next", "truncated"])
    assert not batch["next", "terminated"].any()
    return [tuple(map(int, window)) for window in observation[:, 0, :3]]


@pytest.mark.parametrize("slice_len", [1, 5, LENGTH])
def test_every_legal_window_is_drawn_and_no_other(counting_root, slice_len):
    replay = TDMPC2ExperienceReplay(counting_root, 256, slice_len=slice_len)
    seen = set()
    for _ in range(20):
        seen.update(_windows(replay.sample()))
    legal = {
        (INDEX[task], row, start)
        for task, rows in COUNTS.items()
        for row in range(rows)
        for start in range(LENGTH - slice_len + 1)
    }
    assert seen == legal


def test_windows_are_drawn_uniformly(counting_root):
    replay = TDMPC2ExperienceReplay(counting_root, 9000, slice_len=5)
    windows = torch.tensor(_windows(replay.sample()))
    counts = torch.unique(windows, dim=0, return_counts=True)[1]
    assert len(counts) == 72
    # chi-square with 71 degrees of freedom: 133 has probability 1e-5, and the seed is fixed
    assert ((counts - 125.0) ** 2 / 125.0).sum() < 133


@pytest.mark.parametrize("tasks", [["mw-reach"], [INDEX["mw-reach"], "walker-stand"], "cheetah-run"])
def test_a_selection_of_tasks_draws_all_their_windows_and_no_others(counting_root, tasks):
    replay = TDMPC2ExperienceReplay(counting_root, 512, slice_len=5, tasks=tasks)
    wanted = [tasks] if isinstance(tasks, str) else [MT80[t].name for t in tasks]
    assert set(replay.tasks) == set(wanted)
    assert len(replay) == LENGTH * sum(COUNTS[t] for t in wanted)
    seen = {window for _ in range(5) for window in _windows(replay.sample())}
    assert seen == {(INDEX[t], row, s) for t in wanted for row in range(COUNTS[t]) for s in range(LENGTH - 4)}


def test_start_states_of_one_task_are_the_first_column(counting_root):
    replay = TDMPC2ExperienceReplay(counting_root, slice_len=5, tasks=["mw-reach"])
    start = replay.sample(7)[:, 0]
    assert start.shape == (7,) and start["observation"].shape == (7, 39)
    assert (start["task"] == INDEX["mw-reach"]).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_samples_are_float32_of_their_own_memory(tmp_path, dtype):
    replay = TDMPC2ExperienceReplay(write_counting_store(tmp_path / "d", dtype=dtype, task_set="mt80"), 4, slice_len=5)
    batch = replay.sample()
    for key in ("observation", "action", ("next", "observation"), ("next", "reward")):
        assert batch[key].dtype == torch.float32 and batch[key].is_contiguous()
    assert batch["task"].dtype == torch.int64
    _windows(batch)
    before = batch["next", "observation"].clone()
    batch["observation"].zero_()
    assert torch.equal(batch["next", "observation"], before)


def test_starts_can_be_limited_to_the_beginning_of_rows(counting_root):
    replay = TDMPC2ExperienceReplay(counting_root, 200, sampler=EpisodeSliceSampler(5, start=0, stop=1))
    assert {start for _, _, start in _windows(replay.sample())} == {0}
    replay = TDMPC2ExperienceReplay(counting_root, 200, sampler=EpisodeSliceSampler(5, start=6, stop=99))
    assert {start for _, _, start in _windows(replay.sample())} == {6, 7}


def test_items_of_the_storage_do_not_depend_on_how_they_are_asked_for(counting_root):
    storage = EpisodeStorage(EpisodeStore(counting_root), tasks=["walker-stand", "mw-reach"])
    everything = storage[:]
    assert everything.shape == (60,)
    assert _windows(everything.reshape(5, LENGTH)) == [(0, 0, 0), (0, 1, 0), (65, 0, 0), (65, 1, 0), (65, 2, 0)]
    index = torch.tensor([[3, 4, 5], [30, 31, 32]])
    for asked in (index, index.numpy(), index.tolist()):
        assert (storage[asked] == everything[index]).all()
    crossing = torch.tensor([[10, 11, 12, 13]])
    assert (storage[crossing] == everything[crossing]).all()
    assert (storage[-1] == everything[59]).all() and storage[7].shape == ()
    assert (storage[5:9] == everything[5:9]).all()
    assert storage[[]].shape == (0,)
    with pytest.raises(IndexError, match="60 transitions, found 60 to 60"):
        storage[60]
    with pytest.raises(IndexError, match="integers"):
        storage[0.5]


def test_other_torchrl_samplers_work_on_the_storage(counting_root):
    storage = EpisodeStorage(EpisodeStore(counting_root), tasks=["cheetah-run"])
    replay = TensorDictReplayBuffer(storage=storage, sampler=RandomSampler(), collate_fn=lambda x: x, batch_size=64)
    batch = replay.sample()
    assert batch.shape == (64,) and (batch["task"] == INDEX["cheetah-run"]).all()
    assert torch.equal(batch["next", "observation"][:, 2], batch["observation"][:, 2] + 1)


def test_samples_carry_the_items_they_were_read_from(counting_root):
    replay = TDMPC2ExperienceReplay(counting_root, 6, slice_len=5)
    batch = replay.sample()
    assert (replay[batch["index"]] == batch.exclude("index")).all()


def test_transforms_are_applied(counting_root):
    transform = RewardScaling(0.0, 2.0, in_keys=[("next", "reward")], standard_normal=False)
    plain = TDMPC2ExperienceReplay(counting_root, 6, slice_len=5, seed=3).sample()
    scaled = TDMPC2ExperienceReplay(counting_root, 6, slice_len=5, seed=3, transform=transform).sample()
    assert torch.equal(scaled["next", "reward"], plain["next", "reward"] * 2)


def test_the_seed_decides_the_samples_and_nothing_global_is_touched(counting_root):
    before = torch.get_rng_state()
    batches = [TDMPC2ExperienceReplay(counting_root, 32, slice_len=5, seed=s).sample()["index"] for s in (1, 1, 2)]
    assert torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], batches[2])
    generator = torch.Generator().manual_seed(1)
    own = TDMPC2ExperienceReplay(counting_root, 32, slice_len=5, generator=generator).sample()["index"]
    assert torch.equal(own, batches[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("prefetch", [None, 1, 3])
@pytest.mark.parametrize("way", ["state_dict", "dumps"])
def test_a_restored_buffer_goes_on_with_the_same_samples(counting_root, tmp_path, prefetch, way):
    def build(seed):
        return TDMPC2ExperienceReplay(counting_root, 16, slice_len=5, seed=seed, prefetch=prefetch)

    replay, restored = build(7), build(8)
    for _ in range(3):
        replay.sample()
    if way == "dumps":
        replay.dumps(tmp_path / "saved")
        restored.loads(tmp_path / "saved")
    else:
        torch.save(replay.state_dict(), tmp_path / "state.pt")
        restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(5):
        expected, again = replay.sample(), restored.sample()
        assert torch.equal(expected["index"], again["index"])
        assert (expected == again).all()


@pytest.mark.parametrize(("saved", "resumed"), [(None, 2), (2, None), (3, 1), (1, 3)])
def test_a_buffer_goes_on_with_the_same_samples_where_another_number_is_read_ahead(counting_root, saved, resumed):
    """A run begun on a CPU goes on on a GPU, for which batches are read ahead, and the other way round."""

    def make(prefetch):
        return TDMPC2ExperienceReplay(counting_root, 8, slice_len=5, seed=3, prefetch=prefetch)

    whole, first, second = make(None), make(saved), make(resumed)
    expected = [whole.sample() for _ in range(8)]
    found = [first.sample() for _ in range(3)]
    second.load_state_dict(first.state_dict())
    found += [second.sample() for _ in range(5)]
    assert all((one == other).all() for one, other in zip(found, expected))


@pytest.mark.parametrize("prefetch", [1, 4])
def test_prefetching_does_not_change_the_samples(counting_root, prefetch):
    plain = TDMPC2ExperienceReplay(counting_root, 8, slice_len=5)
    ahead = TDMPC2ExperienceReplay(counting_root, 8, slice_len=5, prefetch=prefetch)
    for _ in range(20):
        assert torch.equal(plain.sample()["index"], ahead.sample()["index"])


def test_a_pickled_buffer_goes_on_with_the_same_samples(counting_root):
    replay = TDMPC2ExperienceReplay(counting_root, 8, slice_len=5, prefetch=2)
    replay.sample()
    copy = pickle.loads(pickle.dumps(replay))
    for _ in range(4):
        assert torch.equal(copy.sample()["index"], replay.sample()["index"])


def test_a_sampler_restores_alone(counting_root, tmp_path):
    storage = EpisodeStorage(EpisodeStore(counting_root))
    sampler, restored = EpisodeSliceSampler(5, seed=1), EpisodeSliceSampler(5, seed=2)
    sampler.sample(storage, 8)
    sampler.dumps(tmp_path)
    restored.loads(tmp_path)
    assert torch.equal(sampler.sample(storage, 8)[0], restored.sample(storage, 8)[0])
    copy = pickle.loads(pickle.dumps(sampler))
    assert torch.equal(sampler.sample(storage, 8)[0], copy.sample(storage, 8)[0])


def test_the_state_of_other_data_or_slices_is_refused(counting_root, tmp_path):
    state = TDMPC2ExperienceReplay(counting_root, 8, slice_len=5).state_dict()
    with pytest.raises(ValueError, match="this buffer has"):
        TDMPC2ExperienceReplay(counting_root, 8, slice_len=5, tasks=[0]).load_state_dict(state)
    with pytest.raises(ValueError, match="slice_len=5, this sampler has 6"):
        TDMPC2ExperienceReplay(counting_root, 8, slice_len=6).load_state_dict(state)
    other = write_counting_store(tmp_path / "other", length=9)
    with pytest.raises(ValueError, match="another data set"):
        TDMPC2ExperienceReplay(other, 8, slice_len=5).load_state_dict(state)


def test_the_buffer_is_read_only(counting_root):
    replay = TDMPC2ExperienceReplay(counting_root, 8, slice_len=5)
    with pytest.raises(RuntimeError, match="doesn't allow writing"):
        replay.extend(replay.sample())
    with pytest.raises(RuntimeError, match="read-only"):
        replay.storage.set(0, replay.sample())


def test_a_value_that_turned_into_nan_is_named_when_sampled(counting_root):
    with open(counting_root / "steps.bin", "r+b") as file:
        file.seek(np.ravel_multi_index((7, 4, 45), (9, 13, 46)) * 4)
        file.write(np.float32(np.nan).tobytes())
    replay = TDMPC2ExperienceReplay(counting_root, 256, slice_len=5, tasks=["mw-reach"])
    with pytest.raises(
        ValueError, match=r"'reward'\) of task mw-reach is not finite in row 1 of the selection at step 4"
    ):
        replay.sample()
    unchecked = TDMPC2ExperienceReplay(counting_root, 256, slice_len=5, tasks=["mw-reach"], check_finite=False)
    assert unchecked.sample()["next", "reward"].isnan().any()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"slice_len": 13}, "no slice of 13 transitions"),
        ({"slice_len": 0}, "at least 1"),
        ({"tasks": ["walker-run"]}, "holds no data of 'walker-run'"),
        ({"tasks": ["walker-stood"]}, "did you mean 'walker-stand'"),
        ({"download": True, "dataset_id": "no-such-folder"}, "only mt30 and mt80 can be downloaded"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(counting_root, kwargs, message):
    with pytest.raises(ValueError, match=message):
        TDMPC2ExperienceReplay(**{"dataset_id": counting_root, "batch_size": 4, "slice_len": 5, **kwargs})


def test_missing_data_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mt30 was not found in .*pass download=True"):
        TDMPC2ExperienceReplay("mt30", 4, root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"made by write_episodes, .* or collect_dataset"):
        TDMPC2ExperienceReplay(tmp_path / "nothing", 4)


def test_the_wrong_set_under_a_published_name_is_refused(tmp_path):
    write_counting_store(tmp_path / "mt30", task_set="mt80")
    with pytest.raises(ValueError, match="should hold mt30, but its manifest says mt80"):
        TDMPC2ExperienceReplay("mt30", 4, root=tmp_path)


def _digests(replay, batches=20):
    """What ``batches`` samples hold, to the last bit."""
    return [
        hashlib.sha256(b"".join(t.numpy().tobytes() for t in replay.sample().values(True, True))).hexdigest()
        for _ in range(batches)
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_readers_in_other_processes_agree_bit_for_bit(tmp_path, method, dtype):
    replay = TDMPC2ExperienceReplay(write_counting_store(tmp_path / "d", dtype=dtype), 64, slice_len=5, seed=4)
    replay.sample()
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:  # all read at the same time, the forked ones through one open file
        others = [pool.apply_async(_digests, (replay,)) for _ in range(2)]
        own = _digests(pickle.loads(pickle.dumps(replay)))
        assert own == others[0].get() == others[1].get()
    assert own == _digests(replay), "the copies have left the original where it was"


MEMORY = """
import sys, torch
from tests.data.killed import memory
from torchrl_pwm.data import TDMPC2ExperienceReplay

torch.set_num_threads(1)
replay = TDMPC2ExperienceReplay(sys.argv[1], 64, slice_len=100)
rows = torch.arange(replay.storage.num_rows)[:, None] * 100
read = 0
for number, some in enumerate(rows.split(64)):
    if number == 5:
        before = memory("VmRSS")
    read += replay.storage[some + torch.arange(100)]["action"].shape[0]
    replay.sample()
assert read == len(rows)
print(memory("VmRSS") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_a_whole_data_set_takes_no_memory(tmp_path):
    """A store of 300 MB, read to the last step in a process of its own."""
    with EpisodeStoreWriter(tmp_path / "d", "mt30", {"walker-run": 25_000}, row_length=100) as writer:
        zeros = np.zeros((5000, 101, 24), np.float32)
        for _ in range(5):
            writer.write("walker-run", zeros, zeros[:, 1:, :6], zeros[:, 1:, 0])
    assert float(run(MEMORY, tmp_path / "d").stdout) < 30


def test_a_data_set_cut_while_it_is_sampled_is_named(counting_root):
    replay = TDMPC2ExperienceReplay(counting_root, 64, slice_len=5)
    replay.sample()
    with open(counting_root / "steps.bin", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match=r"steps\.bin has 1000 bytes, .*make the data set again"):
        replay.sample()
