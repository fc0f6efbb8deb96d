"""Runs that version 0.1.0 left interrupted or finished still resume and open, with the numbers it would have given."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("hydra")

from tensordict import TensorDict

from tests.runs.conftest import NOTED
from torchrl_pwm import load_policy

needs_mt80 = pytest.mark.skipif(importlib.util.find_spec("dm_control") is None, reason="dm_control is not installed")
RUNS = Path(__file__).parents[1] / "golden" / "runs"


def measured(summary: Path) -> dict[str, list[float]]:
    """The returns of a summary, by policy or by task."""
    content = json.loads(summary.read_text())
    if "outcomes" in content:
        return {name: outcome["returns"] for name, outcome in content["outcomes"].items()}
    return {row["task"]: [row["return_mean"], row["return_std"], row["score"]] for row in content["tasks"]}


@pytest.mark.parametrize(
    "name",
    [
        "shac",
        "pwm_online",
        "tdmpc2_online",
        pytest.param("mt80", marks=needs_mt80),
        pytest.param("tdmpc2_mt80", marks=needs_mt80),
    ],
)
def test_an_interrupted_run_resumes_to_the_numbers_of_the_version_that_began_it(name, finished):
    returns, expected = measured(finished(name) / "summary.json"), measured(RUNS / name / "expected.json")
    # Since then a summary has the last and the best policy beside the one that counts.
    assert all(key.startswith(("last ", "best ")) for key in returns.keys() - expected.keys())
    for key, values in expected.items():
        assert returns[key] == pytest.approx(values, rel=1e-4), key


@needs_mt80
@pytest.mark.parametrize("name", ["mt80", "tdmpc2_mt80"])
def test_the_seconds_of_earlier_sittings_are_in_the_report(name, finished):
    total = json.loads((finished(name) / "summary.json").read_text())["seconds_total"]
    noted = json.loads((finished(name) / "seconds.json").read_text())
    assert NOTED < total <= noted < 2 * NOTED


@pytest.mark.parametrize(("name", "observation_dim"), [("shac", 5), ("pwm_online", 5)])
def test_the_policy_of_a_finished_run_opens_and_acts(name, observation_dim):
    policy = load_policy(RUNS / "finished" / name)
    td = policy(TensorDict({"observation": torch.zeros(2, observation_dim)}, [2]))
    assert policy.task_name == "cartpole_swingup" and td["action"].shape == (2, 1) and td["action"].abs().max() <= 1
