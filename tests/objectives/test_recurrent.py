"""Recurrent policies carry their hidden state through imagination and windows; networks that do not fit are named."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Bounded
from torchrl.modules import GRUModule, LSTMModule, ProbabilisticActor, TanhNormal

from tests.objectives.quadratic_env import GOES, TERMINATED, QuadraticEnv
from tests.objectives.test_loss_checklist import ACTION, BATCH, HORIZON, LATENT, make_model, starts
from torchrl_pwm import (
    PWMLoss,
    PWMWorldModel,
    SHACLoss,
    WorldModelPolicy,
    evaluate_policy,
    make_pwm_actor,
    make_value_ensemble,
)
from torchrl_pwm.envs.simulators import AnalyticEnv
from torchrl_pwm.trainers import PWMOptimizationStepper

HIDDEN = 6
KINDS = pytest.mark.parametrize("kind", ["gru", "lstm"])
KEYS = {"gru": ["recurrent_state"], "lstm": ["recurrent_state_h", "recurrent_state_c"]}


def make_actor(kind: str, size: int = LATENT, actions: int = ACTION, in_key: str = "latent") -> ProbabilisticActor:
    keys, module = KEYS[kind], {"gru": GRUModule, "lstm": LSTMModule}[kind]
    memory = module(
        input_size=size,
        hidden_size=HIDDEN,
        in_keys=[in_key, *keys],
        out_keys=["features", *(("next", key) for key in keys)],
    )
    head = TensorDictModule(
        nn.Sequential(nn.Linear(HIDDEN, 2 * actions), NormalParamExtractor()), ["features"], ["loc", "scale"]
    )
    return ProbabilisticActor(
        TensorDictSequential(memory, head),
        in_keys=["loc", "scale"],
        out_keys=["action"],
        spec=Bounded(-1.0, 1.0, (actions,)),
        distribution_class=TanhNormal,
    )


def unrolled(actor: ProbabilisticActor, seen: torch.Tensor, begin: dict | None = None) -> torch.Tensor:
    """The mean actions at states [B, H, *], the hidden state handed on by hand."""
    held, actions = dict(begin or {}), []
    for step in range(seen.shape[1]):
        td = TensorDict({actor.in_keys[0]: seen[:, step], **held}, [len(seen)])
        td = actor.get_dist_params(td.set("is_init", torch.zeros(len(seen), 1, dtype=torch.bool)))
        held = {key: td["next", key] for key in actor.in_keys[1:-1]}
        actions.append(td["loc"].tanh())
    return torch.stack(actions, 1)


@KINDS
def test_imagination_hands_the_hidden_state_on(kind: str) -> None:
    actor, model = make_actor(kind), make_model()
    loss = PWMLoss(actor, make_value_ensemble(LATENT, units=(12,)), model, horizon=HORIZON)
    noise = torch.zeros(HORIZON, BATCH, ACTION)
    rollout = loss.imagine(starts(), noise)
    torch.testing.assert_close(rollout["action"], unrolled(actor, rollout["latent"].detach()))
    begin = {key: torch.randn(BATCH, 1, HIDDEN) for key in KEYS[kind]}
    rollout = loss.imagine(starts().update(begin), noise)
    torch.testing.assert_close(rollout["action"], unrolled(actor, rollout["latent"].detach(), begin))
    # so does the loss as a whole, which TorchRL runs as if the batch were time
    td = starts().update(begin)
    torch.manual_seed(3)
    expected = loss.imagine(td)["next", "reward"].mean()
    torch.manual_seed(3)
    torch.testing.assert_close(loss(td)["reward_mean"], expected)
    # and it is learned: an update moves the memory's weights
    weight = next(actor.module[0].parameters())
    before = weight.clone()
    PWMOptimizationStepper(loss, iterations=10).update(starts())
    assert not torch.equal(weight, before)


@KINDS
def test_the_behaviour_term_reads_the_memory_that_start_states_carry(kind: str) -> None:
    actor = make_actor(kind)
    loss = PWMLoss(actor, make_value_ensemble(LATENT, units=(12,)), make_model(), horizon=1, behavior_coef=1.0)
    begin = {key: torch.randn(BATCH, 1, HIDDEN) for key in KEYS[kind]}
    td = starts().update({"action": torch.zeros(BATCH, ACTION), **begin})
    latent = loss.world_model.encode_observation(td["observation"])
    expected = unrolled(actor, latent.unsqueeze(1), begin).square().mean()
    torch.testing.assert_close(loss(td)["loss_behavior"], expected)


@KINDS
def test_a_window_hands_it_on_to_the_next_and_forgets_it_where_an_episode_ends(kind: str) -> None:
    script = torch.tensor([[GOES] * 4, [GOES, TERMINATED, GOES, GOES]])
    env, actor = QuadraticEnv(script, dtype=torch.float32), make_actor(kind, 1, 1, "observation")
    loss = SHACLoss(actor, make_value_ensemble(1, units=(8,), in_key="observation"), horizon=4)
    first, td = loss.rollout(env, env.reset(), torch.zeros(4, 2, 1))
    expected = unrolled(actor, first["observation"].detach())
    torch.testing.assert_close(first["action"][0], expected[0])
    torch.testing.assert_close(first["action"][1, :2], expected[1, :2])
    afresh = unrolled(actor, first["observation"][1:, 2:].detach())
    torch.testing.assert_close(first["action"][1:, 2:], afresh)
    loss(first)["loss_actor"].backward()
    second, _ = loss.rollout(env, td, torch.zeros(4, 2, 1))
    whole = unrolled(actor, torch.cat([first["observation"], second["observation"]], 1).detach())
    torch.testing.assert_close(second["action"][0], whole[0, 4:])
    loss(second)["loss_actor"].backward()  # the graph of the first window is not needed again


def test_a_recurrent_policy_is_evaluated_with_its_memory() -> None:
    env = AnalyticEnv("cartpole_swingup", 2, episode_length=6)
    actor = make_actor("gru", 5, 1, "observation")
    seen = []
    actor.module[0].register_forward_hook(lambda module, args, out: seen.append(out["next", "recurrent_state"].clone()))
    evaluate_policy(actor, env, episodes=4)
    assert len(seen) == 12 and all(not torch.equal(seen[step], seen[step + 1]) for step in range(5))
    model = PWMWorldModel(5, 1, latent_dim=16, units=(12,))
    assert evaluate_policy(WorldModelPolicy(model, make_actor("lstm", 16, 1)), env, episodes=2).episodes == 2


def test_recurrent_critics_and_lazy_layers_are_named() -> None:
    critic = TensorDictSequential(
        GRUModule(input_size=LATENT, hidden_size=HIDDEN, in_key="latent", out_key="features"),
        TensorDictModule(nn.Linear(HIDDEN, 1), ["features"], ["state_value"]),
    )
    with pytest.raises(ValueError, match=r"value_network reads .* found a recurrent one"):
        PWMLoss(make_pwm_actor(LATENT, ACTION), critic, make_model())
    lazy = TensorDictModule(nn.LazyLinear(1), ["latent"], ["state_value"])
    with pytest.raises(ValueError, match=r"value_network has lazy layers that have not run.*call it once"):
        PWMLoss(make_pwm_actor(LATENT, ACTION), lazy, make_model())
    head = TensorDictModule(
        nn.Sequential(nn.LazyLinear(2 * ACTION), NormalParamExtractor()), ["latent"], ["loc", "scale"]
    )
    actor = ProbabilisticActor(head, in_keys=["loc", "scale"], distribution_class=TanhNormal)
    with pytest.raises(ValueError, match=r"actor_network has lazy layers that have not run.*call it once"):
        SHACLoss(actor, make_value_ensemble(LATENT))
    with pytest.raises(ValueError, match="encoder has lazy layers that have not run"):
        PWMWorldModel((3, 8, 8), 2, latent_dim=16, encoder=nn.Sequential(nn.Flatten(), nn.LazyLinear(16)))
