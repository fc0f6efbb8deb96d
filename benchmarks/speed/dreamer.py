"""TorchRL's own DreamerV3 update at the sizes of the speed suite: as many states, as long a horizon, as wide layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict
from tensordict.nn import (
    NormalParamExtractor,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
)
from torch import nn
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.model_based import DreamerEnv
from torchrl.modules import MLP, RSSMPosteriorV3, RSSMPriorV3, RSSMRolloutV3, TanhNormal, WorldModelWrapper
from torchrl.objectives import DreamerV3ActorLoss, DreamerV3Loss, DreamerV3ModelLoss, DreamerV3ValueLoss, SoftUpdate
from torchrl.trainers.algorithms import DreamerV3OptimizationStepper, DreamerV3Optimizer

from benchmarks.speed.sizes import Size

CLASSES = 8  # of each categorical of the state, as SimNorm's groups


def dreamer_update(size: Size, device: torch.device) -> Callable[[], object]:
    """One update a call: world model, actor and critic from ``start_states`` recorded states in sequences of H."""
    latent, (width, *_), actions = size.networks["latent_dim"], size.networks["units"], size.action_dim
    groups = latent // CLASSES
    features = 2 * latent  # state and belief

    def head(outputs: int) -> MLP:
        return MLP(in_features=features, out_features=outputs, num_cells=width, depth=2, activation_class=nn.SiLU)

    dims = {"hidden_dim": width, "rnn_hidden_dim": latent, "num_categoricals": groups, "num_classes": CLASSES}
    prior = RSSMPriorV3(action_shape=(actions,), action_dim=actions, **dims)
    posterior = RSSMPosteriorV3(obs_embed_dim=width, **dims)
    reward = head(1)
    world_model = TensorDictSequential(
        TensorDictModule(nn.Linear(size.observation_dim, width), [("next", "observation")], [("next", "encoded")]),
        RSSMRolloutV3(
            TensorDictModule(
                prior, ["state", "belief", "action"], [("next", "prior_logits"), ("next", "state"), ("next", "belief")]
            ),
            TensorDictModule(
                posterior,
                [("next", "belief"), ("next", "encoded")],
                [("next", "posterior_logits"), ("next", "state")],
            ),
            reset_key="is_init",
        ),
        TensorDictModule(
            head(size.observation_dim), [("next", "state"), ("next", "belief")], [("next", "reco_pixels")]
        ),
        TensorDictModule(reward, [("next", "state"), ("next", "belief")], [("next", "reward")]),
    )
    env = DreamerEnv(
        WorldModelWrapper(
            TensorDictModule(prior, ["state", "belief", "action"], ["_", "state", "belief"]),
            TensorDictModule(reward, ["state", "belief"], ["reward"]),
        ),
        prior_shape=(latent,),
        belief_shape=(latent,),
    )
    env.observation_spec = Composite(state=Unbounded(latent), belief=Unbounded(latent))
    env.state_spec = env.observation_spec.clone()
    env.action_spec, env.reward_spec = Bounded(-1, 1, (actions,)), Unbounded((1,))
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(head(2 * actions), ["state", "belief"], ["params"]),
        TensorDictModule(NormalParamExtractor(), ["params"], ["loc", "scale"]),
        ProbabilisticTensorDictModule(
            ["loc", "scale"], ["action"], distribution_class=TanhNormal, return_log_prob=True
        ),
    )
    value = TensorDictModule(head(1), ["state", "belief"], ["state_value"])
    model_loss = DreamerV3ModelLoss(world_model, reward_two_hot=False, detach_output=False)
    model_loss.set_keys(pixels="observation")
    actor_loss = DreamerV3ActorLoss(actor, value, env, imagination_horizon=size.horizon)
    value_loss = DreamerV3ValueLoss(value, actor_loss=actor_loss, slow_critic_regularization=1.0)
    loss = DreamerV3Loss(model_loss, actor_loss, value_loss).to(device)
    optimizer = DreamerV3Optimizer(loss.parameters(), warmup_steps=0)
    stepper = DreamerV3OptimizationStepper(
        loss, optimizer, SoftUpdate(value_loss, tau=0.02), compile_train_step=False, cudagraph=False
    )
    steps = size.horizon
    shape = (max(size.start_states // steps, 1), steps)
    flag = torch.zeros(*shape, 1, dtype=torch.bool)
    following = {
        "observation": torch.randn(*shape, size.observation_dim),
        "reward": torch.randn(*shape, 1),
        "done": flag,
        "terminated": flag,
    }
    sample = TensorDict(
        {
            "state": torch.zeros(*shape, latent),
            "belief": torch.zeros(*shape, latent),
            "action": torch.zeros(*shape, actions),
            "is_init": flag,
            "next": following,
        },
        shape,
    ).to(device)
    return lambda: stepper.step(None, sample.clone())
