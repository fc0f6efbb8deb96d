"""Critics that learn from recorded sequences of their policy, beside imagined rollouts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

from tests.trainers import tiny
from tests.trainers.test_stacked import TASKS, assert_close, make_model, make_stepper, noise, stacked_inputs, starts
from torchrl_pwm import PWMLoss, PWMWorldModel, make_pwm_actor, make_value_ensemble
from torchrl_pwm.data import ReplayMixture, TDMPC2ExperienceReplay
from torchrl_pwm.modules import symlog
from torchrl_pwm.trainers import PWMOptimizationStepper
from torchrl_pwm.trainers.stacked import StackedPWMUpdate

HEADS = {
    "bins": {"num_bins": 101},
    "symlog": {"num_bins": 1},
    "scalar": {"num_bins": 0},
    "normalised": {"num_bins": 0, "normalize_rewards": True},
    "normalised, ends": {"num_bins": 0, "normalize_rewards": True, "termination": True},
}


@pytest.mark.parametrize("space", ["raw", "symlog"])
@pytest.mark.parametrize("head", HEADS)
def test_a_recorded_reward_has_the_units_of_a_predicted_one(head, space):
    model = PWMWorldModel(5, 2, latent_dim=16, units=(16,), **HEADS[head])
    if model.reward_moments is not None:
        model.reward_moments.update(torch.randn(100) * 3 + 7)
    logits = torch.randn(6, 101 if model.num_bins > 1 else 1)
    raw = model.decode_reward(logits, "raw")
    torch.testing.assert_close(
        model.encode_reward(raw, space), model.decode_reward(logits, space), rtol=1e-4, atol=1e-4
    )


def test_a_recorded_rollout_has_latents_rewards_and_ends():
    loss = tiny.make_policy_loss(reward_scale=0.5)
    sequences = tiny.sequences(4, 3)
    sequences["next", "done"] = torch.rand(4, 3, 1) < 0.5
    rollout, model = loss.recorded_rollout(sequences), loss.world_model
    latent = model.encode_observation(sequences["observation"], sequences["task"])
    torch.testing.assert_close(rollout["latent"], latent)
    following = model.encode_observation(sequences["next", "observation"], sequences["task"])
    torch.testing.assert_close(rollout["next", "latent"], following)
    torch.testing.assert_close(rollout["next", "reward"], 0.5 * symlog(sequences["next", "reward"]))
    assert torch.equal(rollout["next", "done"], sequences["next", "done"])
    assert torch.equal(rollout["task"], sequences["task"]) and not rollout.requires_grad


def test_its_targets_end_with_the_episode():
    loss = tiny.make_policy_loss(reward_space="raw")
    loss.make_value_estimator(gamma=0.9, lmbda=1.0)
    sequences = tiny.sequences(4, 3)
    ended = torch.tensor([False, True, False]).view(1, 3, 1).expand(4, 3, 1)
    sequences["next", "done"] = sequences["next", "terminated"] = ended
    reward, target = sequences["next", "reward"], loss.value_target(loss.recorded_rollout(sequences))
    torch.testing.assert_close(target[:, 0], reward[:, 0] + 0.9 * reward[:, 1])
    torch.testing.assert_close(target[:, 1], reward[:, 1])


def promising(**options):
    """A model that promises a reward of 1 at each step, whatever is done, and its policy."""
    torch.manual_seed(0)
    model = PWMWorldModel(4, 1, latent_dim=16, units=(16,), num_bins=0)
    model.reward_logits = lambda latent, action, task=None: 1.0 + 0.0 * action
    critics = make_value_ensemble(16, units=(32,), num_nets=1)
    loss = PWMLoss(make_pwm_actor(16, 1, units=(8,)), critics, model, horizon=4, reward_space="raw")
    loss.make_value_estimator(gamma=0.9, lmbda=0.95)
    return loss, PWMOptimizationStepper(loss, **{"iterations": 150, "critic_lr": 1e-2, **options})


def test_real_steps_without_reward_take_a_promised_value_away():
    # For ever 1 is worth 10. Nothing of it is real.
    values = {}
    for count in (0, 64):
        loss, stepper = promising()
        observation = torch.randn(16, 4)
        recorded = TensorDict({"observation": observation[torch.randint(16, (count, 4))]}, [count, 4])
        recorded["next"] = recorded.clone().set("reward", torch.zeros(count, 4, 1))
        for _ in range(150):
            stepper.update(TensorDict({"observation": observation}, [16]), recorded=recorded if count else None)
        start = loss.start_latents(TensorDict({"observation": observation}, [16]))
        with loss.value_network_params.to_module(loss.value_network):
            values[count] = loss.value_network(start)["state_value"].mean().item()
    assert values[0] == pytest.approx(10.0, abs=1.0) and values[64] < 5.0


@pytest.mark.parametrize("shape", [(4, 2), (1, 8)])
def test_sequences_of_any_length_have_targets_of_their_own(shape):
    loss, _ = promising()
    imagined = loss.critic_rows(loss.imagine(TensorDict({"observation": torch.randn(3, 4)}, [3])))
    recorded = TensorDict({"observation": torch.randn(*shape, 4)}, shape)
    recorded["next"] = recorded.clone().set("reward", torch.rand(*shape, 1))
    rows = loss.with_recorded(imagined, recorded)
    expected = loss.value_target(loss.recorded_rollout(recorded))
    assert rows.shape == (5, 4)
    torch.testing.assert_close(rows["value_target"][3:].flatten(), expected.flatten())


def test_steps_that_fill_no_row_are_refused():
    _, stepper = promising()
    recorded = TensorDict({"observation": torch.randn(3, 5, 4)}, [3, 5])
    recorded["next"] = recorded.clone().set("reward", torch.zeros(3, 5, 1))
    with pytest.raises(ValueError, match=r"multiple of the horizon 4, found \[3, 5\].*sequences of 4 steps"):
        stepper.update(TensorDict({"observation": torch.randn(8, 4)}, [8]), recorded=recorded)


def played(task: int, step: int):
    draws = torch.Generator().manual_seed(31 * task + step)
    size = (5, 3)
    td = TensorDict({"observation": torch.randn(*size, 9, generator=draws), "task": torch.full(size, task)}, size)
    return td.set("next", td.clone().set("reward", torch.rand(*size, 1, generator=draws)))


def test_tasks_trained_together_have_the_numbers_of_each_alone():
    model = make_model()
    singles, stacked = ([make_stepper(model, task) for task in TASKS] for _ in range(2))
    together = StackedPWMUpdate(stacked)
    for step in range(5):
        expected = torch.stack(
            [
                stepper.update(starts(task, step), noise(task, step), played(task, step))
                for stepper, task in zip(singles, TASKS)
            ]
        )
        recorded = torch.stack([played(task, step) for task in TASKS])
        found = together.update(*stacked_inputs(TASKS, step), recorded=recorded)
        assert_close(found["loss_value"], expected["loss_value"])
    together.release()
    for single, other in zip(singles, stacked):
        assert_close(other.loss_module.state_dict(), single.loss_module.state_dict())


def test_no_number_is_read_and_nothing_is_on_another_device():
    actor, critics = make_pwm_actor(16, 6, units=(16,)), make_value_ensemble(16, units=(16,), num_nets=2)
    loss = PWMLoss(*(module.to("meta") for module in (actor, critics, tiny.make_model())), horizon=3)
    stepper = PWMOptimizationStepper(loss, iterations=9, check_interval=99)
    batch = tiny.sequences().to("meta")
    for _ in range(3):
        metrics = stepper.update(batch, recorded=batch[:, :3])
    assert metrics["loss_value"].device.type == "meta"


def trained(folder: Path, root: Path, *, stop: bool = False):
    """A training with recorded sequences, which goes on from its checkpoint."""
    recorded = TDMPC2ExperienceReplay(root, 4, slice_len=3, seed=1)
    torch.manual_seed(17)
    trainer = tiny.make_trainer("policy", tiny.make_buffer("own generator", root), folder, recorded=recorded)
    trainer.resume(required=False)
    if stop:
        tiny.interrupt_at(trainer, "update", 5)
    trainer.train()
    return trainer.loss_module.state_dict()


def test_a_resumed_training_is_that_without_a_break(tmp_path):
    root = tiny.write_store(tmp_path / "store")
    expected = trained(tmp_path / "whole", root)
    with pytest.raises(tiny.Interrupted):
        trained(tmp_path / "broken", root, stop=True)
    tiny.assert_same(trained(tmp_path / "broken", root), expected)


def test_the_newest_episodes_have_their_share_of_a_batch(tmp_path):
    pytest.importorskip("hydra")
    from torchrl_pwm.runs.own_episodes import mix

    data, *own = [tiny.write_store(tmp_path / name, seed=seed) for seed, name in enumerate(("data", "0", "1", "2"))]
    sizes = {}
    for newest in (None, 0.5):
        settings = OmegaConf.create({"share": 0.4, "newest": newest})
        mixed = mix(settings, data, own, batch_size=100, slice_len=4, tasks=["mw-reach"], seed=0)
        assert isinstance(mixed, ReplayMixture)
        sizes[newest] = [replay.batch_size for replay in mixed.replays]
    assert sizes == {None: [61, 13, 13, 13], 0.5: [60, 10, 10, 20]}


def test_critics_learn_from_the_last_round_of_their_own_seed(tmp_path):
    pytest.importorskip("hydra")
    from torchrl_pwm.runs.starts import Before, make_recorded

    for number in range(2):
        for seed in range(2):
            tiny.write_store(tmp_path / str(number) / f"seed-{seed}", seed=10 * number + seed)
    before = Before(own=(tmp_path / "0", tmp_path / "1"), share=0.3, sequences=6)
    recorded = make_recorded("mw-reach", 1, 4, before, "cpu")
    assert recorded is not None and Path(recorded.store.root) == tmp_path / "1" / "seed-1"
    assert recorded.sample().shape == (6, 4)
    assert make_recorded("mw-reach", 1, 4, Before(own=before.own, share=0.3), "cpu") is None
