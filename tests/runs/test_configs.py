"""Every option of every component can be configured, and the command lines of the docs mean what they say."""

from __future__ import annotations

import dataclasses
import importlib
import inspect

import pytest

pytest.importorskip("hydra")

from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from torchrl_pwm import PWMWorldModel, PWMWorldModelLoss
from torchrl_pwm.modules import load_quickstart
from torchrl_pwm.runs import configs
from torchrl_pwm.runs.cli import command_config, default_evaluation, default_preset, published_agent

# What is passed as an object when a component is built, not configured.
POSITIONAL = {
    configs.PWMWorldModelLossConfig: {"world_model"},
    configs.FirstOrderLossConfig: {"actor_network", "value_network"},
    configs.PWMLossConfig: {"actor_network", "value_network", "world_model"},
    configs.SHACLossConfig: {"actor_network", "value_network"},
    configs.PWMStepperConfig: {"loss_module"},
    configs.SHACStepperConfig: {"loss_module"},
    configs.WorldModelStepperConfig: {"loss_module"},
    configs.TDMPC2ModelConfig: {"world_model"},
    configs.TDMPC2LossConfig: {"model"},
    configs.TDMPC2PlannerConfig: {"model"},
    configs.TDMPC2StepperConfig: {"loss_module"},
    configs.OnlinePWMStepperConfig: {"loss_module", "model_loss", "replay_buffer"},
    configs.OnlinePWMTrainerConfig: {"loss_module", "model_loss", "collector", "replay_buffer"},
    configs.PWMTrainerConfig: {"loss_module", "replay_buffer"},
    configs.OnlineTDMPC2StepperConfig: {"loss_module", "replay_buffer"},
    configs.OnlineTDMPC2TrainerConfig: {"loss_module", "collector", "replay_buffer"},
    configs.TDMPC2TrainerConfig: {"loss_module", "replay_buffer"},
    configs.WorldModelTrainerConfig: {"loss_module", "replay_buffer"},
    configs.SHACTrainerConfig: {"loss_module", "env"},
}
COMPONENTS = [
    config
    for config in vars(configs).values()
    if dataclasses.is_dataclass(config) and "_target_" in {field.name for field in dataclasses.fields(config)}
]


