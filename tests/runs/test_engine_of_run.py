"""A resumed run keeps its engine; one that has ended makes none."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("hydra")

from torchrl_pwm._utils.files import replace_file
from torchrl_pwm.runs import extraction
from torchrl_pwm.runs.cli import command_config
from torchrl_pwm.runs.engines.local import LocalEngine
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


@pytest.mark.parametrize("done", [True, False])
def test_an_engine_is_made_only_where_a_policy_is_left(done, tmp_path, monkeypatch):
    """One of Ray starts a cluster as soon as it is asked what there is."""
    made = []

    class Engine(LocalEngine):
        def run(self, works, folder, *, report, ended):
            made.append(len(works))
            for place in places:
                replace_file(place, b'{"task": "mw-reach", "seconds": 1.0, "returns": [1.0], "successes": [1.0]}')

    def make(config):
        return Engine("cpu", 1)

    monkeypatch.setattr(extraction, "make_engine", make)
    monkeypatch.setattr(extraction, "PolicyTable", lambda *places: SimpleNamespace(update=lambda: None))
    places = [tmp_path / "policies" / "mw-reach" / f"seed-{seed}" / "result.json" for seed in (0, 1)]
    for place in places[: 2 if done else 1]:
        place.parent.mkdir(parents=True)
        replace_file(place, b'{"task": "mw-reach", "seconds": 1.0, "returns": [1.0], "successes": [1.0]}')
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
    config = command_config("mt80", [*SETTINGS, "seeds=2", "progress=false"])
    results = extract_all(config, tmp_path, None, tmp_path / "model.pt", ["mw-reach"])
    assert len(results) == 2 and made == ([] if done else [1])
    assert "ray" not in sys.modules
