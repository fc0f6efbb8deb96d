"""TD-MPC2's model: sizes, layouts, masks, termination, and what is refused."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from tests.modules.tdmpc2 import ACTION, LATENT, OBSERVATION, TASKS, make_model
from tests.modules.test_checkpoints import as_published
from tests.modules.test_tdmpc2_golden import EPISODES, load
from torchrl_pwm import MT80, PWMWorldModel, TDMPC2Model

KINDS = pytest.mark.parametrize("kind", ["single", "multi"])


def same(result, expected):
    """The same keys, bit for bit; tensors in the same order."""
    assert set(result) == set(expected)
    assert [key for key in result if "__" not in key] == [key for key in expected if "__" not in key]
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert result[key].dtype == value.dtype and torch.equal(result[key], value), key
        else:
            assert result[key] == value, key


# Layouts.


@KINDS
def test_old_to_new_to_old_loses_no_bit(golden, kind):
    case = golden("tdmpc2_checkpoint_old")[kind]
    new = load(case).to_checkpoint("new")
    assert any(key.startswith("_target_Qs_params.") for key in new["model"])
    same(TDMPC2Model.from_checkpoint(new).to_checkpoint("old")["model"], as_published(case))


@KINDS
def test_new_to_old_to_new_loses_no_bit(golden, kind):
    case = golden("tdmpc2_checkpoint_new")[kind]
    old = load(case).to_checkpoint("old")
    assert "_target_Qs.params.9" in old["model"] and "log_std_min" not in old["model"]
    action_dims = case["config"]["action_dims"] if kind == "multi" else None
    again = TDMPC2Model.from_checkpoint(old, action_dims=action_dims).to_checkpoint("new")["model"]
    same(again, as_published(case))


@KINDS
def test_old_keys_are_those_that_the_fixture_maps_them_to(golden, kind):
    case = golden("tdmpc2_checkpoint_new")[kind]
    model = load(case)
    old, new = model.to_checkpoint("old")["model"], model.to_checkpoint("new")["model"]
    for new_key, old_key in case["old_layout_key_for_new_key"].items():
        assert torch.equal(new[new_key], old[old_key])


def test_observation_statistics_are_written_where_asked_for(tmp_path):
    model = make_model(TASKS, action_dims=[1, 2, 2])
    mean, std = torch.randn(TASKS, OBSERVATION), torch.rand(TASKS, OBSERVATION) + 0.1
    model.world_model.set_observation_statistics(mean, std)
    with pytest.raises(ValueError, match=r"no place for the world model's observation statistics .*statistics=True"):
        model.to_checkpoint()
    torch.save(model.to_checkpoint(statistics=True), tmp_path / "model.pt")
    for result in (
        TDMPC2Model.from_checkpoint(tmp_path / "model.pt").world_model,
        PWMWorldModel.from_tdmpc2(tmp_path / "model.pt"),
    ):
        assert torch.equal(result.observation_mean, mean) and torch.equal(result.observation_std, std)


def test_a_saved_checkpoint_is_read_back_from_a_file(tmp_path):
    model = make_model(TASKS, action_dims=[1, 2, 2], episodic=True, log_std_max=1)
    torch.save(model.to_checkpoint(), tmp_path / "model.pt")
    again = TDMPC2Model.from_checkpoint(tmp_path / "model.pt")
    assert again.termination_head is not None and again.log_std_max == 1
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


def test_entries_of_newer_tensordict_releases_are_ignored(golden):
    case = golden("tdmpc2_checkpoint_new")["single"]
    state = {key: value for key, value in as_published(case).items() if "__" not in key}
    state |= {f"{part}.module.0.weight": torch.zeros(1) for part in ("_Qs", "_detach_Qs", "_target_Qs")}
    same(TDMPC2Model.from_checkpoint(state).to_checkpoint("new")["model"], as_published(case))


def test_checkpoints_are_copies():
    model = make_model()
    state = model.to_checkpoint()["model"]
    state["_pi.0.weight"].zero_()
    assert model.policy[0].weight.any()


@pytest.mark.parametrize("key", ["_pi.0.gain", "_Qs.params.0.mean", "_target_Qs_params.0.scale", "_Qs.0.weight"])
def test_an_unknown_entry_is_named(golden, key):
    state = as_published(golden("tdmpc2_checkpoint_new")["single"])
    with pytest.raises(ValueError, match=rf"Unknown checkpoint layout.*\['{key}'\]".replace(".0.", r"\.0\.")):
        TDMPC2Model.from_checkpoint({**state, key: torch.zeros(1)})


def test_an_unknown_part_is_named(golden):
    state = as_published(golden("tdmpc2_checkpoint_old")["single"])
    with pytest.raises(ValueError, match=r"Unknown checkpoint layout.*'_decoder\.0\.weight'"):
        TDMPC2Model.from_checkpoint({**state, "_decoder.0.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("_pi.1.ln.weight", r"policy\.1\.ln\.weight"),
        ("_pi.0.bias", r"policy\.0\.bias"),
        ("_Qs.params.4", r"q\.params\.4"),
        ("_target_Qs.params.9", r"target_q\.params\.9"),
    ],
)
def test_a_missing_entry_is_named(golden, lost, named):
    state = dict(as_published(golden("tdmpc2_checkpoint_old")["single"]))
    del state[lost]
    with pytest.raises(ValueError, match=f"Incomplete or inconsistent.*'{named}'"):
        TDMPC2Model.from_checkpoint(state)


def test_a_part_of_another_size_is_named(golden):
    state = dict(as_published(golden("tdmpc2_checkpoint_old")["single"]))
    state["_Qs.params.4"] = torch.zeros(5, 32, 31)
    with pytest.raises(ValueError, match=r"do not fit together.*q\.params\.4 \(5, 32, 31\) instead of \(5, 32, 32\)"):
        TDMPC2Model.from_checkpoint(state)


def test_a_world_model_alone_is_refused():
    state = PWMWorldModel(5, 2, latent_dim=16, units=(8, 8)).state_dict()
    with pytest.raises(ValueError, match=r"world model only.*PWMWorldModel\.from_tdmpc2"):
        TDMPC2Model.from_checkpoint(state)


def test_a_mid_2024_checkpoint_of_many_tasks_needs_their_action_sizes(golden):
    with pytest.raises(ValueError, match=r"3 tasks.*give action_dims"):
        TDMPC2Model.from_checkpoint(as_published(golden("tdmpc2_checkpoint_old")["multi"]))


def test_what_a_layout_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="mid-2024 layout holds neither"):
        make_model(episodic=True).to_checkpoint("old")
    with pytest.raises(ValueError, match="action sizes of the 3 tasks"):
        make_model(TASKS).to_checkpoint("new")
    with pytest.raises(ValueError, match=r"layout must be .* found 'newest'"):
        make_model().to_checkpoint("newest")
    model = make_model()
    model.world_model.set_observation_statistics(torch.zeros(OBSERVATION), torch.ones(OBSERVATION))
    with pytest.raises(ValueError, match="observation statistics"):
        model.to_checkpoint()


# Sizes and options.


@pytest.mark.parametrize(
    ("preset", "observation", "tasks", "options", "expected"),
    [
        ("5M", 24, 30, {}, 5_241_066),
        ("19M", 24, 30, {}, 16_031_210),
        ("48M", 24, 30, {}, 48_242_410),
        ("5M", 39, 80, {}, 5_389_930),
        ("48M", 39, 80, {}, 48_791_146),
    ],
)
def test_presets_have_the_published_number_of_parameters(preset, observation, tasks, options, expected):
    with torch.device("meta"):
        model = TDMPC2Model.from_preset(preset, observation_dim=observation, action_dim=6, num_tasks=tasks, **options)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


def test_discounts_are_the_published_ones():
    model = make_model(TASKS, episode_lengths=EPISODES)
    torch.testing.assert_close(model.discount, torch.tensor([0.95, 0.99, 0.995]))
    torch.testing.assert_close(model.discount_of(torch.tensor([2, 0])), torch.tensor([[0.995], [0.95]]))
    assert make_model().discount.tolist() == pytest.approx([0.99])
    for task in MT80:
        assert make_model(episode_lengths=task.episode_length).discount.item() == pytest.approx(task.discount)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"episode_lengths": [500, 500]}, "one for each of 3"),
        ({"episode_lengths": 0}, "positive"),
        ({"num_q": 1}, "num_q"),
        ({"dropout": 1.0}, "dropout"),
        ({"units": ()}, "units"),
        ({"log_std_min": 3}, "log_std_min"),
    ],
)
def test_bad_options_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        make_model(TASKS, **options)


def test_a_world_model_with_normalized_rewards_is_refused():
    with pytest.raises(ValueError, match="normalize_rewards"):
        TDMPC2Model(PWMWorldModel(5, 2, latent_dim=16, normalize_rewards=True))


def test_a_fresh_model_values_everything_at_zero_and_its_target_is_a_copy():
    model = TDMPC2Model(PWMWorldModel(5, 2, latent_dim=16, units=(8, 8), num_bins=11))
    z, a = torch.rand(4, 16), torch.rand(4, 2)
    assert torch.allclose(model.q_value(z, a), torch.zeros(4, 1), atol=1e-6)
    for q, target in zip(model.q.parameters(), model.target_q.parameters(), strict=True):
        assert torch.equal(q, target) and not target.requires_grad
    assert model.policy[0].weight.std() < 0.03


def test_a_scalar_head_makes_scalar_q_functions():
    model = TDMPC2Model(PWMWorldModel(5, 2, latent_dim=16, units=(8, 8)))
    z, a = torch.rand(4, 16), torch.rand(4, 2)
    assert model.q_logits(z, a).shape == (5, 4, 1) and model.q_value(z, a).shape == (4, 1)


def test_reset_parameters_starts_everything_afresh():
    model = make_model(episodic=True)
    model.scale.value.fill_(7.0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.reset_parameters()
    after = model.state_dict()
    kept = {key for key in before if torch.equal(before[key], after[key])}
    assert {key for key in kept if "_encoder" not in key} == {"discount"}
    assert torch.equal(model.q.params[0], model.target_q.params[0])


# What it computes.


@pytest.fixture(params=[0, TASKS], ids=["single", "multitask"])
def model(request):
    return make_model(request.param, action_dims=[2, 1, 2] if request.param else None)


def rows(model, count=6):
    td = TensorDict({"observation": torch.randn(count, OBSERVATION)}, [count])
    return td.set("task", torch.arange(count) % TASKS) if model.world_model.num_tasks else td


def test_the_tensordict_form_writes_latent_and_action(model):
    td = rows(model)
    assert set(model.in_keys) == set(td.keys())
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        greedy = model(td.clone())
    assert greedy["latent"].shape == (6, LATENT) and greedy["action"].shape == (6, ACTION)
    expected = model.act(greedy["latent"], td.get("task", None), torch.zeros(6, ACTION))
    assert torch.equal(greedy["action"], expected.mean) and torch.equal(expected.action, expected.mean)
    with set_exploration_type(ExplorationType.RANDOM):
        assert not torch.equal(model(td.clone())["action"], greedy["action"])
    # without an exploration type policies of this package explore
    assert not torch.equal(model(td.clone())["action"], greedy["action"])


def test_keys_can_be_renamed(model):
    td = rows(model)
    model.set_keys(observation=("agent", "obs"), action=("agent", "act"), task=("agent", "id"))
    nested = TensorDict({"agent": {"obs": td["observation"]}}, td.shape)
    if "task" in td:
        nested["agent", "id"] = td["task"]
    assert model(nested)["agent", "act"].shape == (6, ACTION)
    assert ("agent", "obs") in model.in_keys and ("agent", "act") in model.out_keys


def test_the_padding_of_an_action_is_zero_and_does_not_count():
    model = make_model(TASKS, action_dims=[2, 1, 2])
    task, z = torch.tensor([0, 1, 2]), torch.rand(3, LATENT)
    sample = model.act(z, task)
    assert sample.action[1, 1] == 0 and sample.mean[1, 1] == 0 and sample.action[[0, 2]].all()
    # the size of the action is that of the task
    torch.manual_seed(1)
    noise = torch.randn(3, ACTION)
    sample = model.act(z, task, noise)
    gaussian = (-sample.noise.square() / 2 - sample.log_std - 0.9189385).sum(-1, keepdim=True)
    sizes = torch.tensor([[2.0], [1.0], [2.0]])
    torch.testing.assert_close(model.entropies(sample, task)[1], -sizes * gaussian, rtol=1e-4, atol=1e-4)


def test_the_mid_2024_entropy_counts_its_constant_once_and_scales_by_the_size():
    model = make_model()
    sample = model.act(torch.rand(4, LATENT))
    squash = (1 - sample.action.square() + 1e-6).log().sum(-1, keepdim=True)
    inner = (-sample.noise.square() / 2 - sample.log_std).sum(-1, keepdim=True) - 0.9189385
    torch.testing.assert_close(model.entropies(sample, form="mid-2024")[1], -(ACTION * inner - squash))
    with pytest.raises(ValueError, match="'2023'"):
        model.entropies(sample, form="2023")


def test_values_come_from_the_members_that_are_named(model):
    z, a, task = torch.rand(6, LATENT), torch.rand(6, ACTION), rows(model).get("task", None)
    every = model.world_model.codec.decode(model.q_logits(z, a, task))
    members = torch.tensor([4, 1])
    torch.testing.assert_close(model.q_value(z, a, task, reduce="min", members=members), every[members].amin(0))
    torch.testing.assert_close(model.q_value(z, a, task, members=members), every[members].mean(0))
    pairs = {tuple(v.flatten().tolist()) for v in (model.q_value(z, a, task) for _ in range(40))}
    assert len(pairs) > 3, "members are drawn at random"
    with pytest.raises(ValueError, match="'max'"):
        model.q_value(z, a, task, reduce="max")


def test_dropout_acts_in_training_on_the_live_functions_alone():
    model = make_model(dropout=0.5)
    z, a, one = torch.rand(64, LATENT), torch.rand(64, ACTION), torch.tensor([0, 1])

    def differs(**how):
        return not torch.equal(model.q_logits(z, a, members=one, **how), model.q_logits(z, a, members=one, **how))

    model.train()
    assert differs() and not differs(target=True) and not differs(dropout=False)
    model.eval()
    assert not differs()


def test_the_target_moves_towards_the_live_functions():
    model = make_model()
    old, live = model.target_q.params[0].clone(), model.q.params[0].clone()
    model.update_target(0.25)
    torch.testing.assert_close(model.target_q.params[0].data, old + 0.25 * (live - old))
    assert torch.equal(model.q.params[0], live)


def test_a_model_without_a_termination_head_says_so():
    with pytest.raises(ValueError, match="termination=True"):
        make_model().termination_logits(torch.rand(2, LATENT))
    assert make_model(episodic=True).termination_logits(torch.rand(2, LATENT)).shape == (2, 1)


def test_state_dict_round_trip(model):
    other = make_model(model.world_model.num_tasks, action_dims=[2, 1, 2] if model.world_model.num_tasks else None)
    model.scale.update(torch.randn(100) * 50)
    model.discount.fill_(0.9)
    other.load_state_dict(model.state_dict())
    td = rows(model)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        assert torch.equal(other(td.clone())["action"], model(td.clone())["action"])
    assert other.scale.value == model.scale.value != 1 and torch.equal(other.discount, model.discount)
