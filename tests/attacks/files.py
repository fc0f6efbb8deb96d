"""Every kind of file that is read, as it is written and read: small ones, the same at each call."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from tensordict import TensorDict
from torch import nn

from tests.evaluation.test_summary import MW, row
from tests.modules.agent_files import save_pwm_agent
from tests.modules.test_quickstart import pack
from torchrl_pwm import PWMAgent, PWMWorldModel, TDMPC2ExperienceReplay, load_world_model
from torchrl_pwm._utils.checkpoint import load_checkpoint, save_checkpoint, save_tensors
from torchrl_pwm._utils.door import load_weights, pack_safetensors, read_hdf5, read_safetensors, read_tensors
from torchrl_pwm.data import EpisodeSliceSampler, EpisodeStore, EpisodeStoreWriter, read_memmap
from torchrl_pwm.data.imports.dflex import _open as open_dflex
from torchrl_pwm.data.published.shards import open_shard
from torchrl_pwm.envs import MT80
from torchrl_pwm.evaluation import read_metrics, read_summary, write_summary
from torchrl_pwm.modules import load_quickstart
from torchrl_pwm.modules.hub import load_folder
from torchrl_pwm.trainers.shards import load_shards, save_shards

GOLDEN = Path(__file__).parents[1] / "golden"
WEIGHTS = {"weight": torch.arange(6.0).reshape(2, 3), "more": [torch.ones(2, dtype=torch.int64), "text", 3]}


class Kind(NamedTuple):
    """A kind of file.

    Args:
        write: makes it in an empty folder, with what it needs beside it, and returns its path.
        read: all that reading it gives, from its path.
        checked: whether it has a checksum, so that no change may give anything else than what was written.
        also: what a reader may raise beside :class:`.DamagedFileError`.
        seal: what is done to the file before it is read.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    checked: bool = True
    also: tuple[type[Exception], ...] = ()
    seal: Callable[[Path], Any] = str


class Alone:
    """One process, which is all there are."""

    first = True

    def agreed(self, flag: bool) -> bool:
        return flag

    def wait(self) -> None:
        pass


