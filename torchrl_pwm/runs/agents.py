"""Runs that begin with a checkpoint: an agent is evaluated or trained further, or a policy extracted in its model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from torchrl.envs import EnvBase

from torchrl_pwm._utils.errors import DamagedFileError
from torchrl_pwm.modules import PWMAgent, PWMWorldModel, load_world_model
from torchrl_pwm.modules.agent_files import is_agent, read_agent_file
from torchrl_pwm.modules.hub import CONFIG_FILE, class_of, load_folder, read_config
from torchrl_pwm.objectives import PWMLoss
from torchrl_pwm.runs.configs import ActorConfig, ValueEnsembleConfig, WorldModelConfig
from torchrl_pwm.runs.evaluator import EvaluatedRun
from torchrl_pwm.runs.folder import claim_folder
from torchrl_pwm.trainers.agents import load_agent
from torchrl_pwm.trainers.pwm import OnlinePWMOptimizationStepper

STAGES = ("evaluation", "extraction", "online")
#: What the policy of a checkpoint is called among the outcomes of a run.
GIVEN = "policy of the checkpoint"


@dataclasses.dataclass(frozen=True)
class Given:
    """What a run begins with: a world model, and the agent that it is of, if there is one."""

    world_model: PWMWorldModel
    agent: PWMAgent | None
    config: DictConfig

    @property
    def first_policy(self) -> str:
        """What the policy is called that a run begins with."""
        return "untrained policy" if self._new_policy else GIVEN

    @property
    def _new_policy(self) -> bool:
        return self.agent is None or self.config.stage == "extraction"

    def check(self, env: EnvBase) -> None:
        """Raises ValueError if observations or actions of the env are of other sizes than the checkpoint's."""
        model = self.world_model
        found = (env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1])
        if found != (model.observation_dim, model.action_dim):
            raise ValueError(
                f"{self.config.checkpoint} is for observations of {model.observation_dim} and actions of "
                f"{model.action_dim} entries, the env has {found[0]} and {found[1]}: choose the env it was trained in"
            )

    def put_into(self, model: PWMWorldModel, loss: PWMLoss) -> None:
        """Gives new networks the weights of the checkpoint."""
        model.load_state_dict(self.world_model.state_dict())
        if self.agent is not None and not self._new_policy:
            loss.actor_network.load_state_dict(self.agent.actor.state_dict())
            loss.value_network.load_state_dict(self.agent.critics.state_dict())
            loss.restart_targets()

    def put_into_steppers(self, loss: PWMLoss, stepper: OnlinePWMOptimizationStepper) -> None:
        """Gives the optimisation what the agent's had come to; a new policy begins with a new one."""
        if self.agent is not None and not self._new_policy:
            load_agent(self.agent, loss, stepper.policy_stepper, stepper.model_stepper)

    def evaluate(self, run: EvaluatedRun, loss: PWMLoss, model: PWMWorldModel) -> Path:
        """The summary of a run that trains nothing."""
        claim_folder(self.config, run.folder)
        return run.finish({"policy.pt": loss.actor_network, "world_model.pt": model}, steps=0, panels={})


def open_given(config: DictConfig) -> Given:
    """Opens ``config.checkpoint``, and gives the configuration the sizes that it has.

    Raises:
        FileNotFoundError, DamagedFileError, ValueError: if it cannot be read, or does not fit the stage.
    """
    agent, model = _open(Path(config.checkpoint))
    if model.num_tasks:
        raise ValueError(
            f"{config.checkpoint} is a model of {model.num_tasks} tasks, a run in one env needs one of a single task: "
            "extract policies from it with torchrl-pwm mt80"
        )
    if agent is None and config.stage == "evaluation":
        raise ValueError(
            f"{config.checkpoint} holds a world model without a policy, of which there is nothing to evaluate: choose "
            "stage=extraction"
        )
    config = config.copy()
    sections: dict[str, tuple[type, dict[str, Any]]] = {"model": (WorldModelConfig, model.constructor_arguments)}
    if agent is not None and config.stage != "extraction":
        arguments = agent.constructor_arguments
        sections |= {"actor": (ActorConfig, arguments["actor"]), "value": (ValueEnsembleConfig, arguments["critics"])}
    with open_dict(config):
        for name, (kind, arguments) in sections.items():
            known = {field.name for field in dataclasses.fields(kind)}
            config[name] = OmegaConf.structured(kind(**{key: arguments[key] for key in arguments.keys() & known}))
        # The encoder has learnt to read observations as the file says.
        config.normalize_observations = False
        if config.stage == "evaluation":
            config.iterations = 0
        if config.stage != "online":
            config.warmup_updates = config.online.model_updates = 0
    return Given(model, agent, config)


def _open(path: Path) -> tuple[PWMAgent | None, PWMWorldModel]:
    """The agent in a file or folder and its world model, or a world model alone."""
    agent: PWMAgent | None = None
    if path.is_dir() and (path / CONFIG_FILE).is_file() and class_of(read_config(path)) == PWMAgent.__name__:
        agent = load_folder(PWMAgent, path)
    elif path.is_file():
        try:
            found = is_agent(read_agent_file(path))
        except DamagedFileError:
            found = False  # a safetensors file, or what load_world_model says
        agent = PWMAgent.from_pwm(path) if found else None
    if agent is None:
        return None, load_world_model(path)
    if agent.world_model is None:
        raise ValueError(
            f"{path} is an agent of SHAC, which has no world model: its policy acts by PWMAgent.from_pwm(path).policy"
        )
    return agent, agent.world_model
