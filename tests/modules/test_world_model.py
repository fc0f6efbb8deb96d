from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.modules import WorldModel

from torchrl_pwm import PWMWorldModel, make_pwm_actor, make_value_ensemble

FORWARD = {"rtol": 1e-4, "atol": 1e-5}
GRADIENT = {"rtol": 1e-3, "atol": 2e-4}
CASES = ["task0", "task1", "task2", "mixed"]


def build(fixture, **kwargs):
    """The model of a golden file, with its weights."""
    config = fixture["config"]
    names = {"latent_dim", "units", "encoder_units", "simnorm_dim", "num_tasks", "task_dim", "action_dims"}
    sizes = {name: config[name] for name in names | {"num_bins", "vmin", "vmax"} if name in config}
    model = PWMWorldModel(config["obs_dim"], config["act_dim"], **{**sizes, **kwargs})
    model.load_state_dict(fixture["model"])
    return model


@pytest.fixture
def single(golden):
    return golden("world_model_single")


@pytest.fixture
def multi(golden):
    return golden("world_model_multitask")


def small(**kwargs):
    return PWMWorldModel(5, 2, latent_dim=16, units=(24, 24), encoder_units=(20,), **kwargs)


def small_multi(**kwargs):
    return small(num_tasks=3, task_dim=4, num_bins=11, **kwargs)


# Parity with the published implementation.


@pytest.mark.parametrize("suffix", ["", "_3d"])
def test_single_task_model_matches_the_reference(single, suffix):
    model, inputs, out = build(single), single["inputs"], single["outputs"]
    action = inputs[f"action{suffix}"]
    z = model.encode_observation(inputs[f"obs{suffix}"])
    torch.testing.assert_close(z, out[f"z{suffix}"], **FORWARD)
    torch.testing.assert_close(model.next_latent(z, action), out[f"z_next{suffix}"], **FORWARD)
    reward = model.reward_logits(z, action)
    torch.testing.assert_close(reward, out[f"reward{suffix}"], **FORWARD)
    for space in ("raw", "symlog"):
        assert model.decode_reward(reward, space) is reward


def test_dynamics_match_the_reference_off_the_simplex(single):
    model, inputs, out = build(single), single["inputs"], single["outputs"]
    z, action = inputs["z_free"], inputs["action"]
    torch.testing.assert_close(model.next_latent(z, action), out["z_next_from_free"], **FORWARD)
    torch.testing.assert_close(model.reward_logits(z, action), out["reward_from_free"], **FORWARD)


def test_input_gradients_match_the_reference(single):
    model, inputs, out = build(single), single["inputs"], single["outputs"]
    z = model.encode_observation(inputs["obs"]).detach().requires_grad_()
    action = inputs["action"].requires_grad_()
    total = model.next_latent(z, action).square().sum() + model.reward_logits(z, action).sum()
    grad_z, grad_action = torch.autograd.grad(total, (z, action))
    torch.testing.assert_close(grad_z, out["grad_z"], **GRADIENT)
    torch.testing.assert_close(grad_action, out["grad_action"], **GRADIENT)


def test_step_on_a_tensordict_matches_the_reference(single):
    model, inputs, out = build(single), single["inputs"], single["outputs"]
    td = model(TensorDict({"observation": inputs["obs"], "action": inputs["action"]}, [6]))
    torch.testing.assert_close(td["next", "latent"], out["step_z"], **FORWARD)
    torch.testing.assert_close(td["next", "reward"], out["step_reward"], **FORWARD)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("suffix", ["", "_3d"])
def test_multi_task_model_matches_the_reference(multi, case, suffix):
    model, inputs, out = build(multi), multi["inputs"], multi["outputs"][case]
    action, task = inputs[f"action{suffix}"], out["task"]
    z = model.encode_observation(inputs[f"obs{suffix}"], task)
    torch.testing.assert_close(z, out[f"z{suffix}"], **FORWARD)
    torch.testing.assert_close(model.next_latent(z, action, task), out[f"z_next{suffix}"], **FORWARD)
    logits = model.reward_logits(z, action, task)
    torch.testing.assert_close(logits, out[f"reward_logits{suffix}"], **FORWARD)
    torch.testing.assert_close(model.decode_reward(logits, "symlog"), out[f"reward_symlog{suffix}"], **FORWARD)
    torch.testing.assert_close(model.decode_reward(logits), out[f"reward{suffix}"], **FORWARD)


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("suffix", ["", "_3d"])
def test_an_integer_task_serves_every_state(multi, index, suffix):
    model, inputs, out = build(multi), multi["inputs"], multi["outputs"][f"task{index}"]
    z = model.encode_observation(inputs[f"obs{suffix}"], index)
    torch.testing.assert_close(z, out[f"z{suffix}"], **FORWARD)
    z_next = model.next_latent(z, inputs[f"action{suffix}"], torch.tensor(index))
    torch.testing.assert_close(z_next, out[f"z_next{suffix}"], **FORWARD)


