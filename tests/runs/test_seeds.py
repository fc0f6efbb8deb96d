"""Seeds and threads of runs: envs that differ, and nothing that a part of a run leaves behind for the next."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("hydra")

from omegaconf import OmegaConf
from tensordict.nn import TensorDictModule

import torchrl_pwm.runs.configs  # noqa: F401
from torchrl_pwm._utils.devices import one_thread
from torchrl_pwm._utils.seeds import seeded
from torchrl_pwm.modules import QUICKSTART_FILE
from torchrl_pwm.runs.cli import compose_config
from torchrl_pwm.runs.extraction import ExtractionJob, extract_policy
from torchrl_pwm.runs.pwm_online import make_collector, make_training_env

TASK = "walker-stand"
EXTRACTION = [f"task={TASK}", "actor.units=[8]", "value.units=[8]", "loss.horizon=2", "stepper.critic_iterations=1"]
EXTRACTION += ["extraction.iterations=1", "extraction.batch_size=4", "extraction.eval_interval=5"]
EXTRACTION += ["extraction.warm_start={behavior_updates: 1, value_updates: 1}", "extraction.select=last"]
EXTRACTION += ["evaluation.episodes=1", "progress=false", "logger=csv"]


def _no_action(observation: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(observation[..., :1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_two_envs_of_the_workers_of_a_run_begin_or_act_alike() -> None:
    pytest.importorskip("dm_control")
    overrides = ["env=task/dm_control", "env.task=pendulum-swingup", "env.num_envs=4", "collector.workers=2"]
    config = compose_config("pwm_online", [*overrides, "collector.steps=3", "progress=false"])
    env = make_training_env(config, "cpu")
    zeros = TensorDictModule(_no_action, ["observation"], ["action"])
    collector = make_collector(config, env, zeros, "cpu", random_steps=12)
    try:
        batch = next(iter(collector))
    finally:
        collector.shutdown()
    assert batch.shape == (4, 3)
    for entry in ("observation", "action"):
        assert len(batch[entry][:, 0].unique(dim=0)) == 4, entry


def test_a_seeded_block_seeds_no_gpu() -> None:
    queued = torch.cuda._lazy_seed_tracker.get_calls()  # what CUDA will do when it starts
    state = torch.get_rng_state()
    with seeded(123):
        first = torch.randn(3)
    with seeded(123):
        assert torch.equal(torch.randn(3), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.cuda._lazy_seed_tracker.get_calls() == queued
    if torch.cuda.is_available():
        before = torch.cuda.get_rng_state()
        with seeded(123):
            pass
        assert torch.equal(torch.cuda.get_rng_state(), before)


def test_an_extraction_in_this_process_leaves_threads_and_generator_as_they_were(tmp_path) -> None:
    config = OmegaConf.to_container(compose_config("pwm_mt80", EXTRACTION), resolve=True)
    job = ExtractionJob(config, TASK, 0, tmp_path, data=None, world_model=QUICKSTART_FILE, threads=1, device="cpu")
    with one_thread():
        torch.set_num_threads(2)
        state = torch.get_rng_state()
        extract_policy(job)
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), state)
