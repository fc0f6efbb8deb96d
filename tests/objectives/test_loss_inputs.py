"""Unusual inputs of the losses: an error that says what is wrong, or the result that the data mean."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from tests.objectives.test_loss_checklist import (
    ACTION,
    BATCH,
    HORIZON,
    LATENT,
    OBSERVATION,
    TASKS,
    make_model,
    make_pwm,
    sequences,
    starts,
)
from torchrl_pwm import (
    PWMLoss,
    PWMWorldModel,
    PWMWorldModelLoss,
    TDMPC2Loss,
    TDMPC2Model,
    make_pwm_actor,
    make_value_ensemble,
)


@pytest.mark.parametrize("missing", ["action", "observation", ("next", "observation"), ("next", "reward")])
def test_a_missing_entry_of_a_sequence_is_named(missing) -> None:
    with pytest.raises(ValueError, match=r"needs the entry .*found.*set_keys") as error:
        PWMWorldModelLoss(make_model())(sequences().exclude(missing))
    assert repr(missing) in str(error.value)


def test_a_rollout_without_rewards_is_refused() -> None:
    loss = make_pwm()
    rollout = loss.imagine(starts())
    with pytest.raises(ValueError, match=r"\('next', 'reward'\).*found.*action"):
        loss.actor_loss(rollout.exclude(("next", "reward")))


@pytest.mark.parametrize("bins", [None, 11])
def test_rewards_without_last_axis_are_refused_instead_of_broadcast(bins: int | None) -> None:
    model = PWMWorldModel(OBSERVATION, ACTION, latent_dim=LATENT, units=(12,), num_bins=bins)
    td = sequences()
    td["next", "reward"] = td["next", "reward"].squeeze(-1)
    with pytest.raises(ValueError, match=r"\[\*, 1\].*unsqueeze"):
        PWMWorldModelLoss(model)(td)
    loss = make_pwm()
    rollout = loss.imagine(starts())
    rollout["next", "reward"] = rollout["next", "reward"].squeeze(-1)
    with pytest.raises(ValueError, match=r"\[\*, 1\].*unsqueeze"):
        loss.actor_loss(rollout)


@pytest.mark.parametrize(
    "shape", [(HORIZON - 1, BATCH, ACTION), (HORIZON + 1, BATCH, ACTION), (HORIZON, BATCH, 1), (HORIZON, 1, ACTION)]
)
def test_noise_of_another_shape_is_refused_instead_of_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"noise must be \[H, B, A\].*found"):
        make_pwm().imagine(starts(), torch.zeros(shape))


def test_a_deterministic_actor_is_refused_when_the_loss_is_built() -> None:
    actor = TensorDictModule(nn.Linear(LATENT, ACTION), ["latent"], ["action"])
    with pytest.raises(ValueError, match="probabilistic"):
        PWMLoss(actor, make_value_ensemble(LATENT), make_model())


def test_a_terminated_env_is_done_even_without_a_done_entry() -> None:
    loss = make_pwm(normalize_returns=False)
    rollout = loss.imagine(starts())
    endless = loss.actor_loss(rollout)
    rollout["next", "terminated"] = torch.rand(BATCH, HORIZON, 1) < 0.5
    alone = loss.actor_loss(rollout), loss.value_target(rollout)
    rollout["next", "done"] = rollout["next", "terminated"]
    torch.testing.assert_close(alone, (loss.actor_loss(rollout), loss.value_target(rollout)))
    assert alone[0] != endless


def test_a_loaded_gamma_holds_for_the_return_and_the_targets() -> None:
    saved = make_pwm(normalize_returns=False).make_value_estimator("TDLambda", gamma=0.5, lmbda=0.9)
    loaded = make_pwm(normalize_returns=False)
    rollout = loaded.imagine(starts())
    loaded.load_state_dict(saved.state_dict())
    torch.testing.assert_close(loaded.actor_loss(rollout), saved.actor_loss(rollout))
    torch.testing.assert_close(loaded.value_target(rollout), saved.value_target(rollout))


def test_loading_the_same_gamma_keeps_its_digits() -> None:
    loss = make_pwm(normalize_returns=False).make_value_estimator("TD0", gamma=0.99)
    rollout = loss.imagine(starts()).double()
    loss.double()
    before = loss.actor_loss(rollout)
    loss.load_state_dict(loss.state_dict())
    assert torch.equal(loss.actor_loss(rollout), before)


class ScaledModel(PWMWorldModel):
    """A model whose steps depend on the index of the task itself."""

    def __init__(self) -> None:
        super().__init__(OBSERVATION, ACTION, latent_dim=LATENT, units=(12,), num_tasks=TASKS, task_dim=4)

    def next_latent(self, latent: Tensor, action: Tensor, task: Tensor | None = None) -> Tensor:
        return super().next_latent(latent, action, task) * torch.arange(TASKS)[task].unsqueeze(-1)


def test_a_multitask_model_may_override_its_steps() -> None:
    model, td = ScaledModel(), starts(TASKS)
    loss = PWMLoss(make_pwm_actor(LATENT, ACTION), make_value_ensemble(LATENT), model, horizon=HORIZON)
    rollout = loss.imagine(td)
    assert not rollout["next", "latent"][td["task"] == 0].any()
    step = rollout[:, 1]
    expected = model.next_latent(step["latent"], step["action"], step["task"])
    torch.testing.assert_close(step["next", "latent"], expected)
    assert PWMWorldModelLoss(model)(sequences(TASKS))["loss_consistency"].isfinite()


def test_actor_and_critic_may_read_the_task() -> None:
    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.Embedding(TASKS, LATENT)

        def forward(self, latent: Tensor, task: Tensor) -> Tensor:
            return (latent * self.tables(task)).sum(-1, keepdim=True)

    critic = TensorDictModule(Conditioned(), ["latent", "task"], ["state_value"])
    loss = PWMLoss(make_pwm_actor(LATENT, ACTION), critic, make_model(TASKS), horizon=HORIZON)
    losses = loss(starts(TASKS))
    (losses["loss_actor"] + losses["loss_value"]).backward()
    assert critic.module.tables.weight.grad.abs().sum() > 0


def test_metrics_of_a_sequence_leave_out_what_the_losses_leave_out() -> None:
    loss, td = PWMWorldModelLoss(make_model()), sequences()
    td["next", "done"] = torch.zeros(BATCH, HORIZON, 1, dtype=torch.bool)
    td["next", "done"][: BATCH // 2, 1] = True
    clean = loss(td)
    td["next", "reward"][: BATCH // 2, 2:] = 1e6
    td["next", "observation"][: BATCH // 2, 2:] = 1e6
    for key, value in loss(td).items():
        torch.testing.assert_close(value, clean[key])


def test_reset_starts_actor_critics_and_the_trained_world_model_afresh() -> None:
    loss, model = make_pwm(), make_model()
    for module in (loss, model):
        for parameter in module.parameters():
            nn.init.constant_(parameter, 3.0)
    loss.reset_parameters_recursive()
    PWMWorldModelLoss(model).reset_parameters_recursive()
    weights = [p for p in loss.actor_network.parameters() if p.ndim > 1]
    assert weights and all(0 < p.std() < 1 for p in weights)
    assert loss.actor_network.get_submodule("module.0.module").logstd.eq(-1).all()
    gram = loss.value_network.params[0][0] @ loss.value_network.params[0][0].T
    torch.testing.assert_close(gram, 2 * torch.eye(len(gram)), atol=1e-4, rtol=1e-4)
    assert 0.01 < model.dynamics_network[0].weight.std() < 0.03


@pytest.mark.parametrize("name", ["PWMLoss", "PWMWorldModelLoss"])
def test_out_keys_can_be_selected_on_a_subclass_before_its_base_is_ever_built(name: str) -> None:
    program = (
        "from torchrl_pwm import *\n"
        f"class Mine({name}): pass\n"
        "model = PWMWorldModel(5, 2, latent_dim=16, units=(8,))\n"
        "networks = (make_pwm_actor(16, 2), make_value_ensemble(16)) if issubclass(Mine, PWMLoss) else ()\n"
        "loss = Mine(*networks, model)\n"
        "loss.select_out_keys(loss.out_keys[0])\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("options", [{}, {"mask_actions": True}, {"behavior_coef": 1.0}], ids=str)
def test_a_task_beside_the_data_of_a_single_task_model_is_left_alone(options) -> None:
    model = PWMWorldModel(OBSERVATION, ACTION, latent_dim=LATENT, units=(12,), action_dims=[ACTION - 1])
    loss = PWMLoss(make_pwm_actor(LATENT, ACTION), make_value_ensemble(LATENT), model, horizon=3, **options)
    td, found = starts().set("action", torch.zeros(*starts().shape, ACTION)).exclude("task"), []
    for task in (None, torch.full(td.shape, 7), torch.rand(*td.shape, 5)):
        torch.manual_seed(0)
        losses = copy.deepcopy(loss)(td if task is None else td.clone().set("task", task))
        found.append(torch.stack([losses[name] for name in losses.keys() if name.startswith("loss_")]))  # noqa: SIM118
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_ends_without_last_axis_are_refused() -> None:
    sizes = {"latent_dim": LATENT, "units": (12,), "num_bins": 11}
    model = PWMWorldModel(OBSERVATION, ACTION, termination=True, **sizes)
    td = sequences()
    td["next", "terminated"] = torch.zeros(td.shape, dtype=torch.bool)
    for loss in (PWMWorldModelLoss(model), TDMPC2Loss(TDMPC2Model(model))):
        with pytest.raises(ValueError, match=r"needs \('next', 'terminated'\) of shape \[\*, 1\].*unsqueeze"):
            loss(td)


def test_a_single_state_without_batch_is_refused_by_a_model_of_several_heads() -> None:
    model = PWMWorldModel(OBSERVATION, ACTION, latent_dim=LATENT, units=(12,), num_heads=3)
    loss = PWMLoss(make_pwm_actor(LATENT, ACTION), make_value_ensemble(LATENT), model, horizon=3)
    state = starts().exclude("task")[0]
    with pytest.raises(ValueError, match=r"num_heads=3 .* tensordict\.unsqueeze\(0\)"):
        loss(state)
    assert loss(state.unsqueeze(0))["loss_actor"].isfinite()
