"""Several processes train as one does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save_file

from tests.trainers.ranks import ITERATIONS, make_model, on_ranks, train
from tests.trainers.tiny import sequences, write_store
from torchrl_pwm import PWMWorldModelLoss, TDMPC2ExperienceReplay
from torchrl_pwm._utils.errors import DamagedFileError
from torchrl_pwm._utils.files import file_sha256
from torchrl_pwm.data import EpisodeSliceSampler
from torchrl_pwm.trainers import WorldModelOptimizationStepper
from torchrl_pwm.trainers.distributed import DistributedWorldModelStepper
from torchrl_pwm.trainers.ranks import joined_ranks, whole_state

torch_distributed = pytest.importorskip("torch.distributed")
if not torch_distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

METRICS = ("loss_consistency", "loss_reward", "model_grad_norm", "reward_error")


def assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal loss curves and weights, up to the order of sums in float32."""
    for name in METRICS:
        assert len(found["logged"][name]) == ITERATIONS
        np.testing.assert_allclose(found["logged"][name], expected["logged"][name], rtol=1e-4, err_msg=name)
    for name, weight in expected["weights"].items():
        np.testing.assert_allclose(np.asarray(found["weights"][name]), weight, rtol=1e-3, atol=1e-4, err_msg=name)


def two_ranks(ranks: Any, root: Path, folder: Path) -> dict[str, Any]:
    """Every way of two processes, one after the other, in one group: they take long to start."""
    found = {
        "ddp": train(root, folder / "ddp", ranks=ranks),
        "ddp in parts": train(root, folder / "ddp in parts", ranks=ranks, accumulate=2),
        "fsdp": train(root, folder / "fsdp", ranks=ranks, engine="fsdp"),
        "fsdp in parts": train(root, folder / "fsdp in parts", ranks=ranks, engine="fsdp", accumulate=2),
        "fsdp, one then two": train(root, folder / "one then two", ranks=ranks, engine="fsdp"),
    }
    train(root, folder / "fsdp, two then one", ranks=ranks, engine="fsdp", until=4)
    train(root, folder / "ddp, two then one", ranks=ranks, prefetch=2, until=4)
    found["ends"] = {(engine, parts): masked(parts, ranks, engine) for engine in ("ddp", "fsdp") for parts in (1, 2)}
    return {**found, **{engine: refused(ranks, root, engine) for engine in REFUSALS}}


def masked(accumulate: int, ranks: Any = None, engine: Any = "ddp") -> dict[str, float]:
    """Losses and gradient of an update of sequences whose first half end early, of which a process has one half."""
    loss, batch = PWMWorldModelLoss(make_model()), sequences(8)
    batch["next", "done"] = torch.zeros(*batch.shape, 1, dtype=torch.bool)
    batch["next", "done"][:4, 0] = True
    batch["next", "reward"][:4] += 3.0
    options: Any = {"iterations": 2, "accumulate": accumulate}
    if ranks is None:
        metrics = WorldModelOptimizationStepper(loss, **options).update(batch)
    else:
        stepper = DistributedWorldModelStepper(loss, ranks=ranks, engine=engine, **options)
        metrics = stepper.update(batch.chunk(ranks.count)[ranks.rank])
    return {name: float(metrics[name]) for name in METRICS}


REFUSALS = {"ddp refuses": "ddp", "fsdp refuses": "fsdp"}