def test_multi_task_tensordict_form_reads_the_task_of_each_state(multi):
    model, inputs, out = build(multi), multi["inputs"], multi["outputs"]["mixed"]
    td = TensorDict({"observation": inputs["obs"], "action": inputs["action"], "task": out["task"]}, [6])
    td = model(td)
    torch.testing.assert_close(td["latent"], out["z"], **FORWARD)
    torch.testing.assert_close(td["next", "latent"], out["z_next"], **FORWARD)
    torch.testing.assert_close(td["next", "reward"], out["reward"], **FORWARD)
    torch.testing.assert_close(td["next", "reward_logits"], out["reward_logits"], **FORWARD)


def test_embedding_rows_that_are_looked_up_are_renormalised_in_place_and_no_others(multi):
    model, before = build(multi), multi["model"]["_task_emb.weight"].clone()
    large = before.norm(dim=-1).gt(1).nonzero().flatten().tolist()
    assert len(large) > 1
    model.encode_observation(multi["inputs"]["obs"], large[0])
    after = model.state_dict()["_task_emb.weight"]
    assert after[large[0]].norm().item() == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(after[large[1:]], before[large[1:]], rtol=0, atol=0)
    model.encode_observation(multi["inputs"]["obs"], multi["outputs"]["mixed"]["task"])
    torch.testing.assert_close(model.state_dict()["_task_emb.weight"], multi["task_emb_after_lookup"], **FORWARD)


def test_no_gradient_flows_through_the_renormalisation(multi):
    model, index = build(multi), int(multi["model"]["_task_emb.weight"].norm(dim=-1).argmax())
    model.encode_observation(multi["inputs"]["obs"][:1], index).square().sum().backward()
    grad, model2 = model.get_parameter("_task_emb.weight").grad[index], build(multi)
    row = multi["task_emb_after_lookup"][index].clone().requires_grad_()
    model2.encoder_network(torch.cat([multi["inputs"]["obs"][0], row])).square().sum().backward()
    torch.testing.assert_close(grad, row.grad, **GRADIENT)


def test_action_masks_match_the_reference_and_are_not_saved(multi):
    model = build(multi)
    torch.testing.assert_close(model.action_masks, multi["action_masks"])
    assert "action_masks" not in model.state_dict()


@pytest.mark.parametrize("name", ["world_model_single", "world_model_multitask"])
def test_the_state_dict_has_the_published_keys_and_shapes(golden, name):
    fixture = golden(name)
    state = build(fixture).state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in fixture["model"].items()}


def test_initial_parameters_have_the_published_statistics(golden):
    fixture = golden("schedule_and_init")["init_statistics"]["world_model"]
    state = PWMWorldModel(observation_dim=37, action_dim=8).state_dict()
    assert list(state) == list(fixture)
    for key, expected in fixture.items():
        value = state[key]
        assert list(value.shape) == expected["shape"], key
        assert value.mean().item() == pytest.approx(expected["mean"], abs=6e-4), key
        assert value.std(correction=0).item() == pytest.approx(expected["std"], rel=0.02), key


def test_an_untrained_model_predicts_no_reward():
    for model in (small(), small(num_bins=101)):
        reward = model.decode_reward(model.reward_logits(torch.rand(4, 16), torch.rand(4, 2)))
        torch.testing.assert_close(reward, torch.zeros(4, 1), rtol=0, atol=1e-5)


# Sizes.

