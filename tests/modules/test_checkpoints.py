"""Published checkpoints; the current layout also holds bookkeeping entries that are no tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from torchrl_pwm import DamagedFileError, PWMWorldModel

FORWARD = {"rtol": 1e-4, "atol": 1e-5}
LAYOUTS = [("old", "single"), ("old", "multi"), ("new", "single"), ("new", "multi")]


def as_published(case):
    """The state dict as the original code saves it, bookkeeping included."""
    if "checkpoint" in case:
        return case["checkpoint"]["model"]
    values = {
        name: None if value == "None" else torch.Size(value) for name, value in case["non_tensor_entries"].items()
    }
    return {**case["model"], **values}


@pytest.fixture(params=LAYOUTS, ids="-".join)
def case(golden, request):
    layout, kind = request.param
    return golden(f"tdmpc2_checkpoint_{layout}")[kind]


def check_outputs(model, case, **kwargs):
    inputs = case["inputs"]
    task = inputs.get("task")
    for outputs in (case.get("outputs_tdmpc2"), case.get("outputs_pwm"), case.get("outputs")):
        if outputs is None:
            continue
        z = model.encode_observation(inputs["obs"], task)
        torch.testing.assert_close(z, outputs["z"], **FORWARD)
        torch.testing.assert_close(model.next_latent(z, inputs["action"], task), outputs["z_next"], **FORWARD)
        logits = model.reward_logits(z, inputs["action"], task)
        torch.testing.assert_close(logits, outputs["reward_logits"], **FORWARD)
        torch.testing.assert_close(model.decode_reward(logits), outputs["reward"], **FORWARD)
        if "reward_symlog" in outputs:
            torch.testing.assert_close(model.decode_reward(logits, "symlog"), outputs["reward_symlog"], **FORWARD)
        if "next_3d" in outputs:
            z, action = inputs["z_3d"], inputs["action_3d"]
            torch.testing.assert_close(model.next_latent(z, action, task), outputs["next_3d"], **FORWARD)
            torch.testing.assert_close(model.reward_logits(z, action, task), outputs["reward_logits_3d"], **FORWARD)


@pytest.mark.parametrize("form", ["state dict", "model entry", "path", "str path", "state dict file"])
def test_published_checkpoints_give_the_published_outputs(case, form, tmp_path):
    source = as_published(case)
    if form in ("model entry", "path", "str path"):
        source = {"model": source}
    if "path" in form or "file" in form:
        torch.save(source, tmp_path / "model.pt")
        source = str(tmp_path / "model.pt") if form == "str path" else tmp_path / "model.pt"
    check_outputs(PWMWorldModel.from_tdmpc2(source), case)


def test_every_size_is_inferred(case):
    config, model = case["config"], PWMWorldModel.from_tdmpc2(as_published(case))
    assert model.observation_dim == config["obs_dim"]
    assert model.action_dim == config.get("act_dim", config.get("action_dim"))
    assert model.latent_dim == config["latent_dim"]
    assert model.num_bins == config["num_bins"]
    assert model.num_tasks == (3 if config["multitask"] else 0)
    assert model.task_dim == (config["task_dim"] if config["multitask"] else 0)
    assert len(model.encoder_network) == config["num_enc_layers"]


def test_the_result_has_the_keys_of_the_published_conversion(golden):
    for case in golden("tdmpc2_checkpoint_old").values():
        model = PWMWorldModel.from_tdmpc2(as_published(case))
        assert list(model.state_dict()) == case["pwm_state_dict_keys"]


@pytest.mark.parametrize("name", ["world_model_single", "world_model_multitask"])
def test_a_pwm_state_dict_is_read_too(golden, name):
    fixture = golden(name)
    model = PWMWorldModel.from_tdmpc2(fixture["model"])
    assert model.num_bins == fixture["config"].get("num_bins")
    out = fixture["outputs"].get("mixed", fixture["outputs"])
    z = model.encode_observation(fixture["inputs"]["obs"], out.get("task"))
    torch.testing.assert_close(z, out["z"], **FORWARD)
    for key, value in model.state_dict().items():
        if key != "_task_emb.weight":
            torch.testing.assert_close(value, fixture["model"][key], rtol=0, atol=0)


def test_what_the_weights_do_not_tell_can_be_given(golden):
    case = golden("tdmpc2_checkpoint_old")["single"]
    model = PWMWorldModel.from_tdmpc2(as_published(case), simnorm_dim=4, vmin=-2.0, vmax=2.0)
    z = model.encode_observation(case["inputs"]["obs"])
    torch.testing.assert_close(z.unflatten(-1, (-1, 4)).sum(-1), torch.ones(6, 6))
    assert (model.codec.vmin, model.codec.vmax) == (-2.0, 2.0)


def test_the_model_owns_its_weights(golden):
    state = as_published(golden("tdmpc2_checkpoint_old")["single"])
    before = state["_dynamics.0.weight"].clone()
    model = PWMWorldModel.from_tdmpc2(state)
    torch.nn.init.zeros_(model.dynamics_network[0].weight)
    torch.testing.assert_close(state["_dynamics.0.weight"], before)


# Action sizes.


def test_action_masks_come_from_the_checkpoint_that_has_them(golden):
    model = PWMWorldModel.from_tdmpc2(as_published(golden("tdmpc2_checkpoint_new")["multi"]))
    assert model.action_masks.sum(-1).tolist() == [4, 1, 3]


def test_action_dims_can_be_given(golden):
    state = as_published(golden("tdmpc2_checkpoint_old")["multi"])
    assert PWMWorldModel.from_tdmpc2(state).action_masks is None
    assert PWMWorldModel.from_tdmpc2(state, action_dims=(4, 2, 1)).action_masks.sum(-1).tolist() == [4, 2, 1]


@pytest.mark.parametrize("action_dims", [(4, 2), (4, 2, 5), (0, 2, 4)])
def test_action_dims_that_do_not_fit_are_refused(golden, action_dims):
    state = as_published(golden("tdmpc2_checkpoint_old")["multi"])
    with pytest.raises(ValueError, match="one size between 1 and 4 for each of 3 task"):
        PWMWorldModel.from_tdmpc2(state, action_dims=action_dims)


# Files that are not what they should be.


def test_an_unknown_layout_is_refused_with_the_offending_keys(golden):
    state = as_published(golden("tdmpc2_checkpoint_old")["single"])
    with pytest.raises(ValueError, match=r"Unknown checkpoint layout.*'_decoder\.0\.weight', 'extra'"):
        PWMWorldModel.from_tdmpc2({**state, "_decoder.0.weight": torch.zeros(1), "extra": torch.zeros(1)})


def test_a_pixel_checkpoint_is_refused(golden):
    state = dict(as_published(golden("tdmpc2_checkpoint_old")["single"]))
    for key in [key for key in state if key.startswith("_encoder.state.")]:
        state[key.replace("state", "rgb")] = state.pop(key)
    with pytest.raises(ValueError, match=r"state observations.*_encoder\.rgb\.0\.weight"):
        PWMWorldModel.from_tdmpc2(state)


@pytest.mark.parametrize(
    "lost", ["_dynamics.1.weight", "_reward.2.bias", "_encoder.state.0.ln.bias", "_dynamics.1.ln.weight"]
)
def test_a_missing_entry_is_named(golden, lost):
    state = dict(as_published(golden("tdmpc2_checkpoint_old")["single"]))
    del state[lost]
    with pytest.raises(ValueError, match=lost.replace("state.", "").replace(".", r"\.")):
        PWMWorldModel.from_tdmpc2(state)


@pytest.mark.parametrize("part", ["_encoder", "_dynamics", "_reward"])
def test_a_missing_part_is_named(golden, part):
    state = {k: v for k, v in as_published(golden("tdmpc2_checkpoint_old")["single"]).items() if not k.startswith(part)}
    with pytest.raises(ValueError, match=f"under {part}, found none"):
        PWMWorldModel.from_tdmpc2(state)


def test_a_layer_of_another_width_is_refused(golden):
    state = dict(as_published(golden("tdmpc2_checkpoint_old")["single"]))
    state["_dynamics.1.weight"] = torch.zeros(7, 32)
    with pytest.raises((ValueError, RuntimeError), match=r"_dynamics\.1|size mismatch"):
        PWMWorldModel.from_tdmpc2(state)


def test_something_else_than_a_state_dict_is_refused(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="found list"):
        PWMWorldModel.from_tdmpc2(tmp_path / "list.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No checkpoint at .*nowhere\.pt"):
        PWMWorldModel.from_tdmpc2(tmp_path / "nowhere.pt")


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_code_in_a_checkpoint_is_not_executed(golden, tmp_path):
    state, mark = as_published(golden("tdmpc2_checkpoint_old")["single"]), tmp_path / "executed"
    torch.save({"model": {**state, "_pi.9.weight": Touch(mark)}}, tmp_path / "hostile.pt")
    with pytest.raises(DamagedFileError, match=r"hostile\.pt was refused: it refers to getattr"):
        PWMWorldModel.from_tdmpc2(tmp_path / "hostile.pt")
    assert not mark.exists()
    torch.load(tmp_path / "hostile.pt", weights_only=False)
    assert mark.exists(), "the file would not have done anything"