def refused(ranks: Any, root: Path, way: str) -> dict[str, Any]:
    """An update in which the last process alone finds an infinite reward: what each says, and the weights it keeps."""
    loss = PWMWorldModelLoss(make_model())
    stepper = DistributedWorldModelStepper(loss, ranks=ranks, engine=REFUSALS[way], iterations=2)  # type: ignore[arg-type]
    batch = sequences(4)
    before = whole_state(loss.world_model)
    before = {name: weight.clone() for name, weight in before.items() if name != "_task_emb.weight"}
    if ranks.rank == ranks.count - 1:
        batch["next", "reward"][1, 2] = torch.inf
    said = ""
    try:
        stepper.update(batch)
    except FloatingPointError as error:
        said = str(error)
    assert loss.world_model._task_emb.max_norm == 1  # which the update alone takes off
    after = whole_state(loss.world_model)
    return {"said": said, "changed": [name for name, weight in before.items() if not torch.equal(after[name], weight)]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: Any) -> dict[str, Any]:
    """What two processes found, by way, and what one did, in whose place the others' checkpoints are gone on from."""
    folder = tmp_path_factory.mktemp("ranks")
    root = write_store(folder / "data")
    alone = train(root, folder / "alone")
    with joined_ranks("cpu") as one:
        train(root, folder / "one then two", ranks=one, engine="fsdp", until=4)
    two = on_ranks(2, two_ranks, root, folder)
    with joined_ranks("cpu") as one:
        last = train(root, folder / "fsdp, two then one", ranks=one, engine="fsdp")
    return {
        "root": root,
        "folder": folder,
        "alone": alone,
        "two": two,
        "fsdp, two then one": last,
        "ddp, two then one": train(root, folder / "ddp, two then one"),
    }


@pytest.mark.parametrize("way", ["ddp", "ddp in parts", "fsdp", "fsdp in parts", "fsdp, one then two"])
def test_two_processes_train_as_one_does(runs, way):
    first, second = (found[way] for found in runs["two"])
    assert_close(first, runs["alone"])
    for name, weight in first["weights"].items():
        np.testing.assert_array_equal(weight, second["weights"][name], err_msg=name)


def test_steps_after_an_end_weigh_nothing_however_a_batch_is_divided(runs):
    expected = masked(1)
    for found in (masked(2), masked(8), *runs["two"][0]["ends"].values(), *runs["two"][1]["ends"].values()):
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("way", ["fsdp, two then one", "ddp, two then one"])
def test_one_process_goes_on_from_a_checkpoint_of_two(runs, way):
    """With DDP it is a trainer that knows of no processes, and the two had read batches ahead."""
    assert_close(runs[way], runs["alone"])


@pytest.mark.parametrize("way", REFUSALS)
def test_a_number_that_is_not_finite_in_one_process_stops_both_before_their_step(runs, way):
    for found in runs["two"]:
        assert found[way]["said"].startswith("Update 1 of the world-model: expected finite numbers")
        assert found[way]["changed"] == []


