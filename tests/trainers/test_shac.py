"""Training through a simulator: updates, numbers that are not finite, interruptions."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs import Compose, RewardSum, TransformedEnv
from torchrl.record.loggers import CSVLogger

from tests.objectives.quadratic_env import QuadraticEnv, make_shac
from tests.trainers import tiny
from torchrl_pwm import SHACTrainer, evaluate_policy
from torchrl_pwm.envs.simulators import AnalyticEnv
from torchrl_pwm.trainers import SHACOptimizationStepper, load_checkpoint

ROWS, ITERATIONS = 4, 7
SCRIPT = torch.randint(0, 3, (ROWS, 9), generator=torch.Generator().manual_seed(8))
UNENDING = torch.zeros(ROWS, 1, dtype=torch.int64)


def make_env(kind=QuadraticEnv, script=SCRIPT, **options):
    return kind(script, size=2, dtype=torch.float32, **options)


def make_stepper(loss=None, **options):
    torch.manual_seed(1)
    loss = make_shac() if loss is None else loss
    return SHACOptimizationStepper(loss, **{"iterations": ITERATIONS, "critic_iterations": 2, **options})


def make_trainer(env=None, folder=None, *, loss_options=None, stepper_options=None, **options):
    options = {"iterations": ITERATIONS, "log_interval": 1, "save_interval": 2, "progress_bar": False, **options}
    if folder is not None:
        options |= {"logger": CSVLogger("log", log_dir=str(folder)), "save_folder": folder / "checkpoint"}
    torch.manual_seed(3)
    stepper = make_stepper(make_shac(**loss_options or {}), **stepper_options or {})
    return SHACTrainer(stepper.loss_module, make_env() if env is None else env, optimization_stepper=stepper, **options)


def snapshot(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def roll(stepper, env):
    return stepper.loss_module.rollout(env, env.reset())[0]


class BrokenEnv(QuadraticEnv):
    """Row 2 has an infinite observation after the given step."""

    broken_at = 2

    def _step(self, tensordict):
        out = super()._step(tensordict)
        if self.clock == self.broken_at + 1:
            self.state = self.state + torch.zeros_like(self.state).index_fill(0, torch.tensor([2]), torch.inf)
            out["observation"] = self.state
        return out


class ExplodingEnv(QuadraticEnv):
    """All numbers are finite, but in row 1 the gradient through step 1 is not: sqrt has an infinite slope at 0."""

    def _step(self, tensordict):
        out = super()._step(tensordict)
        if self.clock == 2:
            zero = self.state[1] - self.state[1].detach()
            row = torch.zeros_like(self.state).index_fill(0, torch.tensor([1]), 1.0)
            out["observation"] = self.state = self.state + row * zero.square().sqrt()
        return out


def test_published_settings_are_the_defaults():
    stepper = SHACOptimizationStepper(make_shac())
    actor, critic = stepper.actor_optimizer.param_groups[0], stepper.critic_optimizer.param_groups[0]
    assert (actor["lr"], critic["lr"], actor["betas"], critic["betas"]) == (2e-3, 5e-4, (0.7, 0.95), (0.7, 0.95))
    assert (stepper.actor_clip, stepper.critic_clip) == (1.0, 100.0)
    assert (stepper.critic_iterations, stepper.critic_batches) == (16, 4)
    assert SHACTrainer(make_shac(), make_env(), progress_bar=False).iterations == 2000


def test_an_update_moves_actor_critics_and_moments_and_keeps_count():
    stepper = make_stepper()
    loss = stepper.loss_module
    before = snapshot(loss)
    metrics = stepper.update(roll(stepper, make_env()))
    after = loss.state_dict()
    for part in ("actor_network_params", "value_network_params", "normalizer", "return_moments"):
        assert any(not torch.equal(after[key], before[key]) for key in before if key.startswith(part)), part
    expected = {"loss_actor", "loss_value", "actor_grad_norm", "critic_grad_norm", "actor_lr", "skipped"}
    assert expected <= set(metrics.keys()) and not any(value.requires_grad for value in metrics.values())
    assert loss.normalizer.moments.count == pytest.approx(ROWS * 4, rel=1e-4)


def test_the_delayed_value_network_moves_once_an_update_by_its_share():
    stepper = make_stepper(make_shac(delay_value=True), target_tau=0.25)
    loss = stepper.loss_module
    with torch.no_grad():
        for param in loss.value_network_params.parameters():
            param.add_(0.1)
    before = [param.clone() for param in loss.target_value_network_params.values(True, True)]
    stepper.update(roll(stepper, make_env()))
    values = loss.value_network_params.values(True, True)
    for target, old, value in zip(loss.target_value_network_params.values(True, True), before, values):
        torch.testing.assert_close(target, 0.25 * value.detach() + 0.75 * old)


def test_the_return_improves():
    script = torch.tensor([[0] * 9 + [2]]).expand(16, 10)
    trainer = make_trainer(make_env(script=script), iterations=60, stepper_options={"iterations": 60})
    env = make_env(script=script, requires_grad=False)
    policy = trainer.loss_module.policy
    before = evaluate_policy(policy, env, episodes=16).return_mean
    trainer.train()
    after = evaluate_policy(policy, env, episodes=16).return_mean
    assert after > 0.7 * before  # returns are negative


@pytest.mark.parametrize("tau", [0.0, 1.5])
def test_a_share_outside_its_range_is_refused(tau):
    with pytest.raises(ValueError, match="target_tau"):
        make_stepper(target_tau=tau)


def test_a_state_that_is_not_finite_stops_before_any_change_and_is_named():
    stepper = make_stepper()
    before = snapshot(stepper.loss_module)
    with pytest.raises(FloatingPointError, match=r"Update 1 of the actor.*step 2 on, in env 2.*No parameter was"):
        stepper.update(roll(stepper, make_env(BrokenEnv)))
    tiny.assert_same(snapshot(stepper.loss_module), before)


def test_a_gradient_that_is_not_finite_stops_and_names_step_and_env():
    stepper = make_stepper()
    window = roll(stepper, make_env(ExplodingEnv))
    assert all(value.isfinite().all() for value in window.values(True, True))
    with pytest.raises(FloatingPointError, match=r"action of step 1, in env 1: shorten the horizon"):
        stepper.update(window)


def test_networks_that_diverged_are_told_apart():
    stepper = make_stepper()
    window = roll(stepper, make_env())
    stepper.loss_module.actor_loss = lambda rollout: next(iter(stepper.actor_params)).sum() * float("inf")
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        stepper.update(window)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_skipping_is_counted_and_changes_nothing():
    stepper = make_stepper(skip_non_finite=True)
    before = snapshot(stepper.loss_module)
    metrics = stepper.update(roll(stepper, make_env(ExplodingEnv)))
    assert metrics["skipped"] == stepper.skipped == 1
    tiny.assert_same(snapshot(stepper.loss_module), before)
    assert stepper.update(roll(stepper, make_env()))["skipped"] == 1


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_with_skipping_envs_that_the_simulator_lost_are_reset_and_counted():
    trainer = make_trainer(make_env(BrokenEnv, UNENDING), stepper_options={"skip_non_finite": True})
    trainer.train()
    windows = trainer.windows
    assert (windows.restarted, trainer.optimization_stepper.skipped) == (1, 1)
    assert windows.td["observation"].isfinite().all()


def test_without_skipping_a_run_stops():
    with pytest.raises(FloatingPointError, match="Update 1 of the actor"):
        make_trainer(make_env(BrokenEnv)).train()


def make_simulator():
    return AnalyticEnv("synthetic", ROWS, observation_size=2, action_size=2, episode_length=5, requires_grad=True)


KINDS = {
    "plain": ({}, {}, lambda: make_env()),
    "delayed": ({"delay_value": True}, {}, lambda: make_env()),
    "transformed": ({}, {}, lambda: TransformedEnv(make_env(), Compose(RewardSum()))),
    "simulator": ({}, {}, lambda: make_simulator()),
    "transformed simulator": ({}, {}, lambda: TransformedEnv(make_simulator(), RewardSum())),
}


def run(kind, folder, place=None, count=0):
    loss_options, stepper_options, env = KINDS[kind]
    trainer = make_trainer(
        env(), folder, loss_options=loss_options, stepper_options=stepper_options, evaluate=tiny.draw, eval_interval=2
    )
    trainer.resume(required=False)
    if place is not None:
        interrupt_at(trainer, place, count)
    trainer.train()
    return trainer


def interrupt_at(trainer, place, count):
    owner, name = {
        "window": (trainer.loss_module, "rollout"),
        "update": (trainer.optimization_stepper, "critic_pass"),
        "evaluate": (trainer, "evaluate"),
    }[place]
    original, visits = getattr(owner, name), 0

    def visit(*args, **kwargs):
        nonlocal visits
        visits += 1
        if visits == count:
            raise tiny.Interrupted
        return original(*args, **kwargs)

    setattr(owner, name, visit)


@pytest.mark.parametrize(("place", "count"), [("window", 2), ("window", 6), ("update", 4), ("evaluate", 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_interrupted_anywhere_ends_with_the_same_numbers(kind, place, count, tmp_path):
    whole = run(kind, tmp_path / "whole")
    with pytest.raises(tiny.Interrupted):
        run(kind, tmp_path / "parts", place, count)
    resumed = run(kind, tmp_path / "parts")
    tiny.assert_same(resumed.state_dict(), whole.state_dict())
    assert tiny.metrics_of(tmp_path / "parts") == tiny.metrics_of(tmp_path / "whole") != {}


def test_the_checkpoint_holds_the_simulator_and_is_plain(tmp_path):
    run("plain", tmp_path)
    saved = load_checkpoint(tmp_path / "checkpoint")["simulator_windows"]
    assert set(saved["simulator"]) == {"state", "clock", "generator"} and "observation" in saved["carrier"]


def test_two_runs_of_one_seed_are_alike_and_of_another_are_not():
    trainers = []
    for seed in (1, 1, 2):
        trainer = make_trainer()
        torch.manual_seed(seed)
        trainer.train()
        trainers.append(snapshot(trainer.loss_module))
    tiny.assert_same(trainers[0], trainers[1])
    with pytest.raises(AssertionError):
        tiny.assert_same(trainers[0], trainers[2])
