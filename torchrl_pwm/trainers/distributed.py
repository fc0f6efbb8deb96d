"""Training of one world model by several processes, each on its part of every batch."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from torchrl_pwm._utils.accumulation import accumulate_gradients
from torchrl_pwm._utils.checkpoint import has_checkpoint
from torchrl_pwm._utils.devices import is_host
from torchrl_pwm._utils.gated_steps import finite_or_nan
from torchrl_pwm._utils.ranges import check_choice
from torchrl_pwm.modules import PWMWorldModel
from torchrl_pwm.objectives import PWMWorldModelLoss
from torchrl_pwm.trainers.ranks import Ranks
from torchrl_pwm.trainers.shards import load_shards, save_shards
from torchrl_pwm.trainers.steppers import WorldModelOptimizationStepper
from torchrl_pwm.trainers.world_model import WorldModelTrainer

__all__ = [
    "DistributedWorldModelStepper",
    "DistributedWorldModelTrainer",
    "Engine",
]

Engine = Literal["ddp", "fsdp"]

# Buffers are constants here; the option has another name from torch 2.13 on.
_NEW = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
_UNSYNCED: dict[str, Any] = {"forward_sync_buffers" if _NEW else "broadcast_buffers": False}


class _Losses(nn.Module):
    """The losses as the ``forward()`` that DDP and FSDP hook into, with the model's parameters and no others."""

    def __init__(self, world_model: PWMWorldModel, stepper: DistributedWorldModelStepper) -> None:
        super().__init__()
        self.world_model = world_model
        self._run = [stepper.local_losses]

    def forward(self, batch: TensorDictBase) -> dict[str, Tensor]:
        # The hooks of both find tensors in dictionaries, not in a TensorDict.
        return {str(key): value for key, value in self._run[0](batch).items()}


class DistributedWorldModelStepper(WorldModelOptimizationStepper):
    """One clipped Adam step on a world model that several processes train, each with an equal part of the batch.

    Gradients, their norm, losses and metrics are those of the whole batch, in every process, and so is whether they are
    finite: all leave a step out, or none. With as large batches the numbers are those of one process up to the order
    of the sums, where the loss draws nothing at random; what it draws, each process draws for its own part.

    ``"ddp"`` is torch's ``DistributedDataParallel``: every process has the whole model and optimiser. ``"fsdp"`` is its
    ``fully_shard`` (FSDP2): parameters, gradients and moments are shared out, and the parameters are gathered for an
    update.

    Args:
        loss_module (PWMWorldModelLoss): the objective, on the device of ``ranks``. With ``"fsdp"`` its parameters are
            replaced by shared ones.

    Keyword Args:
        ranks (Ranks): the processes.
        engine (str): ``"ddp"`` or ``"fsdp"``.
        **options: see :class:`.WorldModelOptimizationStepper`. An update is run eagerly unless ``compile_train_step``
            is true (with DDP), and never captured.

    Raises:
        ValueError: if the engine is unknown, or the loss or an option does not go with several processes.
        FloatingPointError: in every process, if the batch of one, the loss or the gradient is not finite.
    """

    def __init__(self, loss_module: PWMWorldModelLoss, *, ranks: Ranks, engine: Engine = "ddp", **options: Any) -> None:
        check_choice(get_args(Engine), engine=engine)
        _check(loss_module, engine, options)
        model = loss_module.world_model
        self.ranks, self.engine = ranks, engine
        self.table = model._task_emb
        self.task_key = loss_module.tensor_keys.task
        self.program_of_losses: Any = _Losses(model, self)
        if engine == "fsdp":
            mesh = init_device_mesh(ranks.device.type, (ranks.count,))
            # One unit, gathered once an update: its steps use every layer once a time step.
            fully_shard(self.program_of_losses, mesh=mesh, reshard_after_forward=False)
        else:
            self.program_of_losses = DistributedDataParallel(
                self.program_of_losses, gradient_as_bucket_view=True, **_UNSYNCED
            )
        options |= {"cudagraph": False, "compile_train_step": bool(options.get("compile_train_step"))}
        super().__init__(loss_module, **options)

    def gradients(self, batch: TensorDictBase) -> tuple[TensorDictBase, Tensor]:
        self.optimizer.zero_grad()
        with self._cut_embeddings(batch), self._own_draws():
            losses = accumulate_gradients(
                *(batch, self.accumulate, self.losses),
                counted=self.loss_module.counted,
                whole=self._counted(batch),
                waits=self._unshared,
            )
        data = finite_or_nan([batch.get(key) for key in self.loss_module.in_keys])
        names = list(losses.keys())
        *means, data = self.ranks.mean(torch.stack([*(losses[name] for name in names), data])).unbind()
        return losses.update(dict(zip(names, means))), data

    def _counted(self, batch: TensorDictBase) -> Tensor | None:
        """The steps that count in a process's part, in the mean of the processes."""
        count = self.loss_module.counted(batch)
        return None if count is None else self.ranks.mean(count.float()[None]).squeeze(0)

    def losses(self, batch: TensorDictBase) -> TensorDictBase:
        return TensorDict(self.program_of_losses(batch))

    def local_losses(self, batch: TensorDictBase) -> TensorDictBase:
        """Losses of this process's sequences."""
        return self.execution.call(self.loss_module.losses, batch)

    @contextlib.contextmanager
    def _unshared(self) -> Iterator[None]:
        """Gradients inside stay in this process, to which those after it are added before all are shared."""
        if self.engine == "ddp":
            with self.program_of_losses.no_sync():
                yield
            return
        sharded: FSDPModule = self.program_of_losses
        sharded.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            sharded.set_requires_gradient_sync(True)

    @contextlib.contextmanager
    def _own_draws(self) -> Iterator[None]:
        """Draws inside are this process's own; the global generator is afterwards where it is in the others."""
        if self.ranks.count == 1:
            yield
            return
        seed = int(torch.randint(2**62, ())) + self.ranks.rank
        devices = [] if is_host(self.ranks.device) else [torch.cuda.current_device()]
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed(seed)
            yield

    @contextlib.contextmanager
    def _cut_embeddings(self, batch: TensorDictBase) -> Iterator[None]:
        """Shortens the embeddings of the batch's tasks to ``max_norm``, in all processes alike.

        The table, which does it for the tasks of its part of the batch, leaves them as they are inside.
        """
        longest = None if self.table is None else self.table.max_norm
        if self.table is None or longest is None:
            yield
            return
        self._cut(self.table.weight, longest, batch)
        self.table.max_norm = None
        try:
            yield
        finally:
            self.table.max_norm = longest

    @torch.no_grad()
    def _cut(self, rows: Tensor, longest: float, batch: TensorDictBase) -> None:
        used = torch.zeros(len(rows), device=rows.device)
        used = self.ranks.any(used.index_fill_(0, batch.get(self.task_key).flatten().long(), 1.0))
        if isinstance(rows, DTensor):
            used = distribute_tensor(used, rows.device_mesh, rows.placements, src_data_rank=None).to_local()
            rows = rows.to_local()
        norm = rows.norm(dim=1, keepdim=True)
        rows.mul_(torch.where(used[:, None] & (norm > longest), longest / (norm + 1e-7), 1.0))


