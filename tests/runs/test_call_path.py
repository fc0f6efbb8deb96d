"""The way from each script to its first gradient is short, and stands in the docs as it was counted."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("hydra")

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "architecture.md"
ONLINE = ["iterations=1", "env.num_envs=4", "collector.random_steps=80", "warmup_updates=0", "eval_episodes=1"]
ONLINE += [
    "evaluation.episodes=1",
    "replay.capacity=400",
    "replay.batch_size=2",
    "collector.steps=20",
    "progress=false",
]
# Until the first gradient of the method itself: the quickstart's clone before it is left out.
SCRIPTS = {
    "pwm_mt80": ["task=cup-catch", "extraction.warm_start={behavior_updates: 0, value_updates: 0}", "workers=1"],
    "pwm_online": ONLINE,
    "pwm_simulator": ONLINE,
    "shac_simulator": ["iterations=1", "env.num_envs=4", "evaluation.episodes=1"],
    "tdmpc2_mt80": [
        *("task=pendulum-swingup", "data=collect", "data.episodes.dm_control=1", "data.behavior.dm_control=random"),
        *("training.batch_size=2", "workers=1"),
    ],
    "tdmpc2_online": ["env=analytic/cartpole_swingup", "evaluation.plan=false", *ONLINE],
}
NEEDS_MT80 = {"pwm_mt80", "tdmpc2_mt80"}
# Called with a function of the caller's, which a reader follows in the caller.
HELPERS = {f"torchrl_pwm/{name}.py" for name in ("_utils/processes", "runs/engines/local", "runs/engines/work")}
FOLLOW = """
import json, runpy, sys, traceback
import torch

def backward(*arguments, **options):
    files = [frame.filename for frame in traceback.extract_stack()]
    loaded = [name for name in sys.modules if name.startswith(("torchrl_pwm.runs", "torchrl_pwm.trainers"))]
    print(json.dumps([files, loaded]))
    sys.stdout.flush()
    raise SystemExit

torch.Tensor.backward = backward
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def follow(script: str, folder: Path) -> tuple[list[str], list[str]]:
    """Files of the project on the way to the first ``backward()``, and modules of runs and trainers loaded by then."""
    command = [sys.executable, "-c", FOLLOW, str(ROOT / "examples" / f"{script}.py"), *SCRIPTS[script]]
    done = subprocess.run(
        [*command, f"folder={folder / 'run'}", "device=cpu", "progress=false"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    files, loaded = json.loads(done.stdout.splitlines()[-1])
    inside = [str(Path(file).relative_to(ROOT)) for file in files if Path(file).is_relative_to(ROOT / "torchrl_pwm")]
    return list(dict.fromkeys(file for file in inside if file not in HELPERS)), sorted(loaded)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_reaches_its_first_gradient_within_five_files(script, tmp_path):
    if script in NEEDS_MT80 and importlib.util.find_spec("metaworld") is None:
        pytest.skip("the tasks of MT80 are not installed")
    files, loaded = follow(script, tmp_path)
    assert 2 < len(files) <= 5, files
    if script == "pwm_online":
        assert len(loaded) <= 12, loaded
    row = re.search(rf"^\| `examples/{script}.py` \| (.*?) \| (\d+) \| (\d+) \|$", DOCS.read_text(), re.MULTILINE)
    assert row is not None
    names = [file.removeprefix("torchrl_pwm/").removesuffix(".py") for file in files]
    assert (re.findall(r"`(.*?)`", row[1]), int(row[2]), int(row[3])) == (names, len(files), len(loaded))
