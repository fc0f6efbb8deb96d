"""A new task for a world model of several, and tasks that are none of a model's."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_pwm import (
    PWMLoss,
    PWMWorldModel,
    PWMWorldModelLoss,
    TDMPC2Loss,
    TDMPC2Model,
    WorldModelWrapper,
    make_pwm_actor,
    make_value_ensemble,
)
from torchrl_pwm.envs import MT80

OBSERVATION, ACTION = 39, 6


def make_model(**options) -> PWMWorldModel:
    options = {"action_dims": [2, 6, 4], "num_tasks": 3, **options}
    model = PWMWorldModel(
        OBSERVATION, ACTION, latent_dim=16, encoder_units=(12,), units=(12,), num_bins=11, task_dim=4, **options
    )
    torch.nn.init.normal_(model.reward_network[-1].weight)
    return model


def outputs(model: PWMWorldModel, task: int) -> tuple[torch.Tensor, ...]:
    draws = torch.Generator().manual_seed(0)
    observation, action = torch.randn(8, OBSERVATION, generator=draws), torch.rand(8, ACTION, generator=draws)
    latent = model.encode_observation(observation, task)
    return latent, model.next_latent(latent, action, task), model.reward_logits(latent, action, task)


@pytest.mark.parametrize("standardised", [False, True])
def test_the_other_tasks_stay_as_they_are_bit_for_bit(standardised: bool) -> None:
    model, statistics = make_model(), {}
    if standardised:
        model.set_observation_statistics(torch.randn(3, OBSERVATION), torch.rand(3, OBSERVATION))
        statistics = {"observation_mean": torch.full((24,), 2.0), "observation_std": torch.full((24,), 3.0)}
    before, state = [outputs(model, task) for task in range(3)], {k: v.clone() for k, v in model.state_dict().items()}
    assert model.add_task(MT80["walker-run"], **statistics) == 3
    for task in range(3):
        assert all(map(torch.equal, outputs(model, task), before[task]))
    for name, value in state.items():
        assert torch.equal(model.state_dict()[name][: len(value)], value), name
    assert model.action_masks.sum(1).tolist() == [2, 6, 4, 6]
    assert all(value.isfinite().all() for value in outputs(model, 3))
    if standardised:
        assert torch.equal(model.standardize_observation(torch.full((1, OBSERVATION), 8.0), 3)[0, :25],
                           torch.tensor([2.0] * 24 + [8.0]))  # fmt: skip


def test_it_begins_like_a_task_that_is_named() -> None:
    model = make_model()
    model.add_task(like=1)
    assert all(map(torch.equal, outputs(model, 1), outputs(model, 3)))


def test_a_model_without_statistics_takes_those_of_the_new_task_alone() -> None:
    model = make_model()
    before = outputs(model, 2)
    model.add_task(observation_mean=torch.ones(OBSERVATION), observation_std=torch.ones(OBSERVATION) * 2)
    assert all(map(torch.equal, outputs(model, 2), before))
    assert torch.equal(model.standardize_observation(torch.ones(OBSERVATION) * 5, 3), torch.ones(OBSERVATION) * 2)


def test_a_published_checkpoint_is_fine_tuned_on_a_new_task() -> None:
    model = PWMWorldModel.from_tdmpc2(make_model().state_dict(), action_dims=[2, 6, 4])
    task = model.add_task(MT80["walker-run"], like=0)
    draws = torch.Generator().manual_seed(1)
    observation = torch.randn(32, 5, OBSERVATION, generator=draws)
    following = TensorDict({"observation": observation[:, 1:], "reward": torch.ones(32, 4, 1)}, [32, 4])
    batch = TensorDict({"observation": observation[:, :-1], "action": torch.rand(32, 4, ACTION), "next": following})
    batch.batch_size = [32, 4]
    batch["task"] = torch.full((32, 4), task)
    others = [outputs(model, other)[0] for other in range(3)]
    loss, embedding = PWMWorldModelLoss(model, reward_coef=1.0), model.state_dict()["_task_emb.weight"].clone()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    first = loss(batch)["reward_error"]
    for _ in range(30):
        optimizer.zero_grad()
        loss(batch)["loss_reward"].backward()
        optimizer.step()
    assert loss(batch)["reward_error"] < first / 3
    # The embeddings of the others are not in the batch, and do not move.
    assert torch.equal(model.state_dict()["_task_emb.weight"][:3], embedding[:3])
    assert not torch.equal(model.state_dict()["_task_emb.weight"][3], embedding[3])
    policy = PWMLoss(make_pwm_actor(16, ACTION), make_value_ensemble(16), model, horizon=2)
    assert policy(batch[:, 0])["loss_actor"].isfinite()
    again = PWMWorldModel.from_tdmpc2(model.state_dict())
    assert again.num_tasks == 4 and torch.equal(outputs(again, 3)[0], outputs(model, 3)[0])
    assert len(others) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action_dim": 7}, "actions of size 7, this model takes 1 to 6: .* a model of their own"),
        ({"like": 3}, "like is one of the model's tasks, 0 to 2, found 3"),
        ({"observation_mean": torch.zeros(3)}, "go together"),
        ({"observation_mean": torch.zeros(40), "observation_std": torch.ones(40)}, "up to 39"),
    ],
)
def test_a_task_that_does_not_fit_is_refused_and_nothing_changes(options, message) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=message):
        model.add_task(**options)
    assert model.num_tasks == 3 and model.state_dict()["_task_emb.weight"].shape == (3, 4)


def test_a_model_with_statistics_asks_for_those_of_the_new_task() -> None:
    model = make_model()
    model.set_observation_statistics(torch.randn(3, OBSERVATION), torch.rand(3, OBSERVATION))
    with pytest.raises(ValueError, match=r"give observation_mean and observation_std.*observation\.mean\(0\)"):
        model.add_task()
    with pytest.raises(ValueError, match="single task"):
        PWMWorldModel(5, 2, latent_dim=16, units=(12,)).add_task()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (torch.tensor([0, 1, 2, 3]), "0 to 2 .* found 0 to 3"),
        (torch.tensor([0, -1, 2, 2]), "0 to 2 .* found -1 to 2"),
        (torch.tensor([0.0, 1.0, 2.0, 1.0]), r"integers \(int64\), found torch.float32"),
        (torch.tensor([[0], [1], [2], [1]]), r"shape \[4\], found \[4, 1\].*squeeze\(-1\)"),
        (torch.tensor([0, 1, 2]), r"shape \[4\], found \[3\]"),
        (torch.tensor([True, False, True, True]), "integers"),
        (3, "from 0 to 2 .* found 3"),
        (-1, "from 0 to 2 .* found -1"),
    ],
)
@pytest.mark.parametrize("standardised", [False, True])
def test_a_task_that_is_none_of_the_models_is_named(task, message, standardised) -> None:
    model = make_model()
    if standardised:
        model.set_observation_statistics(torch.randn(3, OBSERVATION), torch.rand(3, OBSERVATION))
    with pytest.raises(ValueError, match=message):
        model.encode_observation(torch.randn(4, OBSERVATION), task)
    with pytest.raises(ValueError, match=message):
        model.next_latent(torch.rand(4, 16), torch.rand(4, ACTION), task)


def test_small_integers_are_indices() -> None:
    model = make_model()
    observation = torch.randn(3, OBSERVATION)
    expected = model.encode_observation(observation, torch.tensor([2, 0, 1]))
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(model.encode_observation(observation, torch.tensor([2, 0, 1], dtype=dtype)), expected)


def test_an_embodiment_with_more_actions_or_observations_than_the_checkpoint_is_told_what_to_do() -> None:
    model = make_model()
    with pytest.raises(ValueError, match=r"actions of size 6, .*action_dim=8 and train it"):
        model.next_latent(torch.rand(4, 16), torch.rand(4, 8), 0)
    with pytest.raises(ValueError, match=r"observations of size 39, .*observation_dim=60 and train it"):
        model.encode_observation(torch.rand(4, 60), 0)
    with pytest.raises(ValueError, match=r"make_task_env\(..., task_set=...\) pads it"):
        model.encode_observation(torch.rand(4, 24), 0)


def test_a_wrapper_is_for_one_of_the_models_tasks() -> None:
    with pytest.raises(ValueError, match=r"from 0 to 2 .* found 7"):
        WorldModelWrapper(make_model(), task=7)
    with pytest.raises(ValueError, match="no tasks"):
        WorldModelWrapper(PWMWorldModel(5, 2, latent_dim=16, units=(12,)), task=0)


class Pictures(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(48 + 4, 16)

    def forward(self, observation: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.cat([observation.flatten(1), embedding], -1))


def test_a_model_of_pictures_takes_a_new_task() -> None:
    sizes = {"latent_dim": 16, "units": (12,), "num_tasks": 2, "task_dim": 4}
    model = PWMWorldModel((3, 4, 4), ACTION, encoder=Pictures(), **sizes)
    with pytest.raises(ValueError, match="Statistics are for vectors"):
        model.add_task(observation_mean=torch.zeros(48), observation_std=torch.ones(48))
    assert model.add_task(action_dim=2, like=0) == 2
    pictures = torch.rand(5, 3, 4, 4)
    assert torch.equal(model.encode_observation(pictures, 2), model.encode_observation(pictures, 0))


def test_a_tdmpc2_model_takes_a_new_task_with_its_own_discount() -> None:
    model = TDMPC2Model(make_model(), episode_lengths=[500, 1000, 100])
    assert model.add_task(MT80["walker-run"], like=1) == 3
    lengths = [500, 1000, 100, MT80["walker-run"].episode_length]
    expected = TDMPC2Model(make_model(num_tasks=4, action_dims=None), episode_lengths=lengths)
    assert torch.equal(model.discount, expected.discount)
    again = TDMPC2Model.from_arguments(model.constructor_arguments)
    again.load_state_dict(model.state_dict())
    td = TensorDict({"observation": torch.randn(6, 4, OBSERVATION), "action": torch.zeros(6, 4, ACTION)}, [6, 4])
    td["next"] = TensorDict({"observation": torch.randn(6, 4, OBSERVATION), "reward": torch.ones(6, 4, 1)}, [6, 4])
    td["task"] = torch.full((6, 4), 3)
    assert TDMPC2Loss(again)(td)["loss_value"].isfinite()
    model.world_model.add_task()
    with pytest.raises(ValueError, match=r"4 discounts for 5 tasks: .* model\.add_task"):
        TDMPC2Loss(model)(td)
