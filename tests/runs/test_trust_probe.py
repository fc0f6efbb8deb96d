"""The trust probe of runs on one's own data and of online runs: in the log, the summary and the report."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("hydra")

from tests.examples.test_pwm_online import SHORT
from tests.examples.test_pwm_online import TINY as ONLINE
from tests.runs.test_offline import TINY as OFFLINE
from torchrl_pwm import write_episodes
from torchrl_pwm.evaluation import read_metrics
from torchrl_pwm.runs.cli import main

FIGURES = {"predicted_return", "value_gap", "value_gap_imagined", "dynamics_step8", "exploited"}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def logged(folder):
    return {name: values for name, (_, values) in read_metrics(folder).items()}


@pytest.mark.parametrize("bonus", [0.0, 20.0])
def test_the_alarm_sounds_where_the_model_promises_what_the_env_does_not_pay(place, capsys, bonus):
    pytest.importorskip("gymnasium")
    from torchrl.envs import GymEnv

    torch.manual_seed(0)
    env = GymEnv("Pendulum-v1")
    env.set_seed(0)
    rollout = env.rollout(800, break_when_any_done=False)
    rollout["next", "reward"] += bonus
    write_episodes("arm", rollout, action_low=-2.0, action_high=2.0)
    main(["offline", "data=arm", *OFFLINE, "folder=run", "env=Pendulum-v1"])
    trust = json.loads((place / "run" / "summary.json").read_text())["tasks"]["arm"]["outcomes"]["policy"]["trust"]
    assert trust["exploited"] == bool(bonus)
    assert (trust["imagined_return"] > 0) == bool(bonus) and trust["real_return"] < 0
    assert set(trust["own"]["observation_error"]) == set(trust["data"]["observation_error"]) == {"1", "4", "8", "16"}
    printed = capsys.readouterr().out
    assert f"- Trust probe, of the policy's 2 real episodes: {trust['line']}." in printed
    assert trust["line"] in (place / "run" / "report.md").read_text()
    metrics = logged(place / "run")
    assert set(metrics) >= FIGURES | {"data_dynamics_step8"}
    assert set(metrics["exploited"]) == {float(bool(bonus))}


def test_an_online_run_is_the_same_with_and_without_the_probe(place, capsys):
    for folder in ("with", "without"):
        main(["simulator", *ONLINE, SHORT, f"folder={folder}", f"trust_probe={str(folder == 'with').lower()}"])
    summaries = [json.loads((place / name / "summary.json").read_text())["outcomes"] for name in ("with", "without")]
    trust = summaries[0]["policy"].pop("trust")
    assert trust["line"] in capsys.readouterr().out
    assert summaries[0]["last policy"]["trust"]["value_gap"] is not None
    for outcomes in summaries:
        for outcome in outcomes.values():
            outcome.pop("trust", None)
    assert summaries[0] == summaries[1]
    metrics = logged(place / "with")
    assert set(metrics) >= FIGURES and not FIGURES & set(logged(place / "without"))
    assert len(metrics["value_gap"]) == len(metrics["real_return"])
    weights = [torch.load(place / name / "policy.pt", weights_only=True) for name in ("with", "without")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
