"""A data set of episodes of any length: what is stored, and which slices are drawn."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from torchrl import torchrl_logger

from tests.data.recorded import LENGTHS, TERMINATED, episodes
from torchrl_pwm import PWMWorldModel, PWMWorldModelLoss, TaskSpec, write_episodes
from torchrl_pwm.data import (
    EpisodeSliceSampler,
    EpisodeStorage,
    EpisodeStore,
    ReplayMixture,
    TDMPC2ExperienceReplay,
    split_episodes,
    start_states,
)

TOTAL = sum(LENGTHS)


@pytest.fixture
def root(tmp_path):
    return write_episodes(tmp_path / "arm", episodes()).root


def test_every_episode_is_stored_as_it_was(root):
    store = EpisodeStore(root, verify=True)
    assert store.lengths.tolist() == list(LENGTHS) and store.terminated.tolist() == list(TERMINATED)
    assert (store.num_rows, store.num_transitions, store.row_length) == (len(LENGTHS), TOTAL, None)
    for number, recorded in enumerate(episodes()):
        stored = store.episode(number)
        assert np.array_equal(stored.observation, recorded["observation"])
        assert np.array_equal(stored.action, recorded["action"].astype(np.float32))
        assert np.array_equal(stored.reward, recorded["reward"])
        assert store.returns[number] == recorded["reward"].sum()
    with pytest.raises(IndexError, match="rows 0 to 5, found 6"):
        store.episode(6)


def test_every_transition_can_be_read_by_its_number(root):
    data = EpisodeStorage(EpisodeStore(root))[:]
    assert len(data) == TOTAL
    place = [(number, step) for number, length in enumerate(LENGTHS) for step in range(length)]
    assert data["observation"][:, :2].long().tolist() == [list(each) for each in place]
    assert data["next", "observation"][:, 1].tolist() == [step + 1 for _, step in place]
    last = torch.tensor([step == LENGTHS[number] - 1 for number, step in place])
    ended = torch.tensor([TERMINATED[number] for number, _ in place])
    assert torch.equal(data["next", "done"][:, 0], last)
    assert torch.equal(data["next", "terminated"][:, 0], last & ended)
    assert torch.equal(data["next", "truncated"][:, 0], last & ~ended)


@pytest.mark.parametrize("slice_len", [1, 5, 7, 20])
def test_slices_never_cross_the_end_of_an_episode(root, slice_len):
    replay = TDMPC2ExperienceReplay(root, 400, slice_len=slice_len)
    batch = replay.sample()
    number, step = batch["observation"][..., 0], batch["observation"][..., 1]
    assert (number == number[:, :1]).all() and (step.diff(dim=1) == 1).all()
    assert torch.equal(batch["next", "observation"][..., 1], step + 1)
    assert set(number.flatten().long().tolist()) == {i for i, length in enumerate(LENGTHS) if length >= slice_len}
    assert not batch["next", "done"][:, :-1].any()


def test_every_legal_place_is_drawn_as_often_as_any_other(root):
    sampler = EpisodeSliceSampler(5, seed=1)
    first = sampler.sample(EpisodeStorage(EpisodeStore(root)), 40_000)[0][:, 0]
    counts = torch.bincount(first, minlength=TOTAL)
    legal = torch.cat([torch.arange(length) <= length - 5 for length in LENGTHS])
    assert torch.equal(counts > 0, legal)
    expected = 40_000 / int(legal.sum())
    assert (counts[legal] - expected).abs().max() < 6 * expected**0.5


def test_short_episodes_are_left_out_with_a_sentence_that_counts_them(root, monkeypatch):
    said = []
    monkeypatch.setattr(torchrl_logger, "info", said.append)
    replay = TDMPC2ExperienceReplay(root, 8, slice_len=10)
    replay.sample()
    replay.sample()
    assert said == [
        "3 of 6 episodes are shorter than slices of 10 transitions and left out, 11 of 63 transitions; "
        "strict_length=False pads them"
    ]


def test_short_episodes_are_padded_by_their_last_transition_and_masked(root):
    replay = TDMPC2ExperienceReplay(root, 500, slice_len=10, strict_length=False)
    batch = replay.sample()
    number, step = batch["observation"][..., 0].long(), batch["observation"][..., 1].long()
    lengths = torch.tensor(LENGTHS)[number]
    assert set(number[:, 0].tolist()) == set(range(len(LENGTHS)))
    assert torch.equal(step, torch.minimum(step[:, :1] + torch.arange(10), lengths - 1))
    mask = batch["collector", "mask"]
    assert torch.equal(mask, step[:, :1] + torch.arange(10) < lengths)
    assert (batch["next", "done"][..., 0] | mask).all(), "what is added comes after the end"


def test_losses_leave_out_what_was_added(root):
    batch = TDMPC2ExperienceReplay(root, 64, slice_len=10, strict_length=False, seed=3).sample()
    short = batch["observation"][:, 0, 0] == 0  # three transitions
    other = batch[short].clone()
    other["next", "reward"][:, 3:] = 1e6
    other["next", "observation"][:, 3:] = -1e6
    loss = PWMWorldModelLoss(PWMWorldModel(3, 2, latent_dim=16, units=(16,), normalize_rewards=True))
    before, after = (PWMWorldModelLoss(loss.world_model).eval()(data) for data in (batch[short], other))
    assert short.any() and all(torch.equal(value, after[key]) for key, value in before.items())
    loss(other)
    assert loss.world_model.reward_moments.mean < 3, "the running moments take no step that was added"


def test_an_interrupted_replay_goes_on_with_the_same_slices(root):
    options = {"slice_len": 10, "strict_length": False, "prefetch": 2}
    replay = TDMPC2ExperienceReplay(root, 8, **options)
    replay.sample()
    state = replay.state_dict()
    expected = [replay.sample() for _ in range(4)]
    other = TDMPC2ExperienceReplay(root, 8, **options, seed=9)
    other.load_state_dict(state)
    for batch in expected:
        again = other.sample()
        assert set(again.keys(True)) == set(batch.keys(True)) and (again == batch).all()
    with pytest.raises(ValueError, match="saved with strict_length=False, this sampler has True"):
        TDMPC2ExperienceReplay(root, 8, slice_len=10, prefetch=2).load_state_dict(state)


def test_a_storage_travels_to_another_process(root):
    replay = TDMPC2ExperienceReplay(root, 4, slice_len=5)
    assert torch.equal(pickle.loads(pickle.dumps(replay.storage))[:]["observation"], replay.storage[:]["observation"])


def test_a_slice_longer_than_every_episode_is_refused(root):
    with pytest.raises(ValueError, match=r"no slice of 21 transitions .* fits in rows of 20 transitions at most"):
        TDMPC2ExperienceReplay(root, 4, slice_len=21)
    assert TDMPC2ExperienceReplay(root, 4, slice_len=21, strict_length=False).sample().shape == (4, 21)


def test_held_out_episodes_are_never_drawn(root):
    store = EpisodeStore(root)
    kept, held_out = split_episodes(store, 0.3, seed=2)
    assert sorted([*kept, *held_out]) == list(range(6)) and len(held_out) == 2
    for numbers in (kept, held_out):
        replay = TDMPC2ExperienceReplay(root, 300, slice_len=1, episodes=numbers)
        assert set(replay.sample()["observation"][..., 0].flatten().long().tolist()) == set(numbers)
        starts = start_states(store, "arm", 300, episodes=numbers)
        assert set(starts["observation"][:, 0].long().tolist()) == set(numbers)
    state = TDMPC2ExperienceReplay(root, 4, slice_len=1, episodes=kept).state_dict()
    with pytest.raises(ValueError, match="another selection of episodes"):
        TDMPC2ExperienceReplay(root, 4, slice_len=1, episodes=held_out).load_state_dict(state)
    with pytest.raises(ValueError, match=r"selected by their numbers, 0 to 5"):
        EpisodeStorage(store, episodes=[6])


def test_one_episode_of_each_task_stays_on_either_side_of_a_split(tmp_path):
    store = write_episodes(tmp_path / "d", [{**e, "task": t} for t in ("a", "b") for e in episodes()[:2]])
    kept, held_out = split_episodes(store, 0.01)
    assert {number // 2 for number in kept} == {number // 2 for number in held_out} == {0, 1}
    assert len(split_episodes(store, 0.0)[1]) == 0
    with pytest.raises(ValueError, match=r"below 1, found 1\.0"):
        split_episodes(store, 1.0)


def test_start_states_cover_all_steps_of_episodes_of_any_length(root):
    starts = start_states(EpisodeStore(root), "arm", TOTAL, resets=0.0)
    found = sorted(map(tuple, starts["observation"][:, :2].long().tolist()))
    assert found == [(number, step) for number, length in enumerate(LENGTHS) for step in range(length)]
    starts = start_states(EpisodeStore(root), "arm", 60, resets=0.5, top=0.5)
    assert set(starts["observation"][:, 0].long().tolist()) == {1, 3, 4}, "those of the highest return"
    assert (starts["observation"][:, 1] == 0).sum() in range(30, 34)


def test_tasks_of_different_sizes_lie_side_by_side(tmp_path):
    narrow, wide = episodes(task="narrow"), episodes(task="wide")
    for each in wide:
        each["observation"] = np.concatenate([each["observation"]] * 2, -1)
        each["action"] = np.concatenate([each["action"]] * 2, -1)
    mixed = [each for pair in zip(wide, narrow) for each in pair]
    store = write_episodes(tmp_path / "pair", mixed)
    assert store.task_set.action_dims == (4, 2) and store.task_set.observation_dim == 6
    batch = TDMPC2ExperienceReplay(store.root, 200, slice_len=3, tasks=["narrow"]).sample()
    assert (batch["task"] == 1).all() and not batch["observation"][..., 3:].any()
    assert batch["action"][..., 2:].abs().max() <= 1 and batch["action"][..., 2:].std() > 0.5, (
        "padded by random numbers"
    )
    both = ReplayMixture([TDMPC2ExperienceReplay(store.root, 3, slice_len=3, tasks=[t]) for t in ("wide", "narrow")])
    assert both.sample()["task"].unique().tolist() == [0, 1]


def test_tasks_of_ones_own_are_kept_and_opened_by_name(tmp_path):
    sizes = {"observation_fields": (("joints", 2), ("load", 1)), "action_dim": 2}
    specs = [TaskSpec(name, **sizes, episode_length=50, max_reward=20.0) for name in ("lift", "turn", "press")]
    recorded = [{**each, "task": ("press", "lift")[number % 2]} for number, each in enumerate(episodes())]
    write_episodes(tmp_path / "arm", recorded, task_specs=specs)
    store = EpisodeStore(tmp_path / "arm")
    assert [spec.name for spec in store.task_set] == ["lift", "turn", "press"] and store.tasks == ("lift", "press")
    assert store.task_set["press"].observation_fields == (("joints", 2), ("load", 1))
    assert store.task_set["press"].score(500.0) == 0.5
    assert TDMPC2ExperienceReplay(store.root, 4, slice_len=3, tasks=["press"]).sample()["task"].unique().tolist() == [2]
    with pytest.raises(ValueError, match="holds no data of 'turn'"):
        TDMPC2ExperienceReplay(store.root, 4, slice_len=3, tasks=["turn"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m["fields"].pop("lengths"), r"lists no file for \['lengths'\]"),
        (lambda m: m["fields"]["terminated"].update(shape=[5]), r"gives terminated the shape \(5,\), expected \(6,\)"),
        (lambda m: m["task_specs"][0].update(name="leg"), "describes other tasks than it names"),
        (lambda m: m["task_specs"][0].update(size=3), "lacks or misnames an entry"),
        (lambda m: m["tasks"][0].update(terminated=True), "lacks or misnames an entry"),
        (lambda m: m["tasks"][0].update(action_low=[0.0, 0.0, 0.0]), "bounds of more than 2 action entries"),
        (lambda m: m["fields"]["steps"].update(shape=[6, 6]), "describes no data"),
    ],
)
def test_a_damaged_manifest_of_episodes_is_refused(root, edit, message):
    record = json.loads((root / "manifest.json").read_text())
    edit(record)
    (root / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        EpisodeStore(root)


def test_lengths_that_were_changed_are_named_when_opening(root):
    lengths = np.fromfile(root / "lengths.bin", np.int64)
    lengths[0] += 1
    lengths.tofile(root / "lengths.bin")
    with pytest.raises(ValueError, match=r"lengths\.bin describes 64 transitions, the file of steps holds 63"):
        EpisodeStore(root)


def test_an_action_out_of_range_in_an_older_data_set_is_named_when_it_is_drawn(root):
    with open(root / "steps.bin", "r+b") as file:
        file.seek((3 + 0) * 4)  # first action entry of the first step
        file.write(np.float32(5.0).tobytes())
    with pytest.raises(ValueError, match=r"action of task arm is 5 in row 0 .* at step 0; actions lie in \[-1, 1\]"):
        TDMPC2ExperienceReplay(root, 200, slice_len=1).sample()
