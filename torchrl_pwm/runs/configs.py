"""Hydra configurations: importing this module registers a dataclass for every component.

Each has the component's ``_target_`` and a field for every keyword, so that ``hydra.utils.instantiate(config, ...)``
builds it; what must be given as an object is passed at that call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore


@dataclass
class ModelConfig:
    """What world models of all sizes share: :class:`torchrl_pwm.PWMWorldModel`."""

    observation_dim: Any = None
    action_dim: Any = None
    simnorm_dim: int = 8
    residual: bool = False
    encoder_norm: bool = False
    num_heads: int = 1
    decoder: bool = False
    num_bins: Any = 101
    vmin: float = -10.0
    vmax: float = 10.0
    num_tasks: Any = 0
    task_dim: Any = 0
    action_dims: Any = None
    observation_dims: Any = None
    normalize_rewards: bool = False
    observation_clip: Any = None
    termination: Any = False
    encoder: Any = None


@dataclass
class WorldModelConfig(ModelConfig):
    _target_: str = "torchrl_pwm.PWMWorldModel"
    latent_dim: int = 512
    encoder_units: list[int] = field(default_factory=lambda: [256])
    units: list[int] = field(default_factory=lambda: [512, 512])


@dataclass
class PresetConfig(ModelConfig):
    _target_: str = "torchrl_pwm.PWMWorldModel.from_preset"
    preset: str = "5M"
    task_dim: Any = None


@dataclass
class ActorConfig:
    _target_: str = "torchrl_pwm.make_pwm_actor"
    latent_dim: Any = None
    action_dim: Any = None
    units: list[int] = field(default_factory=lambda: [400, 200, 100])
    init_log_std: float = -1.0
    min_log_std: float = -1.427
    output_gain: float = 1.0
    in_key: Any = "latent"
    out_key: Any = "action"


@dataclass
class ValueEnsembleConfig:
    _target_: str = "torchrl_pwm.make_value_ensemble"
    latent_dim: Any = None
    units: list[int] = field(default_factory=lambda: [400, 200])
    num_nets: int = 3
    in_key: Any = "latent"
    out_key: Any = "state_value"


@dataclass
class PWMWorldModelLossConfig:
    _target_: str = "torchrl_pwm.PWMWorldModelLoss"
    consistency_coef: float = 20.0
    reward_coef: float = 0.1
    termination_coef: float = 1.0
    decoder_coef: float = 1.0
    rho: float = 0.99
    termination_noise: float = 0.6
    divide_reward_by_horizon: bool = False
    mask_actions: bool = False
    heads: str = "each"
    reduction: str = "mean"


@dataclass
class FirstOrderLossConfig:
    _target_: str = "torchrl_pwm.FirstOrderLoss"
    normalize_returns: bool = True
    bootstrap: str = "standard"
    delay_value: bool = False
    loss_function: str = "l2"
    reduction: str = "mean"


@dataclass
class PWMLossConfig(FirstOrderLossConfig):
    _target_: str = "torchrl_pwm.PWMLoss"
    horizon: int = 16
    detach_latent: bool = True
    reward_space: str = "symlog"
    reward_scale: float = 1.0
    mask_actions: bool = False
    behavior_coef: float = 0.0
    disagreement: Any = None
    disagreement_coef: float = 0.0


@dataclass
class ObservationNormalizerConfig:
    _target_: str = "torchrl_pwm.ObservationNormalizer"
    observation_dim: Any = None
    clip: float = float("inf")
    in_key: Any = "observation"
    out_key: Any = "normalized_observation"


@dataclass
class SHACLossConfig(FirstOrderLossConfig):
    _target_: str = "torchrl_pwm.SHACLoss"
    horizon: int = 32
    normalizer: Any = None


@dataclass
class TDMPC2ModelConfig:
    """:class:`torchrl_pwm.TDMPC2Model`, on a world model."""

    _target_: str = "torchrl_pwm.TDMPC2Model"
    units: Any = None
    num_q: int = 5
    dropout: float = 0.01
    episode_lengths: Any = 500
    episodic: Any = False
    log_std_min: float = -10
    log_std_max: float = 2


@dataclass
class TDMPC2LossConfig:
    _target_: str = "torchrl_pwm.TDMPC2Loss"
    consistency_coef: float = 20.0
    reward_coef: float = 0.1
    value_coef: float = 0.1
    termination_coef: float = 1.0
    entropy_coef: float = 1e-4
    rho: float = 0.5
    entropy: str = "current"
    reduction: str = "mean"


@dataclass
class TDMPC2PlannerConfig:
    _target_: str = "torchrl_pwm.TDMPC2Planner"
    horizon: int = 3
    iterations: Any = None
    num_samples: int = 512
    num_policy_rollouts: int = 24
    num_elites: int = 64
    temperature: float = 0.5
    min_std: float = 0.05
    max_std: float = 2.0
    plan: bool = True
    generator: Any = None
    init_key: Any = "is_init"


@dataclass
class ReplayConfig:
    _target_: str = "torchrl_pwm.TDMPC2ExperienceReplay"
    dataset_id: Any = None
    batch_size: Any = None
    root: Any = None
    slice_len: int = 17
    tasks: Any = None
    episodes: Any = None
    strict_length: bool = True
    download: bool = False
    sampler: Any = None
    writer: Any = None
    collate_fn: Any = None
    pin_memory: bool = False
    prefetch: Any = None
    transform: Any = None
    seed: int = 0
    generator: Any = None
    verify: bool = False
    check_finite: bool = True


@dataclass
class UpdatesConfig:
    """How the updates of all steppers are run."""

    skip_non_finite: bool = False
    check_interval: Any = None
    compile_train_step: Any = None
    compile_mode: str = "default"
    cudagraph: Any = None
    warmup_steps: int = 3
    precision: str = "fp32"


@dataclass
class FirstOrderStepperConfig(UpdatesConfig):
    """What the steppers of PWM and SHAC share."""

    iterations: int = 10_000
    actor_lr: float = 5e-4
    critic_lr: float = 5e-4
    final_lr: float = 1e-5
    betas: Any = (0.7, 0.95)
    actor_clip: float = 1.0
    critic_clip: float = 100.0
    critic_iterations: int = 8
    critic_batches: int = 4
    target_tau: float = 0.8


@dataclass
class PWMStepperConfig(FirstOrderStepperConfig):
    _target_: str = "torchrl_pwm.trainers.PWMOptimizationStepper"
    continued: float = 0.0


@dataclass
class SHACStepperConfig(FirstOrderStepperConfig):
    _target_: str = "torchrl_pwm.trainers.SHACOptimizationStepper"
    iterations: int = 2000
    actor_lr: float = 2e-3
    critic_iterations: int = 16


@dataclass
class ModelUpdatesConfig(UpdatesConfig):
    """What the steppers of world models share."""

    iterations: Any = None
    lr: float = 3e-4
    final_lr: Any = None
    encoder_lr_scale: float = 0.3
    clip: float = 20.0


@dataclass
class WorldModelStepperConfig(ModelUpdatesConfig):
    _target_: str = "torchrl_pwm.trainers.WorldModelOptimizationStepper"
    accumulate: int = 1


@dataclass
class TDMPC2StepperConfig(ModelUpdatesConfig):
    _target_: str = "torchrl_pwm.trainers.TDMPC2OptimizationStepper"
    iterations: int = 10_000
    policy_eps: float = 1e-5
    tau: float = 0.01


@dataclass
class OnlinePWMStepperConfig:
    _target_: str = "torchrl_pwm.trainers.OnlinePWMOptimizationStepper"
    iterations: int = 15_000
    model_updates: int = 8
    policy_updates: int = 1
    start_states: int = 256
    recent_share: float = 0.5
    critic_sequences: int = 0
    model_stepper: Any = None
    policy_stepper: Any = None
    seed: int = 0


@dataclass
class OnlineTDMPC2StepperConfig:
    _target_: str = "torchrl_pwm.trainers.OnlineTDMPC2OptimizationStepper"
    iterations: int = 100_000
    updates: int = 1
    stepper: Any = None


@dataclass
class TrainerConfig:
    """What all trainers share: :class:`torchrl_pwm.trainers.Trainer`."""

    iterations: int = 10_000
    optimization_stepper: Any = None
    logger: Any = None
    log_interval: int = 100
    evaluate: Any = None
    eval_interval: int = 1000
    stopwatch: Any = None
    save_folder: Any = None
    save_interval: int = 1000
    progress_bar: bool = True
    on_log: Any = None


@dataclass
class WorldModelTrainerConfig(TrainerConfig):
    _target_: str = "torchrl_pwm.WorldModelTrainer"
    device: Any = None


@dataclass
class TDMPC2TrainerConfig(WorldModelTrainerConfig):
    _target_: str = "torchrl_pwm.TDMPC2Trainer"


@dataclass
class PWMTrainerConfig(WorldModelTrainerConfig):
    _target_: str = "torchrl_pwm.PWMTrainer"
    average: Any = None
    recorded: Any = None


@dataclass
class SHACTrainerConfig(TrainerConfig):
    _target_: str = "torchrl_pwm.SHACTrainer"
    iterations: int = 2000


@dataclass
class OnlineTrainerConfig(TrainerConfig):
    """What those that collect their own steps share: :class:`torchrl_pwm.trainers.OnlineTrainer`."""

    warmup_steps: int = 0
    warmup_updates: int = 0
    normalize_observations: bool = False
    episode_seed: Any = None


@dataclass
class OnlinePWMTrainerConfig(OnlineTrainerConfig):
    _target_: str = "torchrl_pwm.OnlinePWMTrainer"
    iterations: int = 15_000


@dataclass
class OnlineTDMPC2TrainerConfig(OnlineTrainerConfig):
    _target_: str = "torchrl_pwm.OnlineTDMPC2Trainer"
    iterations: int = 100_000


_NODES: dict[str, dict[str, Any]] = {
    "model": {"custom": WorldModelConfig} | {size: PresetConfig(preset=size) for size in ("5M", "19M", "48M", "317M")},
    **{"heads": {"tdmpc2": TDMPC2ModelConfig}, "actor": {"pwm": ActorConfig}},
    "value": {"ensemble": ValueEnsembleConfig},
    "model_loss": {"pwm": PWMWorldModelLossConfig},
    "loss": {"first_order": FirstOrderLossConfig, "pwm": PWMLossConfig, "shac": SHACLossConfig}
    | {"tdmpc2": TDMPC2LossConfig},
    **{"planner": {"tdmpc2": TDMPC2PlannerConfig}, "normalizer": {"moments": ObservationNormalizerConfig}},
    "replay": {"tdmpc2": ReplayConfig},
    "stepper": {"pwm": PWMStepperConfig, "shac": SHACStepperConfig, "tdmpc2": TDMPC2StepperConfig},
    "model_stepper": {"pwm": WorldModelStepperConfig},
    "online": {"pwm": OnlinePWMStepperConfig, "tdmpc2": OnlineTDMPC2StepperConfig},
    "trainer": {"pwm": PWMTrainerConfig, "tdmpc2": TDMPC2TrainerConfig, "shac": SHACTrainerConfig}
    | {"online_pwm": OnlinePWMTrainerConfig, "online_tdmpc2": OnlineTDMPC2TrainerConfig},
    "model_trainer": {"pwm": WorldModelTrainerConfig},
}

for _group, _name in ((group, name) for group, nodes in _NODES.items() for name in nodes):
    ConfigStore.instance().store(group=_group, name=_name, node=_NODES[_group][_name])


def own_targets() -> set[str]:
    """What these configurations build."""
    return {node._target_ for nodes in _NODES.values() for node in nodes.values()}
