from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs.transforms import ObservationNorm

from torchrl_pwm._utils.files import locked
from torchrl_pwm.data import EpisodeStore, SACConfig, TDMPC2ExperienceReplay, collect_dataset
from torchrl_pwm.data.collect.behaviors import TaskJob, task_episodes
from torchrl_pwm.data.store.episodes import Episode
from torchrl_pwm.envs.dm_control import DMControlSimulation
from torchrl_pwm.envs.multitask import make_task_env
from torchrl_pwm.envs.tasks import MT30, MT80, TaskSet

FIELDS = ("observation", "action", "reward", "success")


def collect(tasks, root, **kwargs):
    return collect_dataset(tasks, root, **{"episodes": 1, "workers": 1, "progress": False, **kwargs})


def contents(root):
    return {path.name: path.read_bytes() for path in root.iterdir()}


def replayed(store, task, env_seed):
    """Whether the stored actions lead through the stored observations and rewards again."""
    spec = MT80[task]
    (rows,) = store.select(task)
    env = make_task_env(task, seed=env_seed)
    parts = spec.episode_length // store.row_length
    for first in range(rows.start, rows.stop, parts):
        td = env.reset()
        for row in range(first, first + parts):
            for t in range(store.row_length):
                assert np.array_equal(store.observation[row, t, : spec.observation_dim], td["observation"].numpy())
                td["action"] = torch.tensor(store.action[row, t, : spec.action_dim])
                td = env.step(td)["next"]
                assert store.reward[row, t] == td["reward"].item()
            assert np.array_equal(store.observation[row, -1, : spec.observation_dim], td["observation"].numpy())


def env_seed(task, seed, table=MT80):
    return TaskJob(task, table, "random", 1, seed).env_seed


def test_random_data_replays_in_the_simulator_step_by_step(tmp_path):
    store = collect(["pendulum-swingup"], tmp_path / "d", episodes=2, seed=5)
    assert store.num_rows == 10 and store.row_length == 100
    replayed(store, "pendulum-swingup", env_seed("pendulum-swingup", 5))
    action = store.action[..., 0]
    assert abs(action.mean()) < 0.1 and abs(action.std() - 3**-0.5) < 0.08
    assert len(np.unique(action)) > 990, "each episode draws its own actions"


def test_two_processes_do_not_collect_into_one_folder(tmp_path):
    (tmp_path / "d.partial").mkdir()
    with locked(tmp_path / "d.partial"), pytest.raises(BlockingIOError, match="another process is collecting"):
        collect(["pendulum-swingup"], tmp_path / "d")
    assert collect(["pendulum-swingup"], tmp_path / "d").num_rows == 5


def test_observations_are_padded_with_zeros_and_actions_with_draws(tmp_path):
    store = collect(["pendulum-swingup", "mw-reach"], tmp_path / "d")
    pendulum, reach = store.select()
    assert not store.observation[pendulum.start : pendulum.stop, :, 3:].any()
    for rows, width in ((pendulum, 1), (reach, 4)):
        assert store.action[rows.start : rows.stop, :, :width].all()
        padding = store.action[rows.start : rows.stop, :, width:]
        assert np.abs(padding).max() <= 1 and abs(padding.std() - 3**-0.5) < 0.08


def test_rows_have_the_length_of_the_shortest_episode_of_the_set(tmp_path):
    assert collect(["pendulum-swingup"], tmp_path / "mt30", task_set="mt30").row_length == 500
    assert collect(["pendulum-swingup"], tmp_path / "mt80", task_set="mt80").row_length == 100
    own = TaskSet("own", ["pendulum-swingup"])
    assert collect(["pendulum-swingup"], tmp_path / "own", task_set=own).observation.shape == (1, 501, 3)


def test_a_row_goes_on_where_the_one_before_ended(tmp_path):
    observation = collect(["cheetah-run"], tmp_path / "d").observation
    assert np.array_equal(observation[1:, 0], observation[:-1, -1])


