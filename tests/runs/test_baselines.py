"""The baselines of a run, measured in the real envs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tensordict import TensorDict

pytest.importorskip("omegaconf")
pytest.importorskip("dm_control")
pytest.importorskip("metaworld")

from omegaconf import OmegaConf

from tests.trainers.tiny import write_store
from torchrl_pwm import PWMWorldModel
from torchrl_pwm.data import EpisodeStoreWriter
from torchrl_pwm.envs import make_task_env
from torchrl_pwm.envs.random_policy import RandomPolicy
from torchrl_pwm.modules import pack_quickstart
from torchrl_pwm.runs.baselines import (
    DEFAULT_BASELINES,
    BaselineJob,
    baseline_settings,
    measure_baselines,
)

TASKS = ("pendulum-swingup", "mw-reach")
SETTINGS = {"cloning": {"updates": 3, "units": [8], "batch_size": 4, "evaluations": 2, "eval_episodes": 1}}


def config(baselines=SETTINGS, **changes):
    content = {
        "task_set": "mt80",
        "seed": 5,
        "seeds": 2,
        "workers": 1,
        "progress": False,
        "evaluation": {"episodes": 2, "seed": 1000, "baselines": baselines},
    }
    return OmegaConf.create({**content, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("data") / "store")


@pytest.fixture(scope="module")
def found(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return measure_baselines(config(), folder, data, TASKS), folder


def test_every_task_has_random_episodes_and_a_cloned_policy_per_seed(found):
    results, folder = found
    assert list(results) == list(TASKS)
    for task in TASKS:
        assert [run["seed"] for run in results[task]["random"]] == [1000]
        assert [run["seed"] for run in results[task]["cloning"]] == [5, 6]
        for run in (*results[task]["random"], *results[task]["cloning"]):
            assert len(run["returns"]) == 2
            assert (run["successes"] is None) == (task == "pendulum-swingup")
        assert json.loads((folder / "baselines" / f"{task}.json").read_text()) == results[task]
    first, second = results["mw-reach"]["cloning"]
    assert first["returns"] != second["returns"]


def test_numbers_repeat_in_another_folder_and_in_other_processes(found, data, tmp_path):
    again = measure_baselines(config(workers=2), tmp_path, data, TASKS)
    assert without_seconds(again) == without_seconds(found[0])


def without_seconds(results):
    return {
        task: {name: [{**run, "phases": None} for run in runs] for name, runs in by_name.items()}
        for task, by_name in results.items()
    }


def test_what_was_measured_is_not_measured_again(found, data, tmp_path):
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "mw-reach.json").write_text('{"random": []}')
    assert measure_baselines(config(), tmp_path, data, ["mw-reach"]) == {"mw-reach": {"random": []}}


def test_random_episodes_are_those_of_uniform_actions_in_the_evaluation_s_env(found):
    policy, env = RandomPolicy(1, seed=1000), make_task_env("pendulum-swingup", seed=1000)
    env.set_seed(1000)
    td, total = env.reset(), 0.0
    for _ in range(500):
        step, td = env.step_and_maybe_reset(policy(td))
        total += float(step["next", "reward"])
    env.close()
    assert found[0]["pendulum-swingup"]["random"][0]["returns"][0] == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize("task", TASKS)
def test_episodes_start_alike_for_every_policy_padded_or_not(task):
    starts = []
    for task_set, seed in (("mt80", 0), (None, 1)):
        env = make_task_env(task, task_set=task_set, seed=7)
        env.set_seed(7)
        policy = RandomPolicy(env.action_spec.shape[-1], seed)
        states = [env.reset()["observation"]]
        for _ in range(2):
            td = env.rollout(1000, policy, auto_reset=False, tensordict=env.reset())
            assert td["next", "done"][-1]
            states.append(td["observation"][0])
        starts.append(states)
        env.close()
    for padded, plain in zip(*starts):
        assert padded[: len(plain)].tolist() == plain.tolist() and not padded[len(plain) :].any()


def test_behaviour_is_cloned_from_the_start_states_of_a_quickstart(tmp_path, monkeypatch):
    draws = torch.Generator().manual_seed(0)
    starts = TensorDict(
        {
            "observation": torch.randn(20, 39, generator=draws),
            "action": torch.rand(20, 6, generator=draws) * 2 - 1,
            "behavior_weight": torch.ones(20, 1),
            "task": torch.full((20,), 65),
        },
        [20],
    )
    model = PWMWorldModel(39, 6, latent_dim=16, encoder_units=(8,), units=(8,), num_bins=11, num_tasks=80, task_dim=4)
    content = pack_quickstart(
        model, {"mw-reach": starts}, {"mw-reach": {}}, task_set="mt80", source={}, recorded={"mw-reach": 15}
    )
    (tmp_path / "quickstart.safetensors").write_bytes(content)
    monkeypatch.setattr("torchrl_pwm.modules.checkpoints.QUICKSTART_FILE", tmp_path / "quickstart.safetensors")
    results = measure_baselines(config(), tmp_path, None, ["mw-reach"])
    assert [run["seed"] for run in results["mw-reach"]["cloning"]] == [5, 6]
    # not from those of earlier policies
    drawn = BaselineJob({}, "mw-reach", "mt80", None, (0,), 1, 0, tmp_path / "none").replay(0, 1.0).sample(500)
    assert set(drawn["observation"][:, 0].tolist()) == set(starts["observation"][:15, 0].half().float().tolist())


def test_the_best_episodes_alone_are_cloned_where_the_run_starts_from_them(tmp_path):
    """Three episodes of return 0, 100 and 200 in which the action is -1, 0 and 1."""
    with EpisodeStoreWriter(tmp_path / "data", "mt80", {"mw-reach": 3}, row_length=100, whole_episodes=True) as writer:
        level = np.arange(3.0)[:, None]
        action = np.broadcast_to((level - 1.0)[..., None], (3, 100, 6))
        writer.write("mw-reach", np.zeros((3, 101, 39)), action, np.broadcast_to(level, (3, 100)))
    job = BaselineJob({}, "mw-reach", "mt80", tmp_path / "data", (0,), 1, 0, tmp_path / "none")
    for top, expected in ((1.0, {-1.0, 0.0, 1.0}), (0.67, {0.0, 1.0}), (0.3, {1.0})):
        drawn = job.replay(0, top).sample(500)["action"].flatten().tolist()
        assert set(drawn) == expected


def test_several_shares_are_cloned_in_one_run_each_as_alone(data, tmp_path):
    def measured(name, **further):
        quick = {"evaluations": 1}
        settings = config({"random": False, "cloning": {**SETTINGS["cloning"], **quick, **further}}, seeds=1)
        return measure_baselines(settings, tmp_path / name, data, ["mw-reach"])["mw-reach"]

    both = measured("both", top=1.0, also=[0.5])
    alone = {"cloning": measured("all", top=1.0)["cloning"], "cloning_top_0.5": measured("half", top=0.5)["cloning"]}
    assert without_seconds({"mw-reach": both}) == without_seconds({"mw-reach": alone})
    assert both["cloning"][0]["returns"] != both["cloning_top_0.5"][0]["returns"]


def test_the_share_that_is_cloned_is_that_of_the_start_states():
    assert baseline_settings(config())["cloning"] == {**DEFAULT_BASELINES["cloning"], **SETTINGS["cloning"], "top": 1.0}
    assert baseline_settings(config(extraction={"starts": None}))["cloning"]["top"] == 1.0
    assert baseline_settings(config(extraction={"starts": {"top": 0.5}}))["cloning"]["top"] == 0.5
    named = config({"cloning": {"top": 0.2}}, extraction={"starts": {"top": 0.5}})
    assert baseline_settings(named)["cloning"]["top"] == 0.2
    plain = config()
    del plain.evaluation["baselines"]
    assert baseline_settings(plain)["cloning"]["updates"] == 2000


def test_random_actions_fill_the_range_evenly():
    actions = RandomPolicy(2, seed=0)(TensorDict(batch_size=[4000]))["action"].numpy()
    assert actions.shape == (4000, 2) and abs(actions.mean()) < 0.02
    assert np.histogram(actions, bins=4, range=(-1, 1))[0] / 8000 == pytest.approx([0.25] * 4, abs=0.02)


def test_each_baseline_can_be_left_out(data, tmp_path):
    assert measure_baselines(config(None), tmp_path / "none", data, TASKS) == {}
    assert not (tmp_path / "none").exists()
    only = {"random": False, "cloning": {"updates": 1, "units": [4], "eval_episodes": 1}}
    assert list(measure_baselines(config(only), tmp_path / "a", data, ["mw-reach"])["mw-reach"]) == ["cloning"]
    for off in ({"cloning": None}, {"cloning": {"updates": 0}}):
        folder = tmp_path / str(off)
        assert list(measure_baselines(config(off), folder, data, ["mw-reach"])["mw-reach"]) == ["random"]


def test_an_unknown_baseline_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match=r"evaluation.baselines has \['cloning', 'random'\], not \['expert'\]"):
        measure_baselines(config({"expert": True}), tmp_path, data, TASKS)
