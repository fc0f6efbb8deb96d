"""Which policy counts, ``select``: every kind of run reports the last and the best, which other seeds have chosen."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("hydra")
pytest.importorskip("matplotlib")

from omegaconf import OmegaConf

from benchmarks.learning.jobs import run_script
from tests.benchmarks.test_model_free import METHODS
from tests.benchmarks.test_model_free import TINY as MODEL_FREE
from tests.examples.test_pwm_online import SHORT
from tests.examples.test_pwm_online import TINY as PWM
from tests.examples.test_shac_simulator import TINY as SHAC
from tests.examples.test_tdmpc2_mt80 import TINY as TDMPC2_OFFLINE
from tests.examples.test_tdmpc2_online import SIMULATOR
from tests.examples.test_tdmpc2_online import TINY as TDMPC2
from tests.trainers.tiny import assert_same, write_store
from torchrl_pwm._utils.checkpoint import save_tensors
from torchrl_pwm.evaluation import evaluate_policy, read_summary, task_envs, task_episodes
from torchrl_pwm.evaluation.trust import probe_trust
from torchrl_pwm.runs import baselines, evaluator, extraction
from torchrl_pwm.runs.cli import compose_config
from torchrl_pwm.runs.evaluator import BestPolicy
from torchrl_pwm.runs.world_model import make_world_model
from torchrl_pwm.trainers import has_checkpoint, load_checkpoint

with_tasks = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("metaworld", "dm_control")),
    reason="the extra mt80 is not installed",
)
pytestmark = pytest.mark.usefixtures("short_episodes")

SEED = 1000  # of the final evaluation
ONLINE = {
    "shac": ("examples/shac_simulator.py", SHAC),
    "pwm": ("examples/pwm_simulator.py", [*PWM, SHORT]),
    "tdmpc2": ("examples/tdmpc2_online.py", [*TDMPC2, *SIMULATOR]),
    **{name: (f"benchmarks/learning/methods/{name}.py", [*MODEL_FREE, *METHODS[name]]) for name in METHODS},
}


class Watched:
    """The policies that were offered, of which the first is made the best, and the seeds of all evaluations."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.offered: list[dict[str, torch.Tensor]] = []
        self.seeds: list[int] = []
        offer = BestPolicy.offer

        def offer_less_each_time(best: BestPolicy, score: float, real_return: float, weights=None) -> None:
            weights = weights or best.networks.state_dict()
            self.offered.append({name: value.clone() for name, value in weights.items()})
            offer(best, -len(self.offered), real_return, self.offered[-1])

        def evaluate(*arguments, **options):
            self.seeds.append(options["seed"])
            return evaluate_policy(*arguments, **options)

        monkeypatch.setattr(BestPolicy, "offer", offer_less_each_time)

        def probe(*arguments, **options):
            self.seeds.append(options["seed"])
            return probe_trust(*arguments, **options)

        for module in (evaluator, task_episodes):
            monkeypatch.setattr(module, "probe_trust", probe)
        for module in (evaluator, task_episodes, task_envs):
            monkeypatch.setattr(module, "evaluate_policy", evaluate)


def run(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [])
    run_script(script, arguments)


def saved(folder: Path) -> list[torch.Tensor]:
    """The weights of a run's files, in the order of its networks."""
    files = [folder / name for name in ("world_model.pt", "policy.pt", "model.pt")]
    return [value for file in files if file.exists() for value in torch.load(file, weights_only=True).values()]