def test_rows_of_an_episode_keep_every_step():
    steps = np.arange(6.0, dtype=np.float32)
    episode = Episode(np.arange(7.0)[:, None], np.stack([steps, -steps], 1), steps, steps > 3)
    rows = episode.rows(MT30, 1, 3, np.random.default_rng(0))
    assert rows.observation[..., 0].tolist() == [[0, 1, 2, 3], [3, 4, 5, 6]]
    assert rows.action[..., 0].tolist() == rows.reward.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (rows.action[..., 1:] != 0).all() and rows.observation.shape == (2, 4, 24)
    assert rows.success.tolist() == [[False] * 3, [False, True, True]]


def test_scripted_data_cycles_through_the_noise_levels(tmp_path):
    store = collect(["mw-reach"], tmp_path / "d", episodes=6, behavior="scripted", noise=(0.0, 0.5, "random"), seed=1)
    returns = store.reward.sum(1).reshape(2, 3)
    assert (returns[:, 0] > 1500).all() and (returns[:, 2] < 1000).all()
    assert store.success[[0, 3], -1].all() and not store.success[[2, 5], -1].any()
    statistics = store.statistics()["mw-reach"]
    assert statistics["behavior_return_mean"] == pytest.approx(store.reward.sum(1).mean())
    assert statistics["behavior_return_std"] == pytest.approx(store.reward.sum(1, dtype=np.float64).std())
    assert statistics["success_mean"] == store.success[:, -1].mean()
    replayed(store, "mw-reach", env_seed("mw-reach", 1))


