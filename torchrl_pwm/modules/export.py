"""Export of a policy to torch.export and ONNX: tensors in, the deterministic action out, without this package."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import InteractionType, TensorDictModuleBase, set_interaction_type
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import Bounded

from torchrl_pwm._utils.extras import require
from torchrl_pwm._utils.files import replaced_file
from torchrl_pwm.modules.multitask import known_task
from torchrl_pwm.modules.normalizer import ObservationNormalizer
from torchrl_pwm.modules.tdmpc2 import TDMPC2Model
from torchrl_pwm.modules.trained_policy import TrainedPolicy
from torchrl_pwm.modules.world_model import PWMWorldModel

__all__ = ["export_policy"]

#: Name of the metadata in a ``.pt2`` file, and of their one entry in an ``.onnx`` file.
METADATA = "policy.json"
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def export_policy(
    policy: TensorDictModuleBase,
    path: str | os.PathLike[str],
    *,
    task: int | None = None,
    example: TensorDictBase | None = None,
    action_key: NestedKey = "action",
) -> Path:
    """Writes a policy to a file that acts without this package: ``observation`` [B, O] to ``action`` [B, A].

    The action is the deterministic one, and the batch size B is free. The suffix chooses the format:

    - ``.pt2``: ``torch.export.load(path).module()(observation)``, wherever PyTorch is.
    - ``.onnx``: for ONNX Runtime and others, one file without anything beside it.

    Both carry what they read and write as JSON: names, sizes, dtypes and bounds of inputs and action, and the task. A
    ``.pt2`` file has it as the extra file ``policy.json``, an ``.onnx`` file as the metadata entry ``policy.json``.

    Args:
        policy: a policy of :func:`~torchrl_pwm.load_policy`, a :class:`~torchrl_pwm.WorldModelPolicy`, an actor that
            reads the observation, a :class:`~torchrl_pwm.TDMPC2Model` (its policy prior), or any TorchRL module that
            writes an action. It is copied to the CPU and stays as it is.
        path: the file; one that is there is replaced.

    Keyword Args:
        task (int, optional): index of the one task of a multi-task policy that is exported. A policy of
            ``load_policy(run, task=...)`` has one already.
        example (TensorDictBase, optional): a batch [B] of what the policy reads, where that cannot be told from its
            networks, as with pictures or several entries.
        action_key (NestedKey): the entry that it writes.

    Returns:
        The path.

    Raises:
        ValueError: for another suffix, a policy that plans or is recurrent, a multi-task policy without a task, or one
            whose observation size cannot be told.
        ImportError: for ``.onnx`` without the ``export`` extra.

    Examples:
        >>> import tempfile
        >>> from torchrl_pwm import PWMWorldModel, WorldModelPolicy, make_pwm_actor
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> policy = WorldModelPolicy(model, make_pwm_actor(16, 2))
        >>> path = export_policy(policy, tempfile.mkdtemp() + "/policy.pt2")
        >>> torch.export.load(path).module()(torch.randn(7, 5)).shape
        torch.Size([7, 2])
    """
    path = Path(path)
    if path.suffix not in (".pt2", ".onnx"):
        raise ValueError(f"A policy is exported to a file .pt2 or .onnx, found {path.name!r}.")
    if path.suffix == ".onnx":
        for module in ("onnx", "onnxscript"):
            require(module, extra="export", purpose="export to ONNX")
    policy = getattr(policy, "exported_form", policy)
    _refuse_recurrent(policy)
    form = _TensorForm(policy, task=task, example=example, action_key=action_key)
    with _quiet():
        program = torch.export.export(form, form.examples, dynamic_shapes=form.dynamic_shapes)
        with torch.no_grad():
            metadata = json.dumps(form.metadata(program.module()(*form.examples)))
        with replaced_file(path) as temporary:
            if path.suffix == ".pt2":
                with open(temporary, "wb") as file:
                    torch.export.save(program, file, extra_files={METADATA: metadata})
            else:
                converted = torch.onnx.export(
                    program, dynamo=True, input_names=form.names, output_names=["action"], verbose=False
                )
                assert converted is not None
                converted.model.metadata_props[METADATA] = metadata
                converted.save(temporary, external_data=False)
    return path


class _TensorForm(nn.Module):
    """A policy as a function of tensors [B, ...], one for each entry that it reads.

    The copy that it runs is no submodule, so that the weights that the action does not depend on, such as the dynamics
    of a world model, are left behind.
    """

    def __init__(self, policy: Any, *, task: int | None, example: TensorDictBase | None, action_key: NestedKey) -> None:
        super().__init__()
        copied = copy.deepcopy(policy).to("cpu").requires_grad_(False).eval()
        _settle_embeddings(copied)
        self.__dict__["policy"] = copied
        self.task_key, self.task = getattr(policy, "task_key", "task"), task
        if (own := getattr(policy, "task", None)) is not None:
            if task not in (None, own):
                raise ValueError(f"The policy is of task {own}, found task={task}.")
            self.task = own
        self.action_key = action_key
        self.keys = [key for key in policy.in_keys if key != self.task_key]
        self.needs_task = self.task_key in policy.in_keys
        if self.needs_task and self.task is None:
            raise ValueError(
                "A multi-task policy is exported for one task: give its index with task=..., or load it with "
                "load_policy(run, task=NAME)."
            )
        if self.task is not None and own is None:
            tasks = [module.num_tasks for module in policy.modules() if isinstance(module, PWMWorldModel)]
            if not self.needs_task or tasks == [0]:
                raise ValueError(f"The policy has no tasks, found task={task}.")
            if tasks:
                known_task(self.task, tasks[0])
        self.names = ["_".join(key) if isinstance(key, tuple) else key for key in self.keys]
        self.task_name = getattr(policy, "task_name", None)
        self.bounds = _bounds(policy, action_key)
        self.stands_for = getattr(policy, "action_bounds", None)
        self.examples = self._examples(policy, example)
        batch = torch.export.Dim("batch")
        self.dynamic_shapes = (tuple({0: batch} for _ in self.keys),)
        self.eval()

    def forward(self, *inputs: Tensor) -> Tensor:
        policy: Any = self.__dict__["policy"]
        tensordict = TensorDict(dict(zip(self.keys, inputs)), inputs[0].shape[:1])
        if self.needs_task:
            tensordict.set(self.task_key, torch.tensor(self.task).expand(inputs[0].shape[:1]))
        with set_interaction_type(InteractionType.DETERMINISTIC):
            return policy(tensordict).get(self.action_key)

    def metadata(self, action: Tensor) -> dict[str, Any]:
        """What the file says of itself, with an action [B, A]."""
        low, high = self.bounds
        dtype = {tensor: str(tensor.dtype).removeprefix("torch.") for tensor in (*self.examples, action)}
        return {
            "inputs": [
                {"name": name, "shape": ["batch", *example.shape[1:]], "dtype": dtype[example]}
                for name, example in zip(self.names, self.examples)
            ],
            "action": {
                "name": "action",
                "shape": ["batch", *action.shape[1:]],
                "dtype": dtype[action],
                "low": _of_entries(low, action),
                "high": _of_entries(high, action),
                "data_low": None if self.stands_for is None else list(self.stands_for[0]),
                "data_high": None if self.stands_for is None else list(self.stands_for[1]),
            },
            "deterministic": True,
            "task": self.task,
            "task_name": self.task_name,
        }

    def _examples(self, policy: Any, example: TensorDictBase | None) -> tuple[Tensor, ...]:
        """Inputs of a batch of 2: one of 1 would be taken for a constant."""
        if example is not None:
            example = example.reshape(-1)  # of a single env, too
            return tuple(_two(example.get(key).cpu()) for key in self.keys)
        shape = _observation_shape(policy)
        if len(self.keys) != 1 or shape is None:
            raise ValueError(
                f"What the policy reads, {self.keys}, cannot be told from its networks: give example=..., a TensorDict "
                "of them, such as env.reset()."
            )
        return (torch.zeros(2, *shape),)


def _settle_embeddings(policy: nn.Module) -> None:
    """Shortens the embeddings that are too long once, as each call would, which an exported program cannot."""
    for module in policy.modules():
        if isinstance(module, nn.Embedding) and module.max_norm is not None:
            module(torch.arange(module.num_embeddings))
            module.max_norm = None


def _two(value: Tensor) -> Tensor:
    return torch.cat([value, value])[:2].contiguous()


def _observation_shape(policy: Any) -> tuple[int, ...] | None:
    """Shape of an observation that a policy reads, from what it is made of."""
    for module in policy.modules():
        if isinstance(module, TrainedPolicy):
            return module.task_shape
        if isinstance(module, PWMWorldModel):
            return tuple(module.observation_shape)
        if isinstance(module, ObservationNormalizer):
            return tuple(module.moments.mean.shape)
        if isinstance(module, nn.Linear):
            return (module.in_features,)
    return None


def _bounds(policy: Any, action_key: NestedKey) -> tuple[Any, Any]:
    """Lowest and highest action, where a module's spec says so."""
    for module in policy.modules():
        spec: Any = getattr(module, "spec", None)
        leaf = spec.get(action_key, None) if hasattr(spec, "keys") else None
        if isinstance(leaf, Bounded):
            return leaf.space.low.cpu(), leaf.space.high.cpu()
    return (-1.0, 1.0) if isinstance(policy, (TrainedPolicy, TDMPC2Model)) else (None, None)


def _of_entries(bound: Any, action: Tensor) -> list[float] | None:
    """A bound of each entry of an action [B, A]; a task of many has the first entries alone."""
    if bound is None:
        return None
    bound = torch.as_tensor(bound)
    return (bound[..., : action.shape[-1]] if bound.ndim else bound).expand(action.shape[1:]).tolist()


def _refuse_recurrent(policy: Any) -> None:
    found = [type(module).__name__ for module in policy.modules() if isinstance(module, _RECURRENT)]
    if found or "is_init" in policy.in_keys:
        raise ValueError(
            f"A recurrent policy ({', '.join(found) or 'it reads is_init'}) keeps a state from step to step, which an "
            "exported file does not: export a policy without one."
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out what torch says of itself while it exports."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
