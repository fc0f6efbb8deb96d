"""Policies from recorded data are taken away, in the units of the data, and their runs are trained longer."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("hydra")

from tests.runs.test_offline import TINY, recorded
from torchrl_pwm import export_policy, load_policy, write_episodes
from torchrl_pwm._utils.checkpoint import load_checkpoint
from torchrl_pwm.runs.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on data whose actions go from -4 to 4."""
    place = tmp_path_factory.mktemp("recorded")
    write_episodes(place / "arm", recorded(), action_low=-4.0, action_high=4.0)
    main(["offline", f"data={place / 'arm'}", *TINY, f"folder={place / 'run'}"])
    return place / "run"


def test_a_policy_from_recorded_data_acts_without_them(run):
    policy = load_policy(run, "cpu")
    action = policy(observation=torch.tensor([[0.5, 1.7e9]]))
    assert policy.task_name == "arm" and action.shape == (1, 1)
    torch.testing.assert_close(policy.unscaled(action), 4 * action)
    assert torch.equal(load_policy(run / "policy.pt", "cpu")(observation=torch.tensor([[0.5, 1.7e9]])), action)


def test_an_exported_policy_says_what_its_actions_stand_for(run, tmp_path):
    path = export_policy(load_policy(run), tmp_path / "arm.pt2")
    files = {"policy.json": ""}
    torch.export.load(path, extra_files=files)
    action = json.loads(files["policy.json"])["action"]
    assert (action["low"], action["high"], action["data_low"], action["data_high"]) == ([-1], [1], [-4], [4])


@pytest.mark.parametrize("option", ["extraction.iterations", "world_model.iterations"])
def test_a_run_on_recorded_data_goes_on_with_more_iterations(option, run):
    before = json.loads((run / "summary.json").read_text())
    place = run / "world_model" if option.startswith("world") else run
    done = load_checkpoint(place / "checkpoint")["iteration"]
    main(["offline", f"resume={run}", f"{option}={done + 2}"])
    assert load_checkpoint(place / "checkpoint")["iteration"] == done + 2
    assert json.loads((run / f"earlier/{option}-{done}/summary.json").read_text()) == before
    assert load_policy(run, "cpu")(observation=torch.tensor([[0.5, 1.7e9]])).isfinite().all()


def test_of_several_recorded_tasks_one_is_chosen_with_its_own_sizes(tmp_path):
    def episodes():
        draw = np.random.default_rng(0).random
        for number in range(8):
            size = 2 + number % 2
            entries = {"observation": draw((12, size)), "action": draw((11, size - 1)) - 0.5}
            yield {**entries, "reward": draw(11), "task": ("lift", "turn")[number % 2]}

    write_episodes(tmp_path / "both", episodes())
    main(["offline", f"data={tmp_path / 'both'}", *TINY, f"folder={tmp_path / 'run'}", "device=cpu"])
    with pytest.raises(ValueError, match=r"several policies: choose one with task=, of \['lift', 'turn'\]"):
        load_policy(tmp_path / "run")
    for task, size in (("lift", 2), ("turn", 3)):
        policy = load_policy(tmp_path / "run", "cpu", task=task)
        assert policy(observation=torch.zeros(5, size)).shape == (5, size - 1)
