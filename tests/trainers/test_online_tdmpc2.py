"""TD-MPC2 from an env's own steps: what is collected, learned and refused, and runs that go on as they were."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.collectors import Collector, MultiSyncCollector
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase, InitTracker, SerialEnv, TransformedEnv
from torchrl.record.loggers import CSVLogger

from tests.trainers.tiny import Interrupted, assert_same, metrics_of
from torchrl_pwm import OnlineTDMPC2Trainer, PWMWorldModel, TDMPC2Loss, TDMPC2Model, TDMPC2Planner
from torchrl_pwm.data import make_online_replay
from torchrl_pwm.envs import make_task_envs
from torchrl_pwm.envs.simulators import AnalyticEnv, Simulator, SimulatorEnv, SimulatorStep
from torchrl_pwm.evaluation import evaluate_policy
from torchrl_pwm.trainers import (
    OnlineTDMPC2OptimizationStepper,
    TDMPC2OptimizationStepper,
    has_checkpoint,
    load_checkpoint,
)

ITERATIONS = 12


class Walk(EnvBase):
    """A random walk that the action pushes; its draws cannot be saved, only seeded."""

    def __init__(self, length: int = 6) -> None:
        super().__init__(batch_size=[])
        self.observation_spec = Composite(observation=Unbounded((2,)))
        self.action_spec = Bounded(-1, 1, (1,))
        self.reward_spec = Unbounded((1,))
        self.done_spec = Composite({key: Binary(1, dtype=torch.bool) for key in ("done", "terminated", "truncated")})
        self.length, self.time, self.place = length, 0, torch.zeros(2)
        self.generator = torch.Generator()
        self.generator.seed()

    def _set_seed(self, seed: int | None) -> None:
        self.generator.manual_seed(seed)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        self.time, self.place = 0, torch.randn(2, generator=self.generator)
        return self._pack()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.time += 1
        self.place = self.place + 0.3 * tensordict["action"] + 0.1 * torch.randn(2, generator=self.generator)
        return self._pack().set("reward", -self.place.square().sum(-1, keepdim=True))

    def _pack(self) -> TensorDictBase:
        over = torch.tensor([self.time >= self.length])
        flags = {"done": over, "terminated": torch.zeros_like(over), "truncated": over}
        return TensorDict({"observation": self.place.clone(), **flags})


def make_env(kind: str) -> EnvBase:
    if kind == "simulator":
        # Seven steps an episode and five a batch: a checkpoint is taken in the middle of episodes.
        env: EnvBase = AnalyticEnv("cartpole_swingup", 4, episode_length=7)
    elif kind == "task":
        env = make_task_envs("cartpole-swingup")
    else:
        # In an env of episodes that end apart.
        env = SerialEnv(2, [lambda length=length: Walk(length) for length in (6, 7)])
    return TransformedEnv(env, InitTracker())


STEPS = {"simulator": 5, "walk": 4, "task": 75}


def make_planner(model: TDMPC2Model, **options: Any) -> TDMPC2Planner:
    sizes = {"num_samples": 8, "num_policy_rollouts": 2, "num_elites": 4, "iterations": 2, "horizon": 2}
    return TDMPC2Planner(model, **{**sizes, **options})


def make_trainer(kind: str, folder: Path | None = None, **options: Any) -> OnlineTDMPC2Trainer:
    """A trainer whose networks depend on nothing but ``kind``; with a folder it logs and saves there."""
    if folder is not None:
        options.setdefault("logger", CSVLogger("log", log_dir=str(folder)))
        options.setdefault("save_folder", folder / "checkpoint")
    torch.manual_seed(3)
    env = make_env(kind)
    sizes = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    world_model = PWMWorldModel(*sizes, latent_dim=16, encoder_units=(12,), units=(12, 12), num_bins=11)
    loss = TDMPC2Loss(TDMPC2Model(world_model))
    steps = STEPS[kind] * env.batch_size.numel()
    collector = Collector(
        env,
        make_planner(loss.model, plan=kind != "task"),
        frames_per_batch=steps,
        total_frames=-1,
        init_random_frames=2 * steps,
        auto_register_policy_transforms=False,
    )
    replay = make_online_replay(4 * steps if kind == "task" else 200, slice_len=3, batch_size=6)
    stepper = OnlineTDMPC2OptimizationStepper(loss, replay, iterations=ITERATIONS, updates=2)
    settings = {"iterations": ITERATIONS, "warmup_steps": 2 * steps, "warmup_updates": 3, "log_interval": 1}
    settings |= {"save_interval": 2, "episode_seed": 5, "progress_bar": False, "eval_interval": 4}
    return OnlineTDMPC2Trainer(loss, collector, replay, optimization_stepper=stepper, **{**settings, **options})


def run(kind: str, folder: Path, stop: int | None = None, **options: Any) -> OnlineTDMPC2Trainer:
    """Trains, from the folder's checkpoint if there is one; stops in the ``stop``-th iteration."""
    trainer = make_trainer(kind, folder, **options)
    evaluated, env = make_planner(trainer.loss_module.model), make_env(kind)
    trainer.evaluate = lambda: {"real_return": evaluate_policy(evaluated, env, episodes=2, seed=8).return_mean}
    if kind == "task":
        trainer.evaluate = None
    trainer.resume(required=False)
    if stop is not None:
        log, visits = trainer.log_steps, []

        def visit(*arguments: Any) -> None:
            visits.append(1)
            if len(visits) == stop:
                raise Interrupted
            log(*arguments)

        trainer.log_steps = visit  # type: ignore[method-assign]
    trainer.train()
    return trainer


