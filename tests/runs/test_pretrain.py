"""``torchrl-pwm pretrain``, in one process and under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("hydra")

from tests.trainers.tiny import write_store
from torchrl_pwm import load_world_model
from torchrl_pwm.runs.cli import command_config, main
from torchrl_pwm.runs.pretrain import launched_again
from torchrl_pwm.runs.world_model import load_world_model as load_of_run
from torchrl_pwm.trainers import WorldModelTrainer

ROOT = Path(__file__).parents[2]
MODEL = ["model=small", "model.latent_dim=16", "model.encoder_units=[16]", "model.units=[16,16]", "model.num_bins=11"]
TASKS = "task=[pendulum-swingup,mw-reach]"
TRAINING = ["iterations=6", "batch_size=8", "slice_len=4", "save_interval=2", "log_interval=1"]
OPTIONS = [TASKS, *MODEL, *(f"world_model.{option}" for option in TRAINING), "progress=false", "device=cpu"]
LOGGED = ("loss_consistency", "loss_reward", "model_grad_norm", "latent_spread")


def losses(folder: Path) -> dict[str, list[list[float]]]:
    """Iteration and number of each row that was logged."""
    scalars = folder / "world_model" / "scalars"
    return {
        name: [[float(number) for number in row.split(",")] for row in (scalars / f"{name}.csv").read_text().split()]
        for name in LOGGED
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> dict[str, Any]:
    """A run in one process."""
    folder = tmp_path_factory.mktemp("pretrain")
    options = [f"data.root={write_store(folder / 'data')}", *OPTIONS]
    main(["pretrain", *options, f"folder={folder / 'run'}"])
    return {"folder": folder / "run", "options": options}


def test_the_world_model_of_a_run_is_read_by_the_library_and_by_mt80(made):
    file = made["folder"] / "world_model" / "world_model.pt"
    model = load_world_model(file)
    assert (model.latent_dim, model.num_tasks) == (16, 80)
    config = command_config("mt80", [f"checkpoint={file}", TASKS])
    loaded = load_of_run(config, file)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_the_command_that_its_report_names_is_one_of_mt80s(made):
    (line,) = [
        line.split() for line in (made["folder"] / "report.md").read_text().splitlines() if "torchrl-pwm mt80" in line
    ]
    config = command_config("mt80", line[2:])
    assert config.task_set == "mt80" and Path(config.checkpoint).exists() and Path(config.data.root).exists()


def test_a_summary_says_what_was_trained(made):
    summary = json.loads((made["folder"] / "summary.json").read_text())
    assert (summary["processes"], summary["iterations"], summary["tasks"]) == (1, 6, ["pendulum-swingup", "mw-reach"])
    assert (made["folder"] / summary["world_model"]).exists()
    assert 0 < summary["seconds"] <= json.loads((made["folder"] / "seconds.json").read_text())
    assert [row[0] for row in losses(made["folder"])["loss_reward"]] == [1, 2, 3, 4, 5, 6]


def test_parts_of_a_batch_make_the_same_run(made, tmp_path):
    main(["pretrain", *made["options"], f"folder={tmp_path / 'run'}", "world_model.accumulate=4"])
    for name, rows in losses(made["folder"]).items():
        np.testing.assert_allclose(losses(tmp_path / "run")[name], rows, rtol=1e-4, err_msg=name)


def test_a_run_that_has_ended_is_made_longer(made, tmp_path):
    options = [option for option in made["options"] if "iterations" not in option]
    main(["pretrain", *options, "world_model.iterations=4", f"folder={tmp_path / 'run'}"])
    main(["pretrain", f"resume={tmp_path / 'run'}", "world_model.iterations=6"])
    assert losses(tmp_path / "run") == losses(made["folder"])


def test_a_run_that_was_interrupted_measures_its_model_when_a_whole_one_does(made, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    with monkeypatch.context() as patch, pytest.raises(Stop):
        update = WorldModelTrainer.log

        def log(self, metrics):
            if self.iteration == 5:
                raise Stop
            update(self, metrics)

        patch.setattr(WorldModelTrainer, "log", log)
        main(["pretrain", *made["options"], f"folder={tmp_path / 'run'}"])
    main(["pretrain", f"resume={tmp_path / 'run'}"])
    for folder in (made["folder"], tmp_path / "run"):
        rows = (folder / "world_model/scalars/observation_explained.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in rows] == ["1"], "every tenth call measures it"


@pytest.mark.slow
def test_a_rank_that_is_killed_is_started_again_and_the_run_ends_as_one_process_does(made, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    command = [*torchrun, "-m", "tests.runs.killed_rank", "pretrain", *made["options"], f"folder={tmp_path / 'run'}"]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    options: dict[str, Any] = {"cwd": tmp_path, "env": environment, "timeout": 400}
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "failed (exitcode: -9) local_rank: 1" in done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["processes"] == 2
    for name, rows in losses(made["folder"]).items():
        np.testing.assert_allclose(losses(tmp_path / "run")[name], rows, rtol=1e-4, err_msg=name)
    assert done.stdout.count("# World model of 2 tasks") == 1


@pytest.fixture
def under_torchrun(monkeypatch: Any) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)


def test_torchrun_wants_a_folder_and_this_command(under_torchrun):
    config = command_config("pretrain", ["data.root=nowhere"])
    with pytest.raises(ValueError, match="give folder="):
        launched_again("pretrain", config)
    with pytest.raises(ValueError, match="torchrun is for pretrain, found mt80"):
        launched_again("mt80", config)


def test_a_command_that_torchrun_starts_again_goes_on_with_its_run(under_torchrun, made):
    config = command_config("pretrain", [*made["options"], f"folder={made['folder']}"])
    assert launched_again("pretrain", config).resume == str(made["folder"])


def test_data_that_would_have_to_be_collected_are_refused(capsys, tmp_path):
    with pytest.raises(SystemExit, match="pretrain learns from recorded episodes"):
        main(["pretrain", "data=collect", f"folder={tmp_path / 'run'}"])
