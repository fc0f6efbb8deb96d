"""Own episodes of earlier runs, from which a later run's model learns and in which its policies begin."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("hydra")
pytest.importorskip("metaworld")
pytest.importorskip("dm_control")

from tests.examples.running import EVALUATION, EXTRACTION, MODEL, NETWORKS, WORLD_MODEL
from torchrl_pwm.data import EpisodeStore, EpisodeStoreWriter
from torchrl_pwm.envs import get_task_set
from torchrl_pwm.modules import load_quickstart
from torchrl_pwm.runs.cli import command_config
from torchrl_pwm.runs.own_episodes import check_earlier, earlier_data
from torchrl_pwm.runs.pwm_offline import run_pipeline
from torchrl_pwm.runs.quickstart import make_quickstart
from torchrl_pwm.runs.round_loop import Round, beginning
from torchrl_pwm.runs.world_model import make_replay

pytestmark = pytest.mark.usefixtures("short_episodes")

TASK, OTHER = "mw-reach", "mw-push"
SMALL = [*NETWORKS, *MODEL, *WORLD_MODEL, *EXTRACTION, *EVALUATION, "evaluation.baselines=null", f"task={TASK}"]
SMALL += ["data=open", "extraction.iterations=4", "extraction.eval_interval=2", "rounds.count=0", "workers=1"]
SMALL += ["extraction.starts={count: 20, resets: 0.1, top: 0.5}"]
CLONING = "evaluation.baselines={random: false, cloning: {updates: 2, eval_episodes: 1, evaluations: 1}}"
RECORDED, OWN = 0.0, 1.0


def write(root: Path, task: str, value: float, episodes: int = 4, task_set: str = "mt80") -> Path:
    """Episodes all of whose positions are ``value``, and all of whose rewards."""
    source, table = {"kind": f"all {value}"}, get_task_set(task_set)
    shapes = ((101, table.observation_dim), (100, table.action_dim), (100,))
    with EpisodeStoreWriter(root, task_set, {task: episodes}, row_length=100, source=source) as writer:
        writer.write(task, *(np.full((episodes, *shape), value) for shape in shapes))
    return root


@pytest.fixture
def data(tmp_path):
    write(tmp_path / "recorded", TASK, RECORDED)
    write(tmp_path / "run" / "rounds" / "0" / "data", TASK, OWN)
    write(tmp_path / "run" / "rounds" / "1" / "data", TASK, OWN)
    return tmp_path


def configured(data, *further):
    earlier = f"rounds.earlier=[{data / 'run' / 'rounds'}]"
    return command_config("make-quickstart", [*SMALL, f"data.root={data / 'recorded'}", earlier, *further])


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_the_model_learns_from_them(data, share):
    config = configured(data, "world_model.batch_size=16", "world_model.slice_len=3", f"rounds.share={share}")
    batch = make_replay(config, EpisodeStore(data / "recorded"), [TASK]).sample()
    assert batch.shape == (16, 3)
    assert float((batch["observation"][:, 0, 0] == OWN).float().mean()) == share
    alone = make_replay(configured(data, "rounds.earlier=[]"), EpisodeStore(data / "recorded"), [TASK]).sample()
    assert not (alone["observation"] == OWN).any()


def test_critics_learn_from_real_steps_of_the_policy_itself_alone(data):
    config = configured(data, "rounds.critic_sequences=4", "rounds.warm=true", "rounds.starts=0.4")
    _, before = beginning(config, [], False)
    earlier = data / "run" / "rounds"
    assert (before.own, before.folder, before.share, before.sequences) == ((earlier,), None, 0.4, 0)
    played = Round(0, data / "later" / "rounds" / "0", data / "world_model.pt", {TASK: 0.0}, {TASK: []})
    _, before = beginning(config, [played], False)
    assert before.own == (earlier, played.folder / "data") and before.sequences == 4
    assert beginning(config, [played], True) == beginning(config, [], False)


def test_a_quickstart_begins_in_them_and_says_what_was_recorded(data):
    folder = data / "later"
    make_quickstart(configured(data, "rounds.starts=0.4", "rounds.starts_matched=null", CLONING), folder)
    file = folder / "quickstart.safetensors"
    quickstart = load_quickstart(file)
    assert quickstart.tasks == (TASK,) and quickstart.statistics()[TASK]["behavior_return_mean"] == RECORDED
    states = quickstart.starts[TASK]["observation"]
    assert (states[:, 0] == OWN).tolist() == [False] * 12 + [True] * 8 and quickstart.recorded == {TASK: 12}
    assert [source["kind"] for source in quickstart.source["rounds"]["earlier"]] == [f"all {OWN}"] * 2
    assert str(data).encode() not in file.read_bytes()
    summary = json.loads((folder / "summary.json").read_text())
    assert [row["task"] for row in summary["tasks"]] == [TASK]
    assert "model also saw episodes that policies of earlier runs played; behaviour" in " ".join(summary["notes"])


def test_what_does_not_fit_is_refused(data):
    (data / "empty").mkdir()
    wrong = {
        "holds no data set": data / "empty",
        "holds no episodes of mw-reach: .*join_datasets": write(data / "other", OTHER, OWN),
        "of the same task set": write(data / "set", "walker-run", OWN, task_set="mt30"),
    }
    for message, folder in wrong.items():
        config = configured(data, f"rounds.earlier=[{folder}]")
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            check_earlier(config.rounds, "mt80", [TASK])
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            make_quickstart(config, data / "refused")
        assert not (data / "refused").exists()
    check_earlier(configured(data).rounds, "mt80", [TASK])
    with pytest.raises(ValueError, match=r"rounds\.earlier=\[\] and loss.*found quickstart, 0, \['.*rounds'\]"):
        run_pipeline(command_config("mt80", [f"rounds.earlier={data / 'run' / 'rounds'}"]), data / "refused")
    one = configured(data, f"rounds.earlier={data / 'run' / 'rounds'}").rounds  # without brackets
    assert earlier_data(one) == (data / "run" / "rounds",)
