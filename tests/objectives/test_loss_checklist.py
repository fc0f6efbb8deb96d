"""TorchRL's requirements of a loss module."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.objectives.utils import ValueEstimators

from tests.modules import tdmpc2
from tests.objectives.quadratic_env import make_shac, make_window
from torchrl_pwm import (
    FirstOrderLoss,
    PWMLoss,
    PWMWorldModel,
    PWMWorldModelLoss,
    TDMPC2Loss,
    make_pwm_actor,
    make_value_ensemble,
)

BATCH, HORIZON, OBSERVATION, ACTION, LATENT, TASKS = 6, 4, 5, 2, 16, 3


def make_model(num_tasks: int = 0, **options) -> PWMWorldModel:
    model = PWMWorldModel(
        OBSERVATION, ACTION, latent_dim=LATENT, encoder_units=(12,), units=(12,), num_bins=11, num_tasks=num_tasks,
        task_dim=4 if num_tasks else 0, **options,
    )  # fmt: skip
    # an untrained reward head is zero, and so would be the gradients through it
    nn.init.normal_(model.reward_network[-1].weight)
    return model


def make_pwm(num_tasks: int = 0, **options) -> PWMLoss:
    actor, value = make_pwm_actor(LATENT, ACTION, units=(12,)), make_value_ensemble(LATENT, units=(12,))
    return PWMLoss(actor, value, make_model(num_tasks), horizon=HORIZON, **options)


def starts(num_tasks: int = 0) -> TensorDict:
    td = TensorDict({"observation": torch.randn(BATCH, OBSERVATION)}, [BATCH])
    return td.set("task", torch.randint(num_tasks, (BATCH,))) if num_tasks else td


def sequences(num_tasks: int = 0) -> TensorDict:
    shape = [BATCH, HORIZON]
    step = TensorDict({"observation": torch.randn(*shape, OBSERVATION), "reward": torch.randn(*shape, 1)}, shape)
    entries = {"observation": torch.randn(*shape, OBSERVATION), "action": torch.rand(*shape, ACTION), "next": step}
    if num_tasks:
        entries["task"] = torch.randint(num_tasks, (BATCH, 1)).expand(shape)
    return TensorDict(entries, shape)


def flagged_sequences(num_tasks: int = 0) -> TensorDict:
    td = sequences(num_tasks)
    td["next", "done"] = torch.zeros(BATCH, HORIZON, 1, dtype=torch.bool)
    td["next", "terminated"] = torch.rand(BATCH, HORIZON, 1) < 0.3
    return td


def make_tdmpc2(num_tasks: int = 0, episodic: bool = False, **options) -> TDMPC2Loss:
    return TDMPC2Loss(tdmpc2.make_model(num_tasks, episodic=episodic), **options)


def rollouts() -> TensorDict:
    """Without the graph that made them, and without dones."""
    return make_pwm().imagine(starts()).detach()


def ending_rollouts() -> TensorDict:
    rollout = rollouts()
    done = torch.rand(BATCH, HORIZON, 1) < 0.4
    rollout["next", "done"], rollout["next", "terminated"] = done, done & (torch.rand(BATCH, HORIZON, 1) < 0.5)
    rollout["next", "reward"].requires_grad_()
    return rollout


def make_first_order(**options) -> FirstOrderLoss:
    actor, value = make_pwm_actor(LATENT, ACTION, units=(12,)), make_value_ensemble(LATENT, units=(12,))
    return FirstOrderLoss(actor, value, **options)


LOSSES = {
    "first_order": (make_first_order, ending_rollouts),
    "shac": (make_shac, make_window),
    "pwm": (make_pwm, starts),
    "pwm_multitask": (lambda **o: make_pwm(TASKS, **o), lambda: starts(TASKS)),
    "world_model": (lambda **o: PWMWorldModelLoss(make_model(), **o), sequences),
    "world_model_multitask": (lambda **o: PWMWorldModelLoss(make_model(TASKS), **o), lambda: sequences(TASKS)),
    "tdmpc2": (make_tdmpc2, flagged_sequences),
    "tdmpc2_multitask": (lambda **o: make_tdmpc2(TASKS, **o), lambda: flagged_sequences(TASKS)),
    "tdmpc2_episodic": (lambda **o: make_tdmpc2(episodic=True, **o), flagged_sequences),
}
NUM_LOSSES = {"tdmpc2": 4, "tdmpc2_multitask": 4, "tdmpc2_episodic": 5}
ALL = pytest.mark.parametrize("name", LOSSES)


@ALL
def test_unknown_key_is_refused(name: str) -> None:
    loss = LOSSES[name][0]()
    with pytest.raises(ValueError, match="nonsense"):
        loss.set_keys(nonsense="x")


@ALL
def test_losses_are_scalars_and_metrics_are_detached(name: str) -> None:
    make, data = LOSSES[name]
    out = make()(data())
    losses = {key: value for key, value in out.items() if key.startswith("loss_")}
    assert len(losses) == NUM_LOSSES.get(name, 2) and set(out.keys()) == set(make().out_keys)
    assert all(value.shape == () and value.requires_grad for value in losses.values())
    assert not any(value.requires_grad for key, value in out.items() if key not in losses)


@ALL
def test_input_is_left_unchanged_even_if_locked(name: str) -> None:
    make, data = LOSSES[name]
    td = data()
    before = td.clone()
    keys = set(td.keys(True, True))
    make()(td.lock_())
    assert set(td.keys(True, True)) == keys and (td == before).all()


@ALL
def test_call_without_tensordict_gives_the_same_losses(name: str) -> None:
    make, data = LOSSES[name]
    loss, td = make(), data()
    torch.manual_seed(1)
    state = {key: value.clone() for key, value in loss.state_dict().items()}
    expected = loss(td)
    loss.load_state_dict(state)
    torch.manual_seed(1)
    named = {"_".join(key) if isinstance(key, tuple) else key: td[key] for key in loss.in_keys}
    result = loss(**named)
    for key, value in zip(loss.out_keys, result):
        torch.testing.assert_close(value, expected[key])


@ALL
def test_select_out_keys(name: str) -> None:
    make, data = LOSSES[name]
    loss = make()
    key = loss.out_keys[0]
    loss.select_out_keys(key)
    assert set(loss(data()).keys()) == {key}


def test_select_out_keys_of_a_rollout_without_flags() -> None:
    loss = make_first_order()
    loss.select_out_keys("loss_actor")
    assert set(loss(rollouts()).keys()) == {"loss_actor"}


@ALL
def test_reductions_agree(name: str) -> None:
    make, data = LOSSES[name]
    td, result = data(), {}
    for reduction in ("none", "mean", "sum"):
        torch.manual_seed(0)
        loss = make(reduction=reduction)
        torch.manual_seed(1)
        result[reduction] = loss(td)
    for key in ("loss_actor", "loss_value", "loss_consistency", "loss_reward", "loss_policy", "loss_termination"):
        if key in result["mean"]:
            every = result["none"][key]
            assert every.ndim >= 1 and every.shape[0] == BATCH
            torch.testing.assert_close(every.mean(), result["mean"][key])
            torch.testing.assert_close(every.sum(), result["sum"][key])


@ALL
def test_bad_reduction_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"reduction.*'median'"):
        LOSSES[name][0](reduction="median")


@ALL
def test_state_dict_round_trip(name: str) -> None:
    make, data = LOSSES[name]
    loss, other, td = make(), make(), data()
    loss(td)  # moves the return scale
    other.load_state_dict(loss.state_dict())
    if not name.startswith("pwm"):
        torch.manual_seed(1)
        expected = loss.eval()(td)
        torch.manual_seed(1)
        result = other.eval()(td)
        for key in loss.out_keys:
            torch.testing.assert_close(result[key], expected[key])
    if name.startswith(("world_model", "tdmpc2")):
        return
    assert "return_moments.var" in loss.state_dict() and not any("world_model" in key for key in loss.state_dict())
    torch.testing.assert_close(other.return_moments.state_dict(), loss.return_moments.state_dict())
    assert loss.return_moments.count > 1
    for result, expected in zip(other.parameters(), loss.parameters()):
        torch.testing.assert_close(result, expected)


def test_reset_parameters_leaves_the_world_model_alone() -> None:
    loss = make_pwm()
    before = {key: value.clone() for key, value in loss.world_model.state_dict().items()}
    own = [p.clone() for p in loss.parameters()]
    loss.reset_parameters_recursive()
    assert any(not torch.equal(p, old) for p, old in zip(loss.parameters(), own))
    for key, value in loss.world_model.state_dict().items():
        assert torch.equal(value, before[key])


def test_the_world_model_is_no_part_of_the_loss() -> None:
    loss = make_pwm()
    own = {id(p) for p in loss.parameters()}
    assert own and not own & {id(p) for p in loss.world_model.parameters()}


def test_nested_keys_are_read() -> None:
    model = make_model(TASKS)
    model.set_keys(observation=("agent", "obs"), action=("agent", "act"), task=("agent", "id"), latent=("agent", "z"))
    data = sequences(TASKS)
    nested = TensorDict({"agent": {"obs": data["observation"], "act": data["action"], "id": data["task"]}}, data.shape)
    nested["next"] = TensorDict(
        {"agent": {"obs": data["next", "observation"], "pay": data["next", "reward"]}}, data.shape
    )
    loss = PWMWorldModelLoss(model)
    plain = loss(data)
    loss.set_keys(observation=("agent", "obs"), action=("agent", "act"), task=("agent", "id"), reward=("agent", "pay"))
    torch.testing.assert_close(loss(nested)["loss_reward"], plain["loss_reward"])

    actor = make_pwm_actor(LATENT, ACTION, units=(12,), in_key=("agent", "z"), out_key=("agent", "act"))
    value = make_value_ensemble(LATENT, units=(12,), in_key=("agent", "z"), out_key=("agent", "v"))
    pwm = PWMLoss(actor, value, model, horizon=HORIZON)
    pwm.set_keys(
        observation=("agent", "obs"), task=("agent", "id"), latent=("agent", "z"), action=("agent", "act"),
        reward=("agent", "pay"), value=("agent", "v"), value_target=("agent", "target"),
    )  # fmt: skip
    rollout = pwm.imagine(nested[:, 0])
    assert ("agent", "z") in rollout.keys(True) and ("next", "agent", "pay") in rollout.keys(True)
    assert pwm(nested[:, 0])["loss_value"].isfinite()


def test_first_order_loss_reads_nested_keys_of_any_name() -> None:
    plain, td = make_first_order(), ending_rollouts()
    expected = plain.eval()(td)
    actor = make_pwm_actor(LATENT, ACTION, units=(12,), in_key=("agent", "z"))
    value = make_value_ensemble(LATENT, units=(12,), in_key=("agent", "z"), out_key=("agent", "v"))
    loss = FirstOrderLoss(actor, value).eval()
    loss.load_state_dict(plain.state_dict())
    loss.set_keys(
        reward=("agent", "pay"), done=("agent", "over"), terminated=("agent", "dead"), value_target=("a", "b")
    )
    names = {"latent": "z", "reward": "pay", "done": "over", "terminated": "dead"}
    nested = TensorDict({"agent": {"z": td["latent"]}, "next": {"agent": {}}}, td.shape)
    for old, new in names.items():
        nested["next", "agent", new] = td["next", old]
    for key, result in loss(nested.lock_()).items():
        torch.testing.assert_close(result, expected[key])
    # the flags were read: without them the return is another
    assert loss(nested.exclude(("next", "agent", "over"), ("next", "agent", "dead")))["loss_actor"] != expected[key]


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("latent", "'latent'"),
        (("next", "latent"), r"\('next', 'latent'\)"),
        (("next", "reward"), r"\('next', 'reward'\)"),
        ("next", r"\('next', 'reward'\)"),
    ],
)
def test_a_missing_entry_of_a_rollout_is_named(missing, named: str) -> None:
    with pytest.raises(ValueError, match=f"FirstOrderLoss needs the entry {named}, found"):
        make_first_order()(rollouts().exclude(missing))


def test_flags_may_be_given_by_name_or_left_out_without_a_tensordict() -> None:
    loss, td = make_first_order().eval(), ending_rollouts()
    entries = {"latent": td["latent"], "next_latent": td["next", "latent"], "next_reward": td["next", "reward"]}
    flags = {"next_done": td["next", "done"], "next_terminated": td["next", "terminated"]}
    assert loss(**entries, **flags)[0] == loss(td)["loss_actor"]
    assert loss(**entries)[0] == loss(td.exclude(("next", "done"), ("next", "terminated")))["loss_actor"]


def test_default_discount_has_all_its_digits() -> None:
    loss = make_first_order(normalize_returns=False).double()
    for parameter in loss.value_network.parameters():
        nn.init.zeros_(parameter)
    td = rollouts().double()
    weight = 0.99 ** torch.arange(HORIZON, dtype=torch.float64)
    expected = -(td["next", "reward"].squeeze(-1) * weight).sum(-1).mean() / HORIZON
    torch.testing.assert_close(loss.actor_loss(td), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", [ValueEstimators.TD0, ValueEstimators.TDLambda, "td_lambda"])
def test_value_estimators_are_chosen_as_in_torchrl(estimator) -> None:
    loss = make_pwm()
    assert loss.make_value_estimator("tdlambda" if estimator == "td_lambda" else estimator, gamma=0.9) is loss
    rollout = loss.imagine(starts())
    one_step = rollout["next", "reward"] + 0.9 * loss.next_value(rollout)
    assert torch.allclose(loss.value_target(rollout), one_step, atol=1e-5) == (estimator == ValueEstimators.TD0)
    assert loss(starts())["loss_value"].isfinite()


def test_unsupported_value_estimator_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="GAE"):
        make_pwm().make_value_estimator(ValueEstimators.GAE)


def test_steps_after_a_done_and_padding_do_not_count() -> None:
    loss = PWMWorldModelLoss(make_model(), rho=1.0)
    td = sequences()
    short = loss(td[:, :2])
    td["next", "done"] = torch.zeros(BATCH, HORIZON, 1, dtype=torch.bool)
    td["next", "done"][:, 1] = True
    torch.testing.assert_close(loss(td)["loss_consistency"], short["loss_consistency"])
    padded = td.exclude(("next", "done"))
    padded["collector", "mask"] = torch.arange(HORIZON).expand(BATCH, HORIZON) < 2
    torch.testing.assert_close(loss(padded)["loss_reward"], short["loss_reward"])


def test_a_flat_batch_of_transitions_is_refused_with_advice() -> None:
    with pytest.raises(ValueError, match=r"\[B, T\].*reshape"):
        PWMWorldModelLoss(make_model())(sequences().reshape(-1))