def _check(loss_module: PWMWorldModelLoss, engine: Engine, options: dict[str, Any]) -> None:
    """Refuses what is not a mean over sequences, and ways of running that the engines do not have."""
    if loss_module.reduction != "mean":
        raise ValueError(
            f'processes average the gradients of their parts: take reduction="mean", found {loss_module.reduction!r}.'
        )
    if loss_module.world_model.reward_moments is not None:
        raise ValueError(
            "normalize_rewards keeps moments of whole batches, of which each process sees a part: train such a model "
            "in one process."
        )
    if options.get("cudagraph"):
        raise ValueError("an update of several processes is not captured: leave cudagraph out.")
    if engine == "fsdp" and options.get("compile_train_step"):
        raise ValueError('compile_train_step=True goes with engine="ddp", found "fsdp": leave it out.')


class DistributedWorldModelTrainer(WorldModelTrainer):
    """A :class:`.WorldModelTrainer` in each of several processes, of which the first one logs.

    With DDP the first process saves what a trainer alone would, and each of the two goes on from the other's
    checkpoint. With FSDP every process saves its shards by ``torch.distributed.checkpoint``, in safetensors files, and
    any number of processes goes on from them.

    Args:
        loss_module (PWMWorldModelLoss): the objective.
        replay_buffer (ReplayBuffer): gives this process's part [B / count, T] of every batch.

    Keyword Args:
        optimization_stepper (DistributedWorldModelStepper): what an update does.
        **kwargs: see :class:`.WorldModelTrainer`; ``evaluate`` is called in every process.
    """

    optimization_stepper: DistributedWorldModelStepper

    def __init__(self, *args: Any, optimization_stepper: DistributedWorldModelStepper, **kwargs: Any) -> None:
        self.ranks = optimization_stepper.ranks
        if not self.ranks.first:
            kwargs |= {"logger": None, "progress_bar": False, "on_log": None}
        super().__init__(*args, optimization_stepper=optimization_stepper, **kwargs)

    @property
    def sharded(self) -> bool:
        """Whether each process has a part of the parameters."""
        return self.optimization_stepper.engine == "fsdp"

    def write_checkpoint(self, folder: Path) -> None:
        if self.sharded:
            save_shards(folder, self.state_dict(), step=self.iteration, ranks=self.ranks)
        elif self.ranks.first:
            super().write_checkpoint(folder)

    def resume(self, folder: Any = None, *, required: bool = True) -> None:
        source: Any = folder if folder is not None else self.save_folder
        # All or none: the first process may see a checkpoint of a shared disk before the others do.
        there = source is not None and self.ranks.agreed(has_checkpoint(source))
        if not self.sharded or not there:
            super().resume(folder, required=required or there)
            return
        self.optimization_stepper.optimizer.make_moments()
        self.load_state_dict(load_shards(Path(source), self.state_dict(), ranks=self.ranks))
        self._log.rewind(self.iteration)