def test_steps_are_counted_and_kept_and_every_part_learns() -> None:
    trainer = make_trainer("simulator")
    before = {key: value.clone() for key, value in trainer.loss_module.state_dict().items()}
    trainer.train()
    assert trainer.env_steps == (2 + ITERATIONS) * 20
    kept = trainer.collection.replay_buffer[:]
    nexts = (("next", key) for key in ("observation", "reward", "done", "terminated"))
    assert set(kept.keys(True, True)) == {"observation", "action", *nexts} and kept.shape[0] == 4
    after = trainer.loss_module.state_dict()
    names = [f"model.{name}" for name, _ in trainer.loss_module.model.named_parameters()]
    assert all(not torch.equal(before[name], after[name]) for name in names)
    assert trainer.optimization_stepper.stepper.schedulers[0].last_epoch == 3 + 2 * ITERATIONS


@pytest.mark.parametrize("stop", [1, 2, 4, 7, 12])
@pytest.mark.parametrize("kind", ["simulator", "walk"])
def test_a_run_stopped_half_way_goes_on_with_the_same_numbers(kind: str, stop: int, tmp_path: Path) -> None:
    whole = run(kind, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(kind, tmp_path / "parts", stop)
    assert has_checkpoint(tmp_path / "parts" / "checkpoint") == (stop > 2)
    parts = run(kind, tmp_path / "parts")
    assert_same(parts.loss_module.state_dict(), whole.loss_module.state_dict())
    assert_same(parts.collection.replay_buffer[:].to_dict(), whole.collection.replay_buffer[:].to_dict())
    found = metrics_of(tmp_path / "parts")
    assert found == metrics_of(tmp_path / "whole") and "real_return.csv" in found and "env_steps.csv" in found


@pytest.mark.skipif(importlib.util.find_spec("dm_control") is None, reason="dm_control is not installed")
def test_a_run_on_a_dm_control_task_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    options = {"iterations": 8, "warmup_steps": 150}
    whole = run("task", tmp_path / "whole", **options)
    with pytest.raises(Interrupted):
        run("task", tmp_path / "parts", 4, **options)
    parts = make_trainer("task", tmp_path / "parts", **options)
    parts.resume()
    # In the 300th of the 500 steps of an episode.
    assert (parts.iteration, parts.env_steps) == (2, 300)
    parts = run("task", tmp_path / "parts", **options)
    assert_same(parts.loss_module.state_dict(), whole.loss_module.state_dict())
    assert metrics_of(tmp_path / "parts") == metrics_of(tmp_path / "whole") != {}


def test_a_checkpoint_without_an_episode_seed_goes_on_with_one_in_new_episodes(tmp_path: Path, monkeypatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr("torchrl_pwm.data.collect.online.torchrl_logger.warning", warned.append)
    run("simulator", tmp_path, iterations=2, episode_seed=None)
    run("simulator", tmp_path)
    assert len(warned) == 1 and "begins new episodes" in warned[0]
    assert load_checkpoint(tmp_path / "checkpoint")["collected_steps"]["env"] is not None


def test_collectors_and_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="updates must be at least 1"):
        OnlineTDMPC2OptimizationStepper(make_trainer("walk").loss_module, make_online_replay(100), updates=0)
    loss = make_trainer("simulator").loss_module
    collector = MultiSyncCollector(
        [lambda: make_env("simulator")], make_planner(loss.model), frames_per_batch=20, cat_results=0
    )
    try:
        with pytest.raises(ValueError, match="needs a Collector in this process, found MultiSyncCollector"):
            OnlineTDMPC2Trainer(loss, collector, make_online_replay(100), iterations=1, episode_seed=0)
    finally:
        collector.shutdown()


class Hold(Simulator):
    """A point in the plane that the actions push, rewarded for being near the origin: at most 40 an episode."""

    observation_size, action_size, episode_length = 4, 2, 40

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        self.state = torch.zeros(num_envs, 4)

    def reset(self, rows: torch.Tensor) -> torch.Tensor:
        self.state = torch.where(rows[:, None], self.uniform(4), self.state)
        return self.state

    def step(self, actions: torch.Tensor) -> SimulatorStep:
        position, velocity = self.state.split(2, -1)
        velocity = velocity + 0.1 * actions
        position = position + 0.1 * velocity
        self.state = torch.cat([position, velocity], -1)
        return SimulatorStep(self.state, 1 - position.square().sum(-1), torch.zeros(len(position), dtype=torch.bool))


@pytest.mark.slow
def test_planning_learns_to_hold_a_point() -> None:
    """From -138 to about 31 in 100 iterations; 25 seconds on one core."""
    torch.manual_seed(0)
    env, test_env = (TransformedEnv(SimulatorEnv(Hold(rows)), InitTracker()) for rows in (16, 32))
    world_model = PWMWorldModel(4, 2, latent_dim=32, encoder_units=(64,), units=(64, 64), num_bins=41, vmin=-6, vmax=6)
    model = TDMPC2Model(world_model, episode_lengths=100)
    loss = TDMPC2Loss(model)
    acting, evaluated = (
        TDMPC2Planner(model, num_samples=32, num_policy_rollouts=8, num_elites=8, iterations=2) for _ in range(2)
    )
    replay = make_online_replay(50_000, slice_len=3, batch_size=64)
    stepper = OnlineTDMPC2OptimizationStepper(
        loss, replay, updates=4, stepper=TDMPC2OptimizationStepper(loss, lr=1e-3, encoder_lr_scale=1.0)
    )
    collector = Collector(env, acting, frames_per_batch=128, total_frames=-1, init_random_frames=1280)
    before = evaluate_policy(evaluated, test_env, episodes=32, seed=1).return_mean
    OnlineTDMPC2Trainer(
        loss,
        collector,
        replay,
        iterations=100,
        warmup_steps=1280,
        warmup_updates=50,
        optimization_stepper=stepper,
        progress_bar=False,
    ).train()
    assert before < 0 < 20 < evaluate_policy(evaluated, test_env, episodes=32, seed=1).return_mean