def exact(value: Any) -> Any:
    """Something that is equal for the same contents bit for bit, and for no others."""
    if isinstance(value, TensorDict):
        value = value.to_dict()
    if isinstance(value, torch.Tensor):
        content = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return str(value.dtype), list(value.shape), content
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, Mapping):
        return [(key, exact(part)) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return [exact(part) for part in value]
    return repr(value)


def small_model() -> PWMWorldModel:
    torch.manual_seed(0)
    return PWMWorldModel(5, 2, latent_dim=16, units=(8,), encoder_units=(8,))


def of_model(model: PWMWorldModel) -> dict[str, Any]:
    return model.constructor_arguments | dict(model.state_dict())


def saved(path: Path, state: Any) -> Path:
    save_tensors(path, state)
    return path


def put(path: Path, content: bytes | str | dict | list) -> Path:
    text = json.dumps(content) if isinstance(content, (dict, list)) else content
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def torch_saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def model_folder(folder: Path) -> Path:
    model = small_model()
    put(folder / "config.json", model.constructor_arguments)
    put(folder / "model.safetensors", pack_safetensors(model.state_dict(), {"format": "pt"}))
    return folder


def checkpoint(folder: Path) -> Path:
    save_checkpoint(folder, {"step": 1}, step=1)
    return save_checkpoint(folder, WEIGHTS, step=2, keep=1)


def sealed(path: Path) -> None:
    """Gives a checkpoint's manifest the checksum of what is in its file, so that what is in it is checked alone."""
    data = path.read_bytes()
    manifest = {"file": path.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "step": 2}
    put(path.parent / "checkpoint.json", manifest)


def shards(folder: Path) -> Path:
    save_shards(folder, WEIGHTS, step=1, ranks=Alone())  # type: ignore[arg-type]
    return folder


def data_set(folder: Path) -> Path:
    with EpisodeStoreWriter(folder / "data", "mt30", {"cheetah-run": 2}, row_length=20) as writer:
        writer.write("cheetah-run", np.zeros((2, 21, 24)), np.zeros((2, 20, 6)), np.ones((2, 20)))
    return folder / "data"


def read_store(folder: Path) -> Any:
    store = EpisodeStore(folder)
    store.verify(progress=False)
    return store.manifest, np.asarray(store.observation), np.asarray(store.reward)


def replay_state(path: Path) -> Any:
    replay = TDMPC2ExperienceReplay(path.parent / "data", 4, slice_len=5, seed=1)
    replay.loads(path.parent)
    return replay.sampler.state_dict()


def written_replay(folder: Path) -> Path:
    TDMPC2ExperienceReplay(data_set(folder), 4, slice_len=5, seed=0).dumps(folder)
    return folder / "replay.pt"


def sampler_state(path: Path) -> Any:
    sampler = EpisodeSliceSampler(5)
    sampler.loads(path.parent)
    return sampler.state_dict()


def written_sampler(folder: Path) -> Path:
    sampler = EpisodeSliceSampler(5)
    sampler.generator.manual_seed(3)
    sampler.dumps(folder)
    return folder / "sampler.pt"


def memory_map(folder: Path) -> Path:
    reward = TensorDict({"reward": torch.ones(2, 3)}, [2, 3])
    TensorDict({"observation": torch.zeros(2, 3, 4), "next": reward}, [2, 3]).memmap(folder / "steps")
    return folder / "steps"


def agent(folder: Path) -> Path:
    torch.manual_seed(0)
    save_pwm_agent(folder / "agent.pt", 5, 1, obs_rms=True)
    return folder / "agent.pt"


def read_agent(path: Path) -> Any:
    found = PWMAgent.from_pwm(path)
    return found.constructor_arguments, found.state_dict()


def arrival_rows(*tasks: int) -> dict[str, torch.Tensor]:
    rows = {"obs": torch.zeros(2, 5, 39), "action": torch.zeros(2, 5, 6), "reward": torch.zeros(2, 5)}
    rows["action"][:, 0], rows["reward"][:, 0] = torch.nan, torch.nan
    return {**rows, **({"task": torch.full((2, 5), tasks[0])} if tasks else {})}


def hdf5(folder: Path) -> Path:
    import h5py

    with h5py.File(folder / "steps.hdf5", "w") as file:
        for name, shape in {"observations": (9, 3), "actions": (9, 1), "rewards": (9,), "terminals": (9,)}.items():
            file[name] = np.ones(shape)
    return folder / "steps.hdf5"


def read_steps(path: Path) -> Any:
    return read_hdf5(path, ["observations", "actions", "rewards", "terminals"], purpose="a test")


def run(part: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        return Path(shutil.copytree(GOLDEN / "runs" / "finished" / "pwm_online", folder / "run")) / part

    return write


def read_policy(path: Path) -> Any:
    from torchrl_pwm import load_policy

    return load_policy(path.parent, "cpu").state_dict()


def read_config(path: Path) -> Any:
    from omegaconf import OmegaConf

    from torchrl_pwm.runs.saved import read_config

    return OmegaConf.to_container(read_config(path.parent), resolve=False)


def read_record(name: str) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        from torchrl_pwm.runs import saved

        return getattr(saved, name)(path)

    return read


def summary(folder: Path) -> Path:
    write_summary(folder, [row(), MW], seed=3, seconds_total=61.5)
    return folder / "summary.json"


def scalars(folder: Path) -> Path:
    (folder / "scalars").mkdir()
    return put(folder / "scalars" / "loss.csv", "1,0.5\n2,0.25\n3,0.125\n")


def linear(path: Path) -> Any:
    network = nn.Linear(2, 2)
    load_weights(network, path, what="policy", part="actor")
    return network.state_dict()


OTHER = (ValueError,)  # a checkpoint of something else, or arguments that do not go together
KINDS = {
    "a file of tensors": Kind(lambda at: saved(at / "file.pt", WEIGHTS), read_tensors),
    "an older file of tensors": Kind(
        lambda at: torch_saved(at / "file.pt", WEIGHTS, _use_new_zipfile_serialization=False), read_tensors, False
    ),
    "safetensors": Kind(
        lambda at: put(at / "file", pack_safetensors({"a": torch.arange(5.0), "b": torch.ones(2).half()}, {"x": "y"})),
        lambda path: (read := read_safetensors(path))[0] | dict(sorted(read[1].items())),
    ),
    "safetensors of others": Kind(
        lambda at: put(at / "file", safetensors.torch.save({"a": torch.arange(5.0)})), read_safetensors, False
    ),
    "a model": Kind(
        lambda at: saved(at / "model.pt", {"model": small_model().state_dict()}),
        lambda path: of_model(PWMWorldModel.from_tdmpc2(path)),
    ),
    "a model by load_world_model": Kind(
        lambda at: saved(at / "model.pt", small_model().state_dict()), lambda path: of_model(load_world_model(path))
    ),
    "an agent": Kind(agent, read_agent),
    "the quickstart": Kind(
        lambda at: pack(at)[0], lambda path: (lambda q: (of_model(q.world_model), q.starts))(load_quickstart(path))
    ),
    "weights of a folder": Kind(
        lambda at: model_folder(at) / "model.safetensors", lambda path: of_model(load_world_model(path.parent))
    ),
    "configuration of a network": Kind(
        lambda at: model_folder(at) / "config.json",
        lambda path: of_model(load_folder(PWMWorldModel, path.parent)),
        False,
    ),
    "weights of a network": Kind(
        lambda at: saved(at / "policy.pt", {"actor": {"weight": torch.ones(2, 2), "bias": torch.ones(2)}}), linear
    ),
    "data of a checkpoint": Kind(checkpoint, lambda path: load_checkpoint(path.parent)),
    "data of a checkpoint with their checksum": Kind(
        checkpoint, lambda path: load_checkpoint(path.parent), False, seal=sealed
    ),
    "manifest of a checkpoint": Kind(
        lambda at: checkpoint(at).with_name("checkpoint.json"), lambda path: load_checkpoint(path.parent)
    ),
    "manifest of shards": Kind(
        lambda at: shards(at) / "checkpoint.json",
        lambda path: load_shards(path.parent, WEIGHTS, ranks=Alone()),  # type: ignore[arg-type]
    ),
    "rest of shards": Kind(
        lambda at: shards(at) / "step-1" / "rest.pt",
        lambda path: load_shards(path.parents[1], WEIGHTS, ranks=Alone()),  # type: ignore[arg-type]
    ),
    "manifest of a data set": Kind(lambda at: data_set(at) / "manifest.json", lambda path: read_store(path.parent)),
    "steps of a data set": Kind(
        lambda at: next(iter(sorted(data_set(at).glob("steps*")))), lambda path: read_store(path.parent)
    ),
    "state of a replay": Kind(written_replay, replay_state),
    "state of a sampler": Kind(written_sampler, sampler_state),
    "list of a memory map": Kind(
        lambda at: memory_map(at) / "meta.json", lambda path: read_memmap(path.parent), False, (FileNotFoundError,)
    ),
    "tensor of a memory map": Kind(
        lambda at: memory_map(at) / "observation.memmap", lambda path: read_memmap(path.parent), False
    ),
    "a published shard": Kind(
        lambda at: torch_saved(at / "chunk_0.pt", arrival_rows(3)),
        lambda path: (lambda shard: (shard.obs, shard.action, shard.reward, shard.task))(open_shard(path, MT80, 5)),
    ),
    "a published TensorDict": Kind(
        lambda at: torch_saved(at / "ant.pt", TensorDict(arrival_rows(), [2, 5])), open_dflex
    ),
    "HDF5": Kind(hdf5, read_steps, False, OTHER),
    "policy of a run": Kind(run("policy.pt"), read_policy),
    "model of a run": Kind(run("world_model.pt"), read_policy),
    "configuration of a run": Kind(run("config.yaml"), read_config, False),
    "result of a policy": Kind(
        lambda at: put(at / "result.json", {"task": "cup-catch", "seconds": 1.5}), read_record("read_result"), False
    ),
    "clock of a run": Kind(lambda at: put(at / "seconds.json", "12.5"), read_record("read_seconds"), False),
    "summary of a run": Kind(summary, read_summary, False),
    "a table of metrics": Kind(lambda at: put(at / "m.csv", "step,a,b\n1,0.5,2\n2,,3\n"), read_metrics, False),
    "metrics of a run": Kind(scalars, lambda path: read_metrics(path.parents[1]), False),
}


@functools.cache
def composed(command: str) -> Any:
    from torchrl_pwm.runs.cli import command_config

    return command_config(command, ["data=data"] if command == "offline" else [])


def configuration(command: str, *, summed: bool) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        from torchrl_pwm.runs.saved import config_text

        text = config_text(composed(command))
        return put(folder / "config.yaml", text if summed else text.partition(b"\n")[2])

    return write


def resume(command: str) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        from omegaconf import OmegaConf

        from torchrl_pwm.runs.folder import open_run

        config = composed(command).copy()
        config.resume = str(path.parent)
        return OmegaConf.to_container(open_run(config, [])[0], resolve=False)

    return read


RUNS = ("mt80", "pretrain", "offline", "online", "shac", "tdmpc2-mt80", "tdmpc2-online")
for command in RUNS:
    # One of before, without a checksum, may be cut to that of another command.
    KINDS |= {
        f"{command}: configuration of a run": Kind(configuration(command, summed=True), resume(command)),
        f"{command}: earlier configuration of a run": Kind(
            configuration(command, summed=False), resume(command), False, OTHER
        ),
    }