MT30, MT80 = (
    {"observation_dim": 24, "action_dim": 6, "num_tasks": 30},
    {"observation_dim": 39, "action_dim": 6, "num_tasks": 80},
)
COUNTS = [
    ("5M", MT30, {}, (155_904, 826_880, 615_013, 1_920, 1_599_717)),
    ("19M", MT30, {}, (1_670_656, 2_176_512, 1_754_213, 1_920, 5_603_301)),
    ("48M", MT30, {}, (7_974_912, 6_102_272, 4_904_805, 1_920, 18_983_909)),
    ("317M", MT30, {}, (56_512_544, 28_495_904, 23_269_477, 2_880, 108_280_805)),
    ("5M", MT80, {}, (167_936, 843_264, 631_397, 7_680, 1_650_277)),
    ("19M", MT80, {}, (1_718_784, 2_209_280, 1_786_981, 7_680, 5_722_725)),
    ("19M", MT80, {"latent_dim": 768}, (1_981_696, 2_734_336, 2_049_125, 7_680, 6_772_837)),
    ("48M", MT80, {}, (8_059_136, 6_159_616, 4_962_149, 7_680, 19_188_581)),
    ("317M", MT80, {}, (56_573_984, 28_495_904, 23_269_477, 7_680, 108_347_045)),
]


def counts(model):
    parts = ["_encoder.", "_dynamics.", "_reward.", *(["_task_emb."] if model.num_tasks else []), ""]
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return tuple(sum(size for name, size in sizes.items() if name.startswith(part)) for part in parts)


@pytest.mark.parametrize(("preset", "task_set", "overrides", "expected"), COUNTS)
def test_presets_have_the_published_number_of_parameters(preset, task_set, overrides, expected):
    with torch.device("meta"):
        model = PWMWorldModel.from_preset(preset, **task_set, **overrides)
    assert counts(model) == expected


@pytest.mark.parametrize(
    ("observation_dim", "action_dim", "model_counts", "actor_count"),
    [
        (11, 3, (136_192, 792_576, 529_409, 1_458_177), 307_206),
        (37, 8, (142_848, 795_136, 531_969, 1_469_953), 307_716),
        (49, 12, (145_920, 797_184, 534_017, 1_477_121), 308_124),
        (76, 21, (152_832, 801_792, 538_625, 1_493_249), 309_042),
        (53, 152, (146_944, 868_864, 605_697, 1_621_505), 322_404),
    ],
)
def test_default_sizes_are_the_published_single_task_ones(observation_dim, action_dim, model_counts, actor_count):
    assert counts(PWMWorldModel(observation_dim, action_dim)) == model_counts
    assert sum(p.numel() for p in make_pwm_actor(512, action_dim).parameters()) == actor_count


@pytest.mark.parametrize(
    ("latent_dim", "actor", "critic"), [(512, 307_512, 286_801), (768, 409_912, 389_201), (1376, 653_112, 632_401)]
)
def test_actor_and_critic_have_the_published_number_of_parameters(latent_dim, actor, critic):
    assert sum(p.numel() for p in make_pwm_actor(latent_dim, 6).parameters()) == actor
    assert sum(p.numel() for p in make_value_ensemble(latent_dim).parameters()) == 3 * critic


def test_a_preset_without_tasks_has_no_embedding():
    model = PWMWorldModel.from_preset("5M", observation_dim=11, action_dim=3, num_bins=None)
    assert sum(p.numel() for p in model.parameters()) == 1_458_177


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="Unknown preset '1B': expected one of 5M, 19M, 48M, 317M"):
        PWMWorldModel.from_preset("1B", observation_dim=3, action_dim=1)


# TensorDict interface.


def test_it_is_a_torchrl_world_model_whose_parts_work_alone():
    model = small_multi()
    assert isinstance(model, WorldModel)
    td = TensorDict(
        {"observation": torch.randn(3, 4, 5), "action": torch.rand(3, 4, 2), "task": torch.randint(3, (3, 4))}, [3, 4]
    )
    whole = model(td.clone())
    assert whole["next", "reward"].shape == (3, 4, 1)
    assert whole["next", "reward_logits"].shape == (3, 4, 11)
    by_part = model.reward_head(model.dynamics(model.encoder(td.clone())))
    for key in ("latent", ("next", "latent"), ("next", "reward"), ("next", "reward_logits")):
        torch.testing.assert_close(by_part[key], whole[key])
    torch.testing.assert_close(model.step(model.encode(td))["next", "latent"], whole["next", "latent"])


def test_keys_tell_what_is_read_and_written():
    assert small().in_keys == ["observation", "action"]
    assert small_multi().in_keys == ["observation", "action", "task"]
    assert ("next", "reward_logits") not in small().out_keys
    assert small_multi().out_keys == ["latent", ("next", "latent"), ("next", "reward"), ("next", "reward_logits")]