def test_a_shard_that_was_changed_is_refused(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs["folder"] / "fsdp", folder)
    shard = next((folder / "checkpoint").glob("step-*/shard-*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with joined_ranks("cpu") as one, pytest.raises(DamagedFileError, match="damaged"):
        train(runs["root"], folder, ranks=one, engine="fsdp")


def _other_places(tensors: dict[str, torch.Tensor], strings: dict[str, str]) -> None:
    strings["DCP_SHARDING_INFO"] = json.dumps({name: {"saved_offsets": [7] * t.ndim} for name, t in tensors.items()})


def _other_names(tensors: dict[str, torch.Tensor], strings: dict[str, str]) -> None:
    strings.clear()
    for name in list(tensors):
        tensors[name + "s"] = tensors.pop(name)


def _other_shapes(tensors: dict[str, torch.Tensor], strings: dict[str, str]) -> None:
    for name, tensor in tensors.items():
        tensors[name] = tensor.repeat(3, *[1] * (tensor.ndim - 1)) if tensor.ndim else tensor


def _no_record(tensors: dict[str, torch.Tensor], strings: dict[str, str]) -> None:
    strings["DCP_SHARDING_INFO"] = "[" * 100_000


def _names_alone(tensors: dict[str, torch.Tensor], strings: dict[str, str]) -> None:
    strings["DCP_SHARDING_INFO"] = "{}"


@pytest.mark.parametrize("forge", [_other_places, _other_names, _other_shapes, _no_record, _names_alone])
def test_forged_shards_are_refused_though_their_manifest_fits(runs, tmp_path, forge):
    folder = tmp_path / "run"
    shutil.copytree(runs["folder"] / "fsdp", folder)
    for shard in (folder / "checkpoint").glob("step-*/shard-*.safetensors"):
        with safetensors.safe_open(shard, "pt") as archive:
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
            strings = dict(archive.metadata())
        assert "DCP_SHARDING_INFO" in strings
        forge(tensors, strings)
        save_file(tensors, shard, strings)
    agree(folder / "checkpoint")
    with joined_ranks("cpu") as one, pytest.raises(DamagedFileError, match="is not one of this model"):
        train(runs["root"], folder, ranks=one, engine="fsdp")


@pytest.mark.parametrize("header", [b"\x00\x00\x00\x05\x00\x00\x00\x00{", b"\xff" * 8 + b"{", b""])
def test_a_shard_of_no_or_too_large_a_header_is_refused_though_its_manifest_fits(runs, tmp_path, header):
    folder = tmp_path / "run"
    shutil.copytree(runs["folder"] / "fsdp", folder)
    next((folder / "checkpoint").glob("step-*/shard-*.safetensors")).write_bytes(header + b" " * 64)
    agree(folder / "checkpoint")
    with joined_ranks("cpu") as one, pytest.raises(DamagedFileError, match="damaged"):
        train(runs["root"], folder, ranks=one, engine="fsdp")


def agree(checkpoint: Path) -> None:
    """Makes the manifest one of the files as they are, as who forges them would."""
    manifest = json.loads((checkpoint / "checkpoint.json").read_text())
    files = sorted((checkpoint / manifest["file"]).iterdir())
    manifest["files"] = {file.name: [file.stat().st_size, file_sha256(file)] for file in files}
    (checkpoint / "checkpoint.json").write_text(json.dumps(manifest))


def test_a_checkpoint_of_shards_holds_no_pickled_objects(runs):
    files = {file.suffix for file in (runs["folder"] / "fsdp" / "checkpoint").rglob("*") if file.is_file()}
    assert files == {".safetensors", ".pt", ".json"}  # of which the .pt is read with weights_only=True


def test_an_update_in_parts_is_that_of_the_whole_batch(runs, tmp_path):
    assert_close(train(runs["root"], tmp_path, accumulate=4), runs["alone"])


def test_a_batch_that_cannot_be_divided_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match=r"accumulate=3 .* found a batch of 8"):
        train(runs["root"], tmp_path, accumulate=3)
    sampler = EpisodeSliceSampler(4, part=(0, 3))
    with pytest.raises(ValueError, match="3 processes share a batch, found one of 8"):
        TDMPC2ExperienceReplay(runs["root"], 8, sampler=sampler).sample()


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ({"reduction": "sum"}, {}, "reduction"),
        ({}, {"cudagraph": True}, "not captured"),
        ({}, {"engine": "fsdp", "compile_train_step": True}, "ddp"),
        ({}, {"engine": "horovod"}, "engine"),
    ],
)
def test_what_does_not_go_with_several_processes_is_refused(loss, options, message):
    module = PWMWorldModelLoss(make_model(), **loss)
    with joined_ranks("cpu") as one, pytest.raises(ValueError, match=message):
        DistributedWorldModelStepper(module, ranks=one, iterations=2, **options)


def test_parts_of_a_batch_are_together_what_one_process_draws(runs):
    def draw(part: tuple[int, int] | None) -> Any:
        return TDMPC2ExperienceReplay(runs["root"], 6, sampler=EpisodeSliceSampler(4, part=part), seed=5)

    whole, parts = draw(None), [draw((number, 3)) for number in range(3)]
    for _ in range(3):
        together = torch.cat([part.sample() for part in parts])
        assert (together == whole.sample()).all()
