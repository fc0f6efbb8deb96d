"""A resumed run keeps its engine; one that has ended makes none."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("hydra")

from torchrl_pwm._utils.files import replace_file
from torchrl_pwm.runs import extraction
from torchrl_pwm.runs.cli import command_config
from torchrl_pwm.runs.extraction import extract_all
from torchrl_pwm.runs.folder import open_run
from torchrl_pwm.runs.saved import config_text

SETTINGS = ["engine=ray", "engine.num_gpus=0.25", "engine.batches=3"]


@pytest.fixture
def begun(tmp_path):
    """The folder of a run on Ray that was interrupted."""
    replace_file(tmp_path / "config.yaml", config_text(command_config("mt80", SETTINGS)))
    return tmp_path


def test_an_option_of_the_engine_is_that_of_the_run_and_the_others_stay(begun):
    overrides = [f"resume={begun}", "engine.num_cpus=4"]
    config, _ = open_run(command_config("mt80", overrides), overrides)
    assert dict(config.engine) | {"address": None} == {
        "name": "ray",
        "address": None,
        "num_gpus": 0.25,
        "num_cpus": 4,
        "batches": 3,
        "retries": 3,
    }


def test_another_engine_may_be_named_as_before(begun):
    overrides = [f"resume={begun}", "engine=submitit", "engine.hours=2"]
    config, _ = open_run(command_config("mt80", overrides), overrides)
    assert (config.engine.name, config.engine.hours) == ("submitit", 2)


def test_an_option_that_the_engine_of_the_run_has_not_is_refused(begun):
    with pytest.raises(ValueError, match=r"there is no option engine\.hours"):
        command_config("mt80", [f"resume={begun}", "engine.hours=2"])


def test_a_run_with_all_its_policies_makes_no_engine(tmp_path, monkeypatch):
    """One of Ray starts a cluster as soon as it is asked what there is."""
    monkeypatch.setattr(extraction, "make_engine", lambda config: pytest.fail("an engine was made"))
    for seed in (0, 1):
        result = {"task": "mw-reach", "seed": seed, "seconds": 1.0, "returns": [1.0], "successes": [1.0]}
        place = tmp_path / "policies" / "mw-reach" / f"seed-{seed}"
        place.mkdir(parents=True)
        replace_file(place / "result.json", json.dumps(result).encode())
    config = command_config("mt80", [*SETTINGS, "seeds=2", "progress=false"])
    results = extract_all(config, tmp_path, None, tmp_path / "model.pt", ["mw-reach"])
    assert [result["seed"] for result in results] == [0, 1]