def keywords(target):
    """Keyword arguments and defaults, with those that a trainer or a preset hands on."""
    # Of the constructor itself: TorchRL's metaclasses hide it.
    parameters = dict(inspect.signature(target.__init__ if inspect.isclass(target) else target).parameters)
    parameters.pop("self", None)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        preset = target == PWMWorldModel.from_preset
        for further in (PWMWorldModel,) if preset else bases_of_this_package(target):
            parameters = {**inspect.signature(further.__init__).parameters, **parameters}
        parameters.pop("self")
        parameters.pop("source", None)
    return {name: p for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def bases_of_this_package(target):
    return [base for base in target.__mro__[1:] if base.__module__.startswith("torchrl_pwm.")]


def plain(value):
    return list(value) if isinstance(value, (tuple, list)) else value


def test_all_components_are_here():
    assert len(COMPONENTS) >= 10


@pytest.mark.parametrize("config", COMPONENTS, ids=lambda config: config.__name__)
def test_every_keyword_is_a_field_with_the_same_default(config):
    fields = {name: value for name, value in dataclasses.asdict(config()).items() if name != "_target_"}
    expected = keywords(get_object(config._target_))
    expected = {name: p for name, p in expected.items() if name not in POSITIONAL.get(config, ())}
    # A preset is a choice of these.
    chosen = {"latent_dim", "encoder_units", "units"} if config is configs.PresetConfig else set()
    assert set(fields) == set(expected) - chosen
    for name, parameter in expected.items():
        if parameter.default is not parameter.empty and name not in chosen | KNOWN_OTHER.get(config, set()):
            assert plain(fields[name]) == plain(parameter.default), name


# Multi-task heads have bins, and the presets are multi-task; the constructor's own default is a scalar head.
KNOWN_OTHER = {configs.WorldModelConfig: {"num_bins"}}


@pytest.mark.parametrize("config", COMPONENTS, ids=lambda config: config.__name__)
def test_targets_are_public_names(config):
    module, _, name = config._target_.removesuffix(".from_preset").rpartition(".")
    assert name in importlib.import_module(module).__all__


def composed(*arguments):
    return command_config("mt80", arguments)


def assert_published(config):
    assert (config.world_model.batch_size, config.world_model.slice_len) == (1024, 16)
    assert config.world_model.normalize_observations is False
    assert (config.extraction.iterations, config.extraction.batch_size) == (10_000, 512)
    assert (config.extraction.gamma, config.extraction.lmbda, config.extraction.select) == (0.99, 0.95, "last")
    assert list(config.actor.units) == [400, 200, 100] and list(config.value.units) == [400, 200]
    assert config.value.num_nets == 3
    assert (config.loss.horizon, config.loss.detach_latent, config.loss.reward_space) == (16, True, "symlog")
    assert config.loss.normalize_returns is True and config.loss.mask_actions is False
    stepper = config.stepper
    assert (stepper.actor_lr, stepper.critic_lr, stepper.final_lr) == (5e-4, 5e-4, 1e-5)
    assert list(stepper.betas) == [0.7, 0.95]
    assert (stepper.actor_clip, stepper.critic_clip) == (1.0, 100.0)
    assert (stepper.critic_iterations, stepper.critic_batches) == (8, 4)
    model = config.model_stepper
    assert (model.lr, model.final_lr, model.encoder_lr_scale, model.clip) == (3e-4, None, 0.3, 20.0)
    loss = config.model_loss
    assert (loss.consistency_coef, loss.reward_coef, loss.rho) == (20.0, 0.1, 0.99)


@pytest.mark.parametrize("command", ["mt80", "make-quickstart"])
def test_a_grounded_model_is_the_small_one_with_four_options(command):
    start = ["preset=from_scratch"] if command == "mt80" else []
    small, grounded = (command_config(command, [*start, f"model={name}"]).model for name in ("small", "grounded"))
    changed = {key: value for key, value in grounded.items() if small[key] != value}
    assert changed == {"residual": True, "encoder_norm": True, "decoder": True, "num_heads": 4}


@pytest.mark.parametrize("preset", ["grounded", "mini"])
def test_plain_extraction_has_no_crutch(preset):
    config = composed(f"preset={preset}")
    warm = config.extraction.warm_start
    assert (warm.behavior_updates, warm.value_updates, config.loss.behavior_coef, config.checkpoint) == (
        0,
        0,
        0.0,
        None,
    )
    assert (config.rounds.warm, config.rounds.keep, config.extraction.select) == (True, "best", "last")
    assert config.rounds.count >= 2 and config.loss.mask_actions and config.model.decoder


def test_published_data_bring_the_published_settings():
    line = ["task_set=mt80", "data=published", "data.root=/data/mt80", "model=48M", "task=walker-run"]
    config = composed(*line)
    assert_published(config)
    assert (config.data.source, config.data.root) == ("published", "/data/mt80")
    assert (config.model._target_, config.model.preset) == ("torchrl_pwm.PWMWorldModel.from_preset", "48M")
    assert (config.task_set, config.task, config.seeds) == ("mt80", "walker-run", 1)


def test_a_published_checkpoint_brings_the_published_settings():
    config = composed("checkpoint=mt80-48M.pt", "task=mt80", "seeds=3")
    assert_published(config)
    assert (config.checkpoint, config.task, config.seeds) == ("mt80-48M.pt", "mt80", 3)


def test_a_preset_that_is_named_goes_first():
    config = composed("checkpoint=mine.pt", "preset=from_scratch")
    assert config.extraction.batch_size < 512
    assert default_preset(["task=mw-reach"]) == []


def test_without_arguments_policies_come_from_the_model_of_the_package():
    config = composed()
    assert (config.checkpoint, config.data.source) == ("quickstart", "quickstart")
    assert tuple(config.task) == load_quickstart().tasks
    assert config.extraction.iterations < 10_000 and config.rounds.count == 0


def test_data_of_ones_own_call_for_a_model_from_scratch():
    for data in ("collect", "open"):
        line = [f"data={data}", *(["data.root=mine"] if data == "open" else [])]
        assert default_preset(line) == ["preset=from_scratch"]
    assert default_preset(["checkpoint=quickstart"]) == []


def test_a_small_model_is_trained_from_scratch():
    config = composed("preset=from_scratch")
    assert config.data.source == "collect"
    assert (config.checkpoint, config.resume, config.device, config.logger) == (None, None, None, "csv")
    assert config.model._target_ == "torchrl_pwm.PWMWorldModel" and config.model.latent_dim < 512
    assert config.world_model.batch_size < 1024 and config.extraction.iterations < 10_000
    suites = {name.startswith("mw-") for name in config.task}
    assert suites == {True, False}, "at least one DMControl and one Meta-World task"


def test_a_resumed_run_is_named_by_its_folder():
    assert composed("resume=runs/2026-11-21_walker-run").resume == "runs/2026-11-21_walker-run"


def test_an_option_of_the_command_line_goes_before_the_preset():
    small = ["extraction.batch_size=7", "model.latent_dim=24", "stepper.critic_iterations=5"]
    config = composed("preset=from_scratch", *small)
    assert (config.extraction.batch_size, config.model.latent_dim, config.stepper.critic_iterations) == (7, 24, 5)


@pytest.mark.parametrize("model", ["5M", "19M", "48M", "317M", "small", "custom"])
def test_every_model_of_the_group_is_built(model):
    config = composed(f"model={model}", "preset=published", *(["model.task_dim=8"] if model == "custom" else []))
    sizes = {"observation_dim": 39, "action_dim": 6, "num_tasks": 80, "action_dims": [6] * 80}
    if model == "317M":
        # Half a gigabyte: its sizes are enough.
        assert config.model.preset == "317M"
        return
    built = instantiate(config.model, **sizes)
    assert isinstance(built, PWMWorldModel)
    assert (built.observation_dim, built.action_dim, built.num_tasks, built.num_bins) == (39, 6, 80, 101)


def test_every_component_is_built_from_its_group():
    config = composed("model=small", "model.latent_dim=16", "model.units=[16]", "model.encoder_units=[16]")
    model = instantiate(config.model, observation_dim=39, action_dim=6, num_tasks=80, action_dims=[6] * 80)
    actor = instantiate(config.actor, latent_dim=16, action_dim=6)
    value = instantiate(config.value, latent_dim=16)
    loss = instantiate(config.loss, actor, value, model)
    assert loss.horizon == config.loss.horizon
    stepper = instantiate(config.stepper, loss, iterations=3)
    assert stepper.critic_iterations == config.stepper.critic_iterations
    model_loss = instantiate(config.model_loss, model)
    assert isinstance(model_loss, PWMWorldModelLoss)
    assert instantiate(config.model_stepper, model_loss, iterations=3).clip == config.model_stepper.clip
    trainer = OmegaConf.structured(configs.PWMTrainerConfig(progress_bar=False, iterations=3))
    assert instantiate(trainer, loss, None).iterations == 3


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("loss", "first_order"),
        ("replay", "tdmpc2"),
        ("trainer", "pwm"),
        ("model_trainer", "pwm"),
        ("loss", "shac"),
        ("stepper", "shac"),
        ("trainer", "shac"),
        ("normalizer", "moments"),
        ("loss", "tdmpc2"),
        ("planner", "tdmpc2"),
        ("stepper", "tdmpc2"),
    ],
)
def test_further_groups_are_in_the_store(group, name):
    from hydra.core.config_store import ConfigStore

    assert f"{name}.yaml" in ConfigStore.instance().list(group)


def test_a_checkpoint_of_null_is_none():
    for implied in (published_agent, default_evaluation):
        assert implied(["checkpoint=null"]) == implied(["checkpoint="]) == implied([]) == []
        assert len(implied(["checkpoint=agent.pt"])) == 2
    assert published_agent(["checkpoint=agent.pt", "pwm=analytic/cartpole_swingup"]) == ["pretraining.updates=0"]