@pytest.mark.parametrize("select", ["best", "last"])
@pytest.mark.parametrize("method", ONLINE)
def test_the_selected_policy_is_kept_and_the_summary_has_both(method, select, tmp_path, monkeypatch):
    script, settings = ONLINE[method]
    watched = Watched(monkeypatch)
    run(monkeypatch, script, *settings, f"select={select}", f"folder={tmp_path / 'run'}")
    kept = watched.offered[0 if select == "best" else -1]
    assert all(torch.equal(a, b) for a, b in zip(kept.values(), saved(tmp_path / "run"), strict=True))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    outcomes = summary["outcomes"]
    assert summary["select"] == select and outcomes["policy"] == outcomes[f"{select} policy"]
    assert outcomes["last policy"]["returns"] != outcomes["best policy"]["returns"]
    if method == "tdmpc2":
        prior = "policy without planning"
        assert (
            outcomes[prior] == outcomes[f"{select} {prior}"] and outcomes[f"last {prior}"] != outcomes[f"best {prior}"]
        )
    # One seed chose, before and after it the other one is measured on.
    assert summary["evaluation_seed"] == SEED and set(watched.seeds) == {SEED, SEED + 1}


def test_without_a_choice_the_best_policy_counts_for_every_online_method():
    from benchmarks.learning.methods import model_free

    folder = Path(model_free.__file__).with_name("conf")
    for name in ("shac_simulator", "pwm_simulator", "pwm_online", "tdmpc2_online"):
        assert compose_config(name, []).select == "best", name
    assert all(compose_config(name, [], folder).select == "best" for name in ("sac", "ppo"))


@pytest.mark.parametrize("method", ONLINE)
def test_a_wrong_choice_is_refused(method, tmp_path, monkeypatch):
    script, settings = ONLINE[method]
    with pytest.raises(SystemExit, match="select must be last or best, found 'first'"):
        run(monkeypatch, script, *settings, "select=first", f"folder={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_the_best_policy_of_shac_is_that_of_before_an_interruption(tmp_path, monkeypatch):
    """Its checkpoint holds it: the best of three evaluations is the first, before the interruption."""
    watched = Watched(monkeypatch)
    with monkeypatch.context() as patch:
        offer = BestPolicy.offer

        def stop_at_the_second(best, *result):
            if len(watched.offered) == 1:
                raise KeyboardInterrupt
            offer(best, *result)

        patch.setattr(BestPolicy, "offer", stop_at_the_second)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(patch, "examples/shac_simulator.py", *SHAC, f"folder={tmp_path / 'run'}")
    assert has_checkpoint(tmp_path / "run" / "checkpoint")
    assert_same(load_checkpoint(tmp_path / "run" / "checkpoint")["best_policy"]["weights"], watched.offered[0])
    run(monkeypatch, "examples/shac_simulator.py", f"resume={tmp_path / 'run'}")
    assert len(watched.offered) == 3
    assert_same(torch.load(tmp_path / "run" / "policy.pt", weights_only=True), watched.offered[0])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("data") / "store")


@with_tasks
@pytest.mark.parametrize("select", ["best", "last"])
def test_an_extraction_keeps_the_selected_policy_and_its_result_has_both(select, data, tmp_path, monkeypatch):
    settings = ["preset=from_scratch", "actor.units=[16]", "value.units=[16]", "loss.horizon=2", "model.latent_dim=16"]
    settings += ["model.units=[16]", "model.encoder_units=[16]", "extraction.iterations=4", "extraction.batch_size=8"]
    settings += ["extraction.eval_interval=2", "extraction.eval_episodes=1", "evaluation.episodes=2"]
    config = compose_config("pwm_mt80", [*settings, f"extraction.select={select}"])
    torch.manual_seed(0)
    save_tensors(tmp_path / "world_model.pt", {"model": make_world_model(config).state_dict()})
    watched = Watched(monkeypatch)
    plain = OmegaConf.to_container(config, resolve=True)
    place = {"folder": tmp_path / "run", "data": data, "world_model": tmp_path / "world_model.pt"}
    result = extraction.extract_policy(
        extraction.ExtractionJob(config=plain, task="mw-reach", seed=0, threads=1, device="cpu", **place)
    )
    policy = torch.load(tmp_path / "run" / "policy.pt", weights_only=True)["actor"]
    assert_same(policy, watched.offered[0 if select == "best" else -1])
    assert result["returns"] == result[select]["returns"] and result["last"]["returns"] != result["best"]["returns"]
    assert watched.seeds == [SEED + 1] * 2 + [SEED] * 2
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result