def test_every_key_can_be_renamed_also_to_a_nested_one():
    model = small_multi()
    renamed = {
        "observation": ("agent", "obs"),
        "action": ("agent", "act"),
        "task": "goal",
        "latent": ("agent", "z"),
        "reward": ("agent", "r"),
        "reward_logits": "l",
    }
    observation, action, task = torch.randn(4, 5), torch.rand(4, 2), torch.tensor([0, 1, 2, 0])
    plain = model(TensorDict({"observation": observation, "action": action, "task": task}, [4]))
    model.set_keys(**renamed)
    td = model(TensorDict({"agent": {"obs": observation, "act": action}, "goal": task}, [4]))
    assert model.in_keys == [("agent", "obs"), ("agent", "act"), "goal"]
    torch.testing.assert_close(td["agent", "z"], plain["latent"])
    torch.testing.assert_close(td["next", "agent", "z"], plain["next", "latent"])
    torch.testing.assert_close(td["next", "agent", "r"], plain["next", "reward"])
    torch.testing.assert_close(td["next", "l"], plain["next", "reward_logits"])


def test_an_unknown_key_is_refused():
    with pytest.raises(ValueError, match="'obs' is not a key of the world model"):
        small().set_keys(obs="pixels")


def test_renaming_one_model_leaves_others_alone():
    renamed, other = small(), small()
    renamed.set_keys(latent="z")
    assert other.tensor_keys.latent == "latent"


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_any_batch_shape_is_encoded_alike(batch):
    model = small_multi()
    observation, task = torch.randn(*batch, 5), torch.randint(3, batch)
    together = model.encode_observation(observation, task)
    rows = [model.encode_observation(o, t) for o, t in zip(observation.reshape(-1, 5), task.reshape(-1))]
    torch.testing.assert_close(together.reshape(-1, 16), torch.stack(rows))


# Once per rollout instead of once per step.


@pytest.mark.parametrize("task", [1, torch.tensor([0, 2, 1, 1])])
def test_a_task_context_changes_neither_value_nor_gradient(task):
    model = small_multi().double()
    torch.nn.init.normal_(model.reward_network[-1].weight)
    latent, action = torch.rand(6, 4, 16).double(), torch.rand(6, 4, 2).double().requires_grad_()
    context = model.task_context(task)
    for method in (model.next_latent, model.reward_logits):
        plain, fast = method(latent, action, task), method(latent, action, context)
        torch.testing.assert_close(fast, plain)
        weights = [*model.parameters(), action]
        for expected, result in zip(
            torch.autograd.grad(plain.square().sum(), weights, allow_unused=True),
            torch.autograd.grad(fast.square().sum(), weights, allow_unused=True, retain_graph=True),
        ):
            torch.testing.assert_close(result, expected)


def test_a_single_task_model_has_no_task_context():
    assert small().task_context(None) is None


# Errors.


@pytest.mark.parametrize("call", ["encode_observation", "next_latent", "reward_logits"])
def test_a_multi_task_model_asks_for_the_task(call):
    inputs = [torch.zeros(2, 5)] if call == "encode_observation" else [torch.zeros(2, 16), torch.zeros(2, 2)]
    with pytest.raises(ValueError, match="has 3 tasks: give `task`"):
        getattr(small_multi(), call)(*inputs)


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match=r"observations of size 5, found observation of shape \(2, 7\)"):
        small().encode_observation(torch.zeros(2, 7))
    for call in (small().next_latent, small().reward_logits):
        with pytest.raises(ValueError, match=r"actions of size 2, found action of shape \(2, 3\)"):
            call(torch.zeros(2, 16), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_dim": 12}, "multiple of simnorm_dim=8, found 12"),
        ({"num_tasks": 3}, "num_tasks and task_dim go together"),
        ({"task_dim": 3}, "num_tasks and task_dim go together"),
        ({"num_tasks": 2, "task_dim": 4, "action_dims": (1,)}, r"each of 2 task\(s\), found \[1\]"),
        ({"num_tasks": 2, "task_dim": 4, "action_dims": (1, 3)}, "between 1 and 2"),
        ({"num_bins": 5, "vmin": 1.0, "vmax": 0.0}, "vmin < vmax"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PWMWorldModel(5, 2, **{"latent_dim": 16, **arguments})


def test_building_a_model_draws_from_the_global_generator_only_and_reseeds_nothing():
    torch.manual_seed(3)
    first = small()
    after = torch.rand(1)
    torch.manual_seed(3)
    second = small()
    torch.testing.assert_close(torch.rand(1), after, rtol=0, atol=0)
    for a, b in zip(first.parameters(), second.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