MIXED = {
    "tasks": ["mw-reach", "pendulum-swingup", "cartpole-balance"],
    "behavior": {"mw-reach": "scripted", "pendulum-swingup": "random", "cartpole-balance": "sac"},
    "episodes": {"mw-reach": 3, "pendulum-swingup": 2, "cartpole-balance": 1},
    "sac": SACConfig(random_steps=480, batch_size=32, units=(16, 16)),
    "seed": 4,
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A collection of three behaviours made by one process without interruption."""
    root = tmp_path_factory.mktemp("mixed") / "data"
    collect(root=root, **MIXED)
    return root


def test_the_data_does_not_depend_on_the_number_of_workers(mixed, tmp_path):
    collect(root=tmp_path / "data", **MIXED, workers=2)
    assert contents(tmp_path / "data") == contents(mixed)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_an_interrupted_collection_goes_on_and_gives_the_same_bytes(mixed, tmp_path, monkeypatch):
    fails = ["mw-reach", "cartpole-balance"]
    started = []

    def interrupted(job):
        started.append(job.task)
        for number, episode in enumerate(task_episodes(job)):
            if job.task in fails and number == job.episodes - 1:
                fails.remove(job.task)
                raise KeyboardInterrupt
            yield episode

    monkeypatch.setattr("torchrl_pwm.data.collect.dataset.task_episodes", interrupted)
    root = tmp_path / "data"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            collect(root=root, **MIXED)
        assert not root.exists()
        # what a process that was killed outright would leave
        (tmp_path / "data.partial" / ".mw-reach-01234567.tmp").mkdir()
    collect(root=root, **MIXED)
    assert contents(root) == contents(mixed)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert started.count("pendulum-swingup") == 1, "a finished task is kept"


def test_a_finished_collection_is_returned_as_it_is(mixed, monkeypatch):
    monkeypatch.setattr("torchrl_pwm.data.collect.dataset.task_episodes", None)
    before = contents(mixed)
    assert collect(root=mixed, **MIXED).num_rows == 3 + 10 + 5
    assert contents(mixed) == before
    with pytest.raises(FileExistsError, match="made in another way"):
        collect(root=mixed, **{**MIXED, "seed": 5})


def test_parts_of_other_settings_are_not_mixed_in(tmp_path, monkeypatch):

    def interrupted(job):
        if job.task == "mw-reach":
            raise KeyboardInterrupt
        yield from task_episodes(job)

    monkeypatch.setattr("torchrl_pwm.data.collect.dataset.task_episodes", interrupted)
    tasks = ["pendulum-swingup", "mw-reach"]
    with pytest.raises(KeyboardInterrupt):
        collect(tasks, tmp_path / "d", seed=1)
    with pytest.raises(ValueError, match="was collected with other settings"):
        collect(tasks, tmp_path / "d", seed=2)


def test_the_episodes_of_a_task_do_not_depend_on_other_tasks(mixed, tmp_path):
    alone = collect("pendulum-swingup", tmp_path / "d", episodes=2, seed=4)
    store = EpisodeStore(mixed)
    (rows,) = store.select("pendulum-swingup")
    for name in FIELDS:
        assert np.array_equal(getattr(alone, name), getattr(store, name)[rows.start : rows.stop])


def test_the_seed_changes_the_data(tmp_path):
    first, second = (collect("pendulum-swingup", tmp_path / str(seed), seed=seed) for seed in (1, 2))
    assert not np.array_equal(first.action, second.action)
    assert not np.array_equal(first.observation[0, 0], second.observation[0, 0])


def test_sac_keeps_every_step_of_its_training(mixed):
    store = EpisodeStore(mixed)
    (rows,) = store.select("cartpole-balance")
    action = store.action[rows.start : rows.stop].reshape(-1, 6)
    assert len(action) == 500 and (np.abs(action[:, 0]) <= 1).all() and np.abs(action[480:, 0]).all()
    replayed(store, "cartpole-balance", env_seed("cartpole-balance", 4))


def test_sac_updates_change_its_actions_only_after_the_random_steps(tmp_path):
    actions = []
    for updates in (0.0, 0.5):
        config = SACConfig(random_steps=470, batch_size=8, units=(8,), updates_per_step=updates)
        store = collect("pendulum-swingup", tmp_path / str(updates), behavior="sac", sac=config)
        actions.append(store.action.reshape(-1, 6)[:, 0])
    assert np.array_equal(actions[0][:471], actions[1][:471])
    assert not np.array_equal(actions[0][475:], actions[1][475:])


def test_collecting_leaves_the_global_generators_and_threads_alone(tmp_path):
    torch_state, threads = torch.get_rng_state(), torch.get_num_threads()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    config = SACConfig(random_steps=495, batch_size=8, units=(8,))
    collect("pendulum-swingup", tmp_path / "sac", behavior="sac", sac=config)
    collect("mw-reach", tmp_path / "scripted", behavior="scripted")
    assert torch.equal(torch.get_rng_state(), torch_state) and torch.get_num_threads() == threads
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def _push_right(observation):
    return torch.full((6,), 0.25) + 0 * observation[..., :1]


def test_a_policy_of_your_own_acts_with_noise(tmp_path):
    policy = TensorDictModule(_push_right, ["observation"], ["action"])
    store = collect(
        "walker-run", tmp_path / "d", behavior="policy", policy=policy, noise=(0.0, 0.3, "random"), episodes=3
    )
    first, second, third = store.action.reshape(3, 500, 6)
    assert (first == 0.25).all()
    assert abs(second.mean() - 0.25) < 0.02 and abs(second.std() - 0.3) < 0.02
    assert abs(third.mean()) < 0.03 and abs(third.std() - 3**-0.5) < 0.02


class _Right(nn.Module):
    def __init__(self):
        super().__init__()
        self.push = nn.Parameter(torch.full((6,), 0.25))

    def forward(self, observation):
        return self.push + 0 * observation[..., :1]


def test_a_policy_acts_where_its_networks_are(tmp_path, device):
    policy = TensorDictModule(_Right().to(device), ["observation"], ["action"])
    store = collect("walker-run", tmp_path / "d", behavior="policy", policy=policy, episodes=1)
    assert (store.action == 0.25).all()


def test_a_policy_sees_what_its_transform_writes(tmp_path):
    transform = ObservationNorm(
        loc=0.5, scale=1e-3, in_keys=["observation"], out_keys=["scaled"], standard_normal=False
    )
    policy = TensorDictModule(lambda x: x[..., :6], ["scaled"], ["action"])
    store = collect("pendulum-swingup", tmp_path / "d", behavior="policy", policy=policy, transform=transform)
    assert np.allclose(store.action[..., 0], 0.5 + 1e-3 * store.observation[:, :-1, 0])


def test_a_policy_that_samples_draws_from_the_seed(tmp_path):
    policy = TensorDictModule(lambda x: torch.rand(6), ["observation"], ["action"])
    stores = []
    for number in range(2):
        torch.rand(number + 1)
        stores.append(
            collect("pendulum-swingup", tmp_path / str(number), behavior="policy", policy={"pendulum-swingup": policy})
        )
    assert np.array_equal(stores[0].action, stores[1].action)


def test_collected_data_is_sampled_like_any_other(mixed):
    replay = TDMPC2ExperienceReplay(mixed, 32, tasks=["mw-reach"], verify=True)
    batch = replay.sample()
    assert batch.shape == (32, 17) and (batch["task"] == MT80["mw-reach"].index).all()
    assert set(replay.statistics()) == {"mw-reach"}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"tasks": ["walker-rum"]}, "did you mean 'walker-run'"),
        ({"tasks": []}, "at least one task"),
        ({"tasks": ["walker-run", "walker-run"]}, "each once"),
        ({"tasks": ["mw-reach"], "task_set": "mt30"}, "unknown task 'mw-reach'"),
        ({"behavior": "expert"}, "unknown behavior 'expert'; known are random, scripted, sac, policy"),
        ({"behavior": "scripted"}, "walker-run has no scripted expert"),
        ({"behavior": "policy"}, "needs policy="),
        ({"behavior": {"walker-walk": "random"}}, "behavior says nothing about walker-run"),
        ({"episodes": 0}, "at least 1, found 0"),
        ({"tasks": ["mw-reach"], "behavior": "scripted", "noise": (-1.0,)}, "noise level"),
        ({"tasks": ["mw-reach"], "behavior": "scripted", "noise": ("all",)}, "noise level"),
        ({"tasks": ["mw-reach"], "behavior": "scripted", "noise": ()}, "at least one level"),
        ({"sac": lambda: SACConfig(random_steps=0)}, "random_steps"),
    ],
)
def test_a_collection_that_makes_no_sense_is_refused(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        collect(
            root=tmp_path / "d",
            **{"tasks": ["walker-run"], **{k: v() if callable(v) else v for k, v in kwargs.items()}},
        )
    assert list(tmp_path.iterdir()) == []


def test_a_policy_with_actions_of_the_wrong_size_is_refused(tmp_path):
    policy = TensorDictModule(lambda x: x[..., :2], ["observation"], ["action"])
    with pytest.raises(ValueError, match=r"shape \(2,\) for pendulum-swingup, expected \(6,\)"):
        collect("pendulum-swingup", tmp_path / "d", behavior="policy", policy=policy)
    assert not (tmp_path / "d").exists()


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "notes").touch()
    with pytest.raises(FileExistsError, match="no data set that can be used"):
        collect("pendulum-swingup", tmp_path)


def test_a_missing_simulator_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld", None)
    for name in [name for name in sys.modules if name.startswith("metaworld.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r'pip install "torchrl-pwm\[mt80\]"'):
        collect("mw-reach", tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_an_infinite_action_of_a_policy_is_refused_and_not_made_the_largest_one(tmp_path):
    policy = TensorDictModule(lambda observation: observation[..., :6] + torch.inf, ["observation"], ["action"])
    with pytest.raises(ValueError, match=r"the policy wrote the action \[inf.* for pendulum-swingup, expected finite"):
        collect("pendulum-swingup", tmp_path / "data", behavior="policy", policy=policy)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("behavior", "steps"), [("random", 7), ("sac", 7)])
def test_a_simulator_that_diverges_is_named_at_its_step_and_nothing_is_kept(behavior, steps, tmp_path, monkeypatch):
    step, count = DMControlSimulation.step, []

    def diverging(self, action):
        count.append(1)
        observation, reward, success = step(self, action)
        return observation, np.nan if len(count) == steps + 1 else reward, success

    monkeypatch.setattr(DMControlSimulation, "step", diverging)
    with pytest.raises(ValueError, match=rf"reward of task pendulum-swingup must be finite, found nan at step {steps}"):
        collect("pendulum-swingup", tmp_path / "data", behavior=behavior)
    assert len(count) == steps + 1 and not (tmp_path / "data").exists()
    assert not list((tmp_path / "data.partial").glob("*/manifest.json"))