@with_tasks
@pytest.mark.parametrize("select", ["best", "last"])
def test_behaviour_cloning_has_both_and_its_last_policy_is_that_of_an_unwatched_training(
    select, data, tmp_path, monkeypatch
):
    options = {"updates": 6, "batch_size": 4, "units": [8], "lr": 1e-2}
    job = baselines.BaselineJob(
        {"random": False, "cloning": {**options, "evaluations": 3, "eval_episodes": 1, "select": select}},
        *("mw-reach", "mt80", data, (0,), 2, SEED, tmp_path / "mw-reach.json"),
    )
    watched = Watched(monkeypatch)
    (result,) = job.run()["cloning"]
    assert result["returns"] == result[select]["returns"] and result["last"]["returns"] != result["best"]["returns"]
    assert len(watched.offered) == 3 and watched.seeds == [SEED + 1] * 3 + [SEED] * 2
    alone = baselines.clone_behavior(job.replay(0, 1.0), 39, 4, **options)
    assert_same(dict(alone.state_dict()), watched.offered[-1])


@with_tasks
def test_offline_tdmpc2_keeps_the_selected_model_and_the_other_one_beside_it(data, tmp_path, monkeypatch):
    settings = [*TDMPC2_OFFLINE, "training.eval_interval=2", "data=open", f"data.root={data}"]
    files, rows = {}, {}
    for select, other in (("best", "last"), ("last", "best")):
        with monkeypatch.context() as patch:
            watched = Watched(patch)
            folder = tmp_path / select
            run(patch, "examples/tdmpc2_mt80.py", *settings, f"training.select={select}", f"folder={folder}")
        assert len(watched.offered) == 3 and watched.seeds == [SEED + 1] * 3 + [SEED] * 2
        files[select] = {name: (folder / "model" / f"{name}.pt").read_bytes() for name in ("model", other)}
        summary = read_summary(folder)
        (rows[select],) = summary["tasks"]
        assert summary["select"] == select and rows[select]["return_mean"] == rows[select][select]["return_mean"]
        assert summary["score_mean"] == summary[select]["score_mean"]
    assert files["best"]["model"] == files["last"]["best"] != files["last"]["model"] == files["best"]["last"]
    assert rows["best"]["last"] == rows["last"]["last"] and rows["best"]["best"] == rows["last"]["best"]
    # Evaluated from its file, a model still has the other one beside it; alone it has not.
    for place in (tmp_path / "best" / "model", tmp_path):
        (tmp_path / "model.pt").write_bytes(files["best"]["model"])
        again = [*TDMPC2_OFFLINE, f"checkpoint={place / 'model.pt'}", f"folder={tmp_path / f'again-{place.name}'}"]
        run(monkeypatch, "examples/tdmpc2_mt80.py", *again)
        (row,) = read_summary(tmp_path / f"again-{place.name}")["tasks"]
        assert row.get("last") == (rows["best"]["last"] if place.name == "model" else None)


@with_tasks
def test_a_wrong_choice_of_an_offline_run_is_refused(data, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"training\.select must be last or best, found 'first'"):
        settings = [*TDMPC2_OFFLINE, "data=open", f"data.root={data}", "training.select=first"]
        run(monkeypatch, "examples/tdmpc2_mt80.py", *settings, f"folder={tmp_path / 'run'}")
    with pytest.raises(SystemExit, match=r"evaluation\.baselines\.cloning\.select must be last or best, found 'first'"):
        settings = ["evaluation.baselines.cloning.select=first", f"folder={tmp_path / 'run'}"]
        run(monkeypatch, "examples/pwm_mt80.py", *settings)
    assert not (tmp_path / "run").exists()
