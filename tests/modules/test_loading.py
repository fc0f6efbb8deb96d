"""World models from every file that this package writes or that was published, each as it was built."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.modules.agent_files import save_pwm_agent
from tests.modules.test_checkpoints import as_published, check_outputs
from torchrl_pwm import (
    DamagedFileError,
    PWMAgent,
    PWMWorldModel,
    TDMPC2Model,
    load_world_model,
    make_pwm_actor,
    make_value_ensemble,
)
from torchrl_pwm._utils.checkpoint import save_checkpoint, save_tensors

GOLDEN = Path(__file__).parents[1] / "golden"
RUNS = GOLDEN / "runs"
FORWARD = {"rtol": 1e-4, "atol": 1e-5}
OBSERVATION, ACTION = torch.linspace(-2, 2, 20).view(4, 5), torch.linspace(-1, 1, 8).view(4, 2)

# Arguments that neither names nor shapes of the weights tell.
FORMS = {
    "simnorm of 4": {"simnorm_dim": 4},
    "no simnorm": {"simnorm_dim": 0},
    "residual": {"residual": True},
    "residual without simnorm": {"residual": True, "simnorm_dim": 0},
    "another range": {"num_bins": 11, "vmin": -2.0, "vmax": 3.0},
    "tasks": {"num_bins": 11, "num_tasks": 2, "task_dim": 4, "action_dims": (2, 1)},
    "normalized": {"normalize_rewards": True, "observation_clip": 0.5},
    "termination head": {"termination": True},
    "encoder norm": {"residual": True, "encoder_norm": True},
    "decoder": {"decoder": True, "num_bins": 11, "num_tasks": 2, "task_dim": 4, "observation_dims": (5, 3)},
    "heads": {"num_heads": 3, "residual": True},
}
forms = pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)


def build(options):
    torch.manual_seed(0)
    model = PWMWorldModel(5, 2, latent_dim=16, encoder_units=(12,), units=(12, 12), **options)
    torch.nn.init.normal_(model.reward_network[-1].weight)
    torch.nn.init.normal_(model.dynamics_network[-1].weight)
    rows = max(model.num_tasks, 1)
    model.set_observation_statistics(torch.rand(rows, 5), torch.rand(rows, 5) + 0.5)
    if model.reward_moments is not None:
        model.reward_moments.update(torch.tensor([1.0, 4.0]))
    return model


def assert_same(model, other):
    assert model.constructor_arguments == other.constructor_arguments
    assert list(model.state_dict()) == list(other.state_dict())
    for name, value in model.state_dict().items():
        assert value.equal(other.state_dict()[name]), name
    task = torch.tensor([0, 1, 1, 0]) if model.num_tasks else None
    results = []
    for network in (model, other):
        latent = network.encode_observation(OBSERVATION, task)
        reward = network.decode_reward(network.reward_logits(latent, ACTION, task))
        results.append((latent, network.next_latent(latent, ACTION, task), reward))
    assert all(first.equal(second) for first, second in zip(*results))
    masks = [network.action_masks for network in (model, other)]
    assert masks[0] is masks[1] is None or masks[0].equal(masks[1])


# Files of our own.


def state_dict_file(model, folder):
    torch.save(model.state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


def entry_of_a_file(model, folder):
    save_tensors(folder / "weights.pt", {"model": model.state_dict()})
    return folder / "weights.pt"


def file_of_a_run(model, folder):
    save_tensors(folder / "world_model.pt", model.state_dict())
    return folder


def folder_of_a_checkpoint(model, folder):
    state = {"iteration": 1, "loss_module": {}, "optimization_stepper": {}, "world_model": model.state_dict()}
    save_checkpoint(folder / "checkpoint", state, step=1)
    return folder / "checkpoint"


def file_of_a_checkpoint(model, folder):
    loss = torch.nn.ModuleDict({"world_model": model})
    state = {"iteration": 1, "loss_module": loss.state_dict(), "optimization_stepper": {}}
    return save_checkpoint(folder, state, step=1)


def pretrained_folder(model, folder):
    pytest.importorskip("huggingface_hub")
    model.save_pretrained(folder)
    return folder


def pretrained_agent(model, folder):
    pytest.importorskip("huggingface_hub")
    PWMAgent(model, make_pwm_actor(16, 2), make_value_ensemble(16)).save_pretrained(folder)
    return folder


WRITERS = (
    state_dict_file,
    entry_of_a_file,
    file_of_a_run,
    folder_of_a_checkpoint,
    file_of_a_checkpoint,
    pretrained_folder,
    pretrained_agent,
)


@forms
@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_file_of_our_own_gives_the_model_that_was_written(write, options, tmp_path):
    model = build(options)
    assert_same(model, load_world_model(write(model, tmp_path)))


@forms
def test_a_state_dict_that_is_read_as_published_gives_the_model_it_is_of(options):
    model = build(options)
    assert_same(model, PWMWorldModel.from_tdmpc2(model.state_dict()))


@pytest.mark.parametrize("name", ["simnorm of 4", "residual", "another range", "tasks"])
@pytest.mark.parametrize("layout", ["new", "old"])
def test_checkpoints_in_td_mpc2s_layout_carry_the_arguments(name, layout, tmp_path):
    model = build({"num_bins": 11, **FORMS[name]})
    whole = TDMPC2Model(model, num_q=2)
    save_tensors(tmp_path / "model.pt", whole.to_checkpoint(layout, statistics=True))
    assert_same(model, load_world_model(tmp_path / "model.pt"))
    again = TDMPC2Model.from_checkpoint(tmp_path / "model.pt", action_dims=FORMS[name].get("action_dims"))
    assert_same(model, again.world_model)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    assert_same(model, load_world_model(tmp_path / "state.pt"))


def test_arguments_that_contradict_the_file_are_refused(tmp_path):
    file = state_dict_file(build({"simnorm_dim": 4}), tmp_path)
    for read in (load_world_model, PWMWorldModel.from_tdmpc2):
        with pytest.raises(ValueError, match="made with other arguments than simnorm_dim=2"):
            read(file, simnorm_dim=2)


@pytest.mark.parametrize("name", ["simnorm of 4", "residual", "another range", "normalized"])
@pytest.mark.parametrize("strict", [True, False])
def test_weights_under_which_other_arguments_compute_something_else_are_refused(name, strict):
    model = build(FORMS[name])
    other = build({key: value for key, value in FORMS[name].items() if key in ("num_bins", "normalize_rewards")})
    with pytest.raises(RuntimeError, match=r"The weights are of a PWMWorldModel with \w+=.* \(here "):
        other.load_state_dict(model.state_dict(), strict=strict)


def test_a_subclass_keeps_the_arguments_of_its_base():
    class Mine(PWMWorldModel):
        def __init__(self, extra):
            super().__init__(5, 2, latent_dim=16, units=(8,), simnorm_dim=4)
            self.extra = extra

    model = Mine(3)
    assert_same(PWMWorldModel.from_tdmpc2(model.state_dict()), PWMWorldModel.from_tdmpc2(model.state_dict()))
    assert model.constructor_arguments["simnorm_dim"] == 4


# Files of earlier versions, which hold no arguments.


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("finished/pwm_online/world_model.pt", {"residual": True, "simnorm_dim": 0, "normalize_rewards": True}),
        ("finished/pwm_online", {"residual": True, "simnorm_dim": 0, "normalize_rewards": True}),
        ("pwm_online/interrupted/checkpoint", {"residual": True, "simnorm_dim": 0, "observation_dim": 5}),
        ("pwm_online/interrupted", {"residual": True, "simnorm_dim": 0, "observation_dim": 5}),
        ("mt80/interrupted/world_model/world_model.pt", {"num_tasks": 80, "num_bins": 101, "residual": False}),
        ("mt80/interrupted/world_model/checkpoint", {"num_tasks": 80, "num_bins": 101}),
        ("tdmpc2_mt80/interrupted", {"num_tasks": 80, "num_bins": 101}),
        ("tdmpc2_online/interrupted", {"num_tasks": 0, "num_bins": 101}),
    ],
)
def test_files_of_earlier_runs_are_read_with_their_runs_configuration(path, arguments):
    pytest.importorskip("yaml")
    model = load_world_model(RUNS / path)
    assert arguments.items() <= model.constructor_arguments.items()
    assert model.observation_mean is None or model.observation_mean.isfinite().all()


def test_an_earlier_file_without_its_run_asks_for_the_arguments(tmp_path):
    shutil.copy(RUNS / "finished/pwm_online/world_model.pt", tmp_path / "world_model.pt")
    with pytest.raises(ValueError, match=r"earlier version.*load_world_model\(path, simnorm_dim=0, residual=True\)"):
        load_world_model(tmp_path / "world_model.pt")
    pytest.importorskip("yaml")
    given = load_world_model(tmp_path / "world_model.pt", simnorm_dim=0, residual=True)
    assert_same_on_five(load_world_model(RUNS / "finished/pwm_online"), given)


def assert_same_on_five(model, other):
    latents = [network.encode_observation(OBSERVATION) for network in (model, other)]
    assert latents[0].equal(latents[1])


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("shac/interrupted/checkpoint", ValueError, "checkpoint of a training without a world model of its own"),
        ("finished/shac", FileNotFoundError, "No world model in"),
        ("finished/shac/policy.pt", ValueError, "unknown keys"),
        ("mt80/interrupted/policies/pendulum-swingup/seed-0", ValueError, "without a world model of its own"),
    ],
)
def test_what_holds_no_world_model_is_refused(path, error, message):
    with pytest.raises(error, match=message):
        load_world_model(RUNS / path)


# What was published.


@pytest.mark.parametrize("layout", ["old", "new"])
@pytest.mark.parametrize("kind", ["single", "multi"])
def test_published_checkpoints_of_td_mpc2_are_read(golden, layout, kind, tmp_path):
    case = golden(f"tdmpc2_checkpoint_{layout}")[kind]
    torch.save({"model": as_published(case)}, tmp_path / "model.pt")
    check_outputs(load_world_model(tmp_path / "model.pt"), case)


@pytest.mark.parametrize("name", ["world_model_single", "world_model_multitask"])
def test_published_world_models_of_pwm_are_read(golden, name, tmp_path):
    fixture = golden(name)
    torch.save(fixture["model"], tmp_path / "model.pt")
    model = load_world_model(tmp_path / "model.pt")
    out = fixture["outputs"].get("mixed", fixture["outputs"])
    latent = model.encode_observation(fixture["inputs"]["obs"], out.get("task"))
    torch.testing.assert_close(latent, out["z"], **FORWARD)


def test_a_published_model_without_the_published_groups_is_read_if_that_is_said(golden, tmp_path):
    torch.save(golden("world_model_single")["model"], tmp_path / "model.pt")
    model = load_world_model(tmp_path / "model.pt", simnorm_dim=4)
    latent = model.encode_observation(golden("world_model_single")["inputs"]["obs"])
    torch.testing.assert_close(latent.unflatten(-1, (-1, 4)).sum(-1), torch.ones(len(latent), latent.shape[-1] // 4))


def test_agent_files_of_pwm_are_read(golden, tmp_path):
    expected = golden("pwm_agent_expected")
    model = load_world_model(GOLDEN / "pwm_agent_checkpoint.pt")
    torch.testing.assert_close(model.encode_observation(expected["observation"]), expected["latent"], **FORWARD)
    save_pwm_agent(tmp_path / "agent.pt", 5, 1)
    assert load_world_model(tmp_path / "agent.pt").observation_mean is None


def test_the_quickstart_is_read():
    model = load_world_model(Path(__file__).parents[2] / "torchrl_pwm" / "assets" / "quickstart.safetensors")
    quick = PWMWorldModel.from_quickstart()
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), quick.state_dict().values()))


def test_action_sizes_can_be_given(golden, tmp_path):
    torch.save(as_published(golden("tdmpc2_checkpoint_old")["multi"]), tmp_path / "model.pt")
    assert load_world_model(tmp_path / "model.pt").action_masks is None
    model = load_world_model(tmp_path / "model.pt", action_dims=(4, 2, 1))
    assert model.action_masks.sum(-1).tolist() == [4, 2, 1]
    file = state_dict_file(build(FORMS["tasks"]), tmp_path)
    assert load_world_model(file, action_dims=(1, 1)).action_masks.sum(-1).tolist() == [1, 1]


def test_a_termination_head_that_was_added_is_carried(tmp_path):
    model = build({})
    model.add_termination_head()
    assert_same(model, load_world_model(state_dict_file(model, tmp_path)))


@pytest.mark.parametrize("write", [state_dict_file, pretrained_folder], ids=lambda write: write.__name__)
def test_an_argument_that_the_constructor_does_not_know_is_named(write, tmp_path):
    file = write(build({}), tmp_path)
    with pytest.raises((ValueError, TypeError), match="colour"):
        load_world_model(file, colour="red")


def test_weights_that_are_not_finite_are_named(tmp_path):
    state = PWMWorldModel(5, 2, latent_dim=16, units=(32, 32)).state_dict()
    name = next(key for key in state if "dynamics" in key and key.endswith("weight"))
    state[name] = state[name].clone().index_fill_(0, torch.tensor(1), torch.nan)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(DamagedFileError, match=rf"model.pt holds numbers that are not finite in {name}"):
        load_world_model(tmp_path / "model.pt")
