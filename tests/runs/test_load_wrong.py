"""What a caller does wrong, and what fails in code of their own, is not said to be a damaged file."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("hydra")

from omegaconf import OmegaConf

from torchrl_pwm import DamagedFileError, load_policy
from torchrl_pwm.runs import load


def failing_encoder(**options):
    raise RuntimeError("no such pictures")


@pytest.fixture
def run(tmp_path, golden_folder):
    return shutil.copytree(golden_folder / "runs" / "finished" / "pwm_online", tmp_path / "run")


def changed(run, **options):
    config = OmegaConf.load(run / "config.yaml")
    for key, value in options.items():
        OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
    OmegaConf.save(config, run / "config.yaml")


@pytest.mark.parametrize(
    "wrong",
    [{"plan": "yes"}, {"seed": "first"}, {"seed": 1.5}, {"task": 3}, {"targets": "os.mkdir"}, {"targets": [3]}],
    ids=str,
)
def test_an_argument_of_another_kind_is_named(wrong, run):
    (name,) = wrong
    with pytest.raises(TypeError, match=f"^{name} must be a"):
        load_policy(run, "cpu", **wrong)


def test_a_failing_encoder_of_ones_own_is_named(run):
    target = f"{__name__}.failing_encoder"
    changed(run, model__encoder={"_target_": target})
    with pytest.raises(ValueError, match=f"{target} of the run was not built.*no such pictures") as raised:
        load_policy(run, "cpu", targets=[target])
    assert not isinstance(raised.value, DamagedFileError)


@pytest.mark.parametrize("file", ["world_model.pt", "rounds/0/policies/reach/seed-0/policy.pt", "config.yaml"])
def test_a_file_that_is_no_final_policy_is_not_taken_for_one(file, run):
    (run / file).parent.mkdir(parents=True, exist_ok=True)
    (run / file).touch()
    with pytest.raises(ValueError, match=f"{file} is none of the final policies of the run in"):
        load_policy(run / file, "cpu")


@pytest.mark.parametrize(("named", "key"), [({"task": "push"}, "task reach"), ({"seed": 4}, "seed 2")])
def test_a_file_of_another_task_or_seed_is_refused(named, key, run):
    file = run / "policies" / "reach" / "seed-2" / "policy.pt"
    file.parent.mkdir(parents=True)
    file.touch()
    with pytest.raises(ValueError, match=f"is the policy of {key}, found"):
        load_policy(file, "cpu", **named)


def test_a_run_that_makes_no_policy_is_named(run):
    changed(run, distributed={"sharded": False})
    with pytest.raises(ValueError, match="is one of pretrain, which makes no policy") as raised:
        load_policy(run, "cpu")
    assert not isinstance(raised.value, DamagedFileError)


def test_an_error_after_all_files_were_read_stays_what_it_is(run, monkeypatch):
    def broken(*arguments, **options):
        raise AttributeError("a mistake in the code")

    monkeypatch.setattr(load, "TrainedPolicy", broken)
    with pytest.raises(AttributeError, match="a mistake in the code"):
        load_policy(run, "cpu")


def test_a_damaged_file_is_still_told_as_such(run):
    changed(run, actor__units="many")
    with pytest.raises(DamagedFileError, match="does not make a policy"):
        load_policy(run, "cpu")
