"""Observations that are no vector: dicts and matrices by TorchRL's transforms, pictures by an encoder of one's own."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.envs import (
    CatTensors,
    Compose,
    ExcludeTransform,
    FlattenObservation,
    GymWrapper,
    StepCounter,
    ToTensorImage,
    TransformedEnv,
)
from torchrl.envs.utils import check_env_specs

from tests.envs.drift_env import DriftEnv
from torchrl_pwm import (
    PWMLoss,
    PWMWorldModel,
    PWMWorldModelLoss,
    WorldModelPolicy,
    WorldModelWrapper,
    evaluate_policy,
    make_pwm_actor,
    make_task_env,
    make_value_ensemble,
)
from torchrl_pwm.envs.rendering import rendering_available

gymnasium = pytest.importorskip("gymnasium")

LATENT = 16


def make_model(observation_dim, **options) -> PWMWorldModel:
    return PWMWorldModel(observation_dim, 2, latent_dim=LATENT, encoder_units=(12,), units=(12,), **options)


class Parts(gymnasium.Env):
    """A dict of a vector, a matrix and whole numbers."""

    observation_space = gymnasium.spaces.Dict(
        joints=gymnasium.spaces.Box(-1, 1, (3,), "float64"),
        markers=gymnasium.spaces.Box(-1, 1, (2, 3), "float32"),
        contacts=gymnasium.spaces.Box(0, 1, (2,), "int64"),
    )
    action_space = gymnasium.spaces.Box(-1, 1, (2,), "float32")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, False, False, {}


def uses(env, model) -> TensorDict:
    """Everything that a user does with an env and a model of it."""
    check_env_specs(env)
    actor = make_pwm_actor(LATENT, 2)
    with torch.no_grad():
        rollout = env.rollout(6, actor)
    model_loss = PWMWorldModelLoss(model)
    loss = PWMLoss(actor, make_value_ensemble(LATENT), model, horizon=2)
    batch = rollout.unsqueeze(0)
    assert model_loss(batch).isfinite().all() and loss(batch[:, 0])["loss_actor"].isfinite()
    assert evaluate_policy(actor, env, episodes=1).lengths.tolist() == [6]
    imagined = env.transform[-1].imagined_env(batch_size=[3])
    assert imagined.rollout(2, actor)["next", "reward"].shape == (3, 2, 1)
    return rollout


def test_dicts_and_matrices_become_one_vector_by_torchrls_transforms() -> None:
    model = make_model(3 + 6 + 2)
    env = TransformedEnv(
        GymWrapper(Parts()),
        Compose(
            FlattenObservation(-2, -1, in_keys=["markers"]),
            CatTensors(["joints", "markers", "contacts"], "observation"),
            StepCounter(6),
            WorldModelWrapper(model),
        ),
    )
    rollout = uses(env, model)
    assert rollout["observation"].shape == (6, 11)


def test_a_matrix_is_named_where_a_vector_is_read() -> None:
    env = GymWrapper(Parts())
    with pytest.raises(ValueError, match=r"shape \[3\], found 'markers' of shape \[2, 3\].*FlattenObservation"):
        TransformedEnv(env, WorldModelWrapper(make_model(3), in_keys=["markers"])).reset()


def test_a_model_for_pictures_needs_an_encoder() -> None:
    with pytest.raises(ValueError, match=r"encoder=, a network from \[n, 3, 8, 8\] to \[n, 16\]"):
        make_model((3, 8, 8))
    model = make_model((3, 8, 8), encoder=nn.Sequential(nn.Flatten(), nn.Linear(192, 5)))
    with pytest.raises(ValueError, match=r"expected \[4, 16\], found \[4, 5\]"):
        model.encode_observation(torch.rand(4, 3, 8, 8))
    with pytest.raises(ValueError, match=r"size \[3, 8, 8\], found observation of shape \(4, 8, 8, 3\).*ToTensorImage"):
        model.encode_observation(torch.rand(4, 8, 8, 3))


@pytest.mark.parametrize("residual", [False, True])
def test_an_encoder_of_ones_own_keeps_its_weights_and_its_output_becomes_a_latent(residual: bool) -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(192, LATENT))
    before = [parameter.clone() for parameter in encoder.parameters()]
    model = make_model((3, 8, 8), encoder=encoder, residual=residual)
    model.reset_parameters()
    assert all(map(torch.equal, encoder.parameters(), before))
    pictures = torch.randint(0, 255, (5, 2, 3, 8, 8), dtype=torch.uint8)
    latent = model.encode_observation(pictures)
    assert latent.shape == (5, 2, LATENT)
    groups = encoder(pictures.flatten(0, 1).float()).reshape(5, 2, -1, 8).softmax(-1).flatten(-2)
    torch.testing.assert_close(latent, groups)
    again = make_model((3, 8, 8), encoder=nn.Sequential(nn.Flatten(), nn.Linear(192, LATENT)), residual=residual)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.encode_observation(pictures), latent)


def test_it_gets_the_embedding_of_the_task_too() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(192 + 4, LATENT)

        def forward(self, pictures, embedding):
            return self.net(torch.cat([pictures.flatten(1), embedding], -1))

    model = make_model((3, 8, 8), encoder=Encoder(), num_tasks=3, task_dim=4)
    pictures, task = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
    latent = model.encode_observation(pictures, task)
    for place, index in enumerate(task.tolist()):
        torch.testing.assert_close(model.encode_observation(pictures[place], index), latent[place])


@pytest.mark.skipif(not rendering_available(), reason="no OpenGL library gives an off-screen context")
def test_a_rendered_task_is_learned_from_its_pictures() -> None:
    pytest.importorskip("dm_control")
    encoder = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Mish(), nn.Flatten(), nn.Linear(4 * 4 * 4, LATENT))
    model = PWMWorldModel((3, 16, 16), 1, latent_dim=LATENT, units=(12,), encoder=encoder)
    base = make_task_env("pendulum-swingup", from_pixels=True, pixel_size=(16, 16))
    seen = Compose(ExcludeTransform("observation"), ToTensorImage(in_keys=["pixels"], out_keys=["observation"]))
    env = TransformedEnv(base, Compose(*seen.transforms, StepCounter(6), WorldModelWrapper(model)))
    actor = make_pwm_actor(LATENT, 1)
    rollout = env.rollout(6, actor)
    assert rollout["observation"].shape == (6, 3, 16, 16) and rollout["observation"].std() > 0
    losses = PWMWorldModelLoss(model)(rollout.unsqueeze(0))
    losses["loss_consistency"].backward()
    assert encoder[0].weight.grad.abs().sum() > 0
    loss = PWMLoss(actor, make_value_ensemble(LATENT), model, horizon=2)
    assert loss(rollout)["loss_actor"].isfinite()
    policy = WorldModelPolicy(model, actor)
    assert evaluate_policy(policy, TransformedEnv(base, Compose(*seen.clone().transforms, StepCounter(3))), episodes=1)


def test_a_wrapper_writes_the_task_of_an_env_that_has_no_entry_for_it() -> None:
    model = make_model(5, num_tasks=3, task_dim=4)
    env = TransformedEnv(DriftEnv([2]), WorldModelWrapper(model, task=2))
    check_env_specs(env)
    rollout = env.rollout(2, make_pwm_actor(LATENT, 2))
    assert (rollout["task"] == 2).all() and (rollout["next", "task"] == 2).all()
    torch.testing.assert_close(rollout["latent"], model.encode_observation(rollout["observation"], 2))
    assert PWMWorldModelLoss(model)(rollout)["loss_reward"].isfinite()
    loss = PWMLoss(make_pwm_actor(LATENT, 2), make_value_ensemble(LATENT), model, horizon=2)
    assert loss(rollout[:, 0])["loss_actor"].isfinite()
    assert (env.transform.imagined_env().rollout(2)["task"] == 2).all()
    policy = WorldModelPolicy(model, make_pwm_actor(LATENT, 2), task=2)
    assert evaluate_policy(policy, DriftEnv([2]), episodes=2).episodes == 2
    with pytest.raises(ValueError, match=r"writes its task .* leave one out"):
        TransformedEnv(DriftEnv([2], num_tasks=3), WorldModelWrapper(model, task=2)).fake_tensordict()


@pytest.mark.parametrize("task", [3, -1, torch.tensor([0, 3])])
def test_an_imagined_env_names_a_task_that_is_none_of_the_models(task) -> None:
    model = make_model(5, num_tasks=3, task_dim=4)
    with pytest.raises(ValueError, match=r"from 0 to 2 .* found"):
        env = WorldModelWrapper(model).imagined_env(batch_size=[2], task=task)
        env.reset(TensorDict({"observation": torch.zeros(2, 5)}, [2]))


def test_the_online_run_takes_an_env_of_pictures_and_an_encoder() -> None:
    pytest.importorskip("hydra")
    from tests.envs.pictures import make_picture_env
    from torchrl_pwm.runs.cli import compose_config
    from torchrl_pwm.runs.pwm_online import make_losses

    config = compose_config(
        "pwm_online", ["+model.encoder._target_=tests.envs.pictures.make_encoder", "model.latent_dim=16"]
    )
    env = make_picture_env(num_envs=2)
    model, loss, model_loss = make_losses(config, env, "cpu")
    rollout = env.rollout(3)
    assert model.observation_shape == (1, 8, 8)
    assert model_loss(rollout)["loss_consistency"].isfinite() and loss(rollout[:, 0])["loss_actor"].isfinite()
