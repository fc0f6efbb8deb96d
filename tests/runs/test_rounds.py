"""Rounds: policies go on from their last weights, on a model and start states that know where they went."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("hydra")
pytest.importorskip("metaworld")
pytest.importorskip("dm_control")

from omegaconf import OmegaConf

from tests.examples.running import DATA, EVALUATION, EXTRACTION, MODEL, NETWORKS, WORLD_MODEL
from tests.trainers.tiny import assert_same
from torchrl_pwm import load_policy
from torchrl_pwm._utils.door import read_tensors
from torchrl_pwm.data import EpisodeStore, EpisodeStoreWriter
from torchrl_pwm.modules import load_world_model
from torchrl_pwm.runs.cli import command_config
from torchrl_pwm.runs.extraction import Extraction, ExtractionJob
from torchrl_pwm.runs.folder import open_run
from torchrl_pwm.runs.own_episodes import round_seed, with_rate
from torchrl_pwm.runs.policies import load_policy as load_weights_of
from torchrl_pwm.runs.policies import make_loss, save_policy
from torchrl_pwm.runs.pwm_offline import run_pipeline
from torchrl_pwm.runs.round_loop import Round, beginning, choose, go_through, place_of, train_on
from torchrl_pwm.runs.rounds import policy_metrics
from torchrl_pwm.runs.starts import Before, make_starts, own_share
from torchrl_pwm.runs.world_model import kept_world_model, make_world_model, measured_states

pytestmark = pytest.mark.usefixtures("short_episodes")

TASK, OTHER = "mw-reach", "mw-push"  # whose episodes are short, and which pay any policy something
FILE = Path("policies") / TASK / "seed-0" / "policy.pt"
SMALL = [*NETWORKS, *MODEL, *WORLD_MODEL, *EXTRACTION, *EVALUATION, *DATA, "evaluation.baselines=null", f"task={TASK}"]
ROUNDS = ["rounds.count=1", "rounds.iterations=3", "rounds.policy_iterations=10", "rounds.eval_episodes=1"]
ROUNDS += ["rounds.critic_sequences=4", "rounds.newest=0.5"]
ROUNDS += ["rounds.episodes={dm_control: 1, metaworld: 1}", "extraction.iterations=20", "workers=1"]


def configured(*further):
    return command_config("mt80", ["preset=from_scratch", *SMALL, *ROUNDS, *further])


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    """The folder of a run that keeps the best of two rounds."""
    folder = tmp_path_factory.mktemp("rounds") / "run"
    run_pipeline(configured("rounds.keep=best"), folder)
    return folder


def test_the_round_that_did_best_counts_with_its_own_world_model(best):
    found = json.loads((best / "rounds.json").read_text())
    scores = [entry["score"] for entry in found["rounds"]]
    assert len(scores) == 2 and found["kept"] == {TASK: max((score, number) for number, score in enumerate(scores))[1]}
    number = found["kept"][TASK]
    kept = best / "rounds" / str(number)
    assert_same(read_tensors(best / FILE, what="policy"), read_tensors(kept / FILE, what="policy"))
    file = best / "world_model" / "world_model.pt" if number == 0 else kept / "world_model" / "world_model.pt"
    assert (best / "rounds" / "world_model.pt").read_bytes() == file.read_bytes()
    assert_same(load_world_model(best).state_dict(), load_world_model(file).state_dict())


def test_rounds_end_where_no_policy_exploits_the_model(tmp_path):
    # Three episodes of random actions: no model of that can promise more than it earns by chance.
    folder = tmp_path / "run"
    run_pipeline(configured("rounds.count=3", "rounds.until_honest=true", "extraction.select=last"), folder)
    found = json.loads((folder / "rounds.json").read_text())
    honest = [all("no sign" in line for lines in one["trust"].values() for line in lines) for one in found["rounds"]]
    number = found["kept"][TASK]
    assert number == len(honest) - 1 and honest == [False] * number + [True]
    left, kept = read_tensors(folder / FILE, what="policy"), folder / "rounds" / str(number) / FILE
    assert_same(left, read_tensors(kept, what="policy"))


@pytest.mark.parametrize(
    ("exploited", "expected"),
    [
        ({TASK: [True, False, True], OTHER: [False, False, False]}, {TASK: 1, OTHER: 2}),
        ({TASK: [True, True, True], OTHER: [False, True, True]}, {TASK: 2, OTHER: 0}),
    ],
)
def test_the_last_honest_round_of_each_task_counts(exploited, expected):
    rounds = [
        Round(
            number,
            Path(str(number)),
            Path("world_model.pt"),
            dict.fromkeys(exploited, 0.0),
            {task: [{"exploited": False}, {"exploited": signs[number]}] for task, signs in exploited.items()},
        )
        for number in range(3)
    ]
    assert {task: found.number for task, found in choose(rounds, "honest").items()} == expected


def test_the_best_round_of_each_task_counts_and_of_equal_ones_the_last():
    scores = [{TASK: 0.4, OTHER: 1.0}, {TASK: 0.9, OTHER: 0.0}, {TASK: 0.3, OTHER: 1.0}]
    rounds = [Round(number, Path(), Path(), each, {}) for number, each in enumerate(scores)]
    assert {task: found.number for task, found in choose(rounds, "best").items()} == {TASK: 1, OTHER: 2}


def test_tasks_whose_last_honest_rounds_differ_have_world_models_of_their_own(tmp_path):
    folder = tmp_path / "run"
    line = ["rounds.keep=honest", f"task=[{TASK},{OTHER}]", "evaluation.episodes=1"]
    run_pipeline(configured(*line), folder)
    # What the probe says of policies that have hardly learnt hangs on the machine: say it, and choose again.
    for task, number in ((TASK, 0), (TASK, 1), (OTHER, 0), (OTHER, 1)):
        file = folder / "rounds" / str(number) / "policies" / task / "seed-0" / "result.json"
        result = json.loads(file.read_text())
        result["last"]["trust"]["exploited"] = (task, number) == (TASK, 1)
        file.write_text(json.dumps(result))
    shutil.rmtree(folder / "policies")
    (folder / "summary.json").unlink()
    run_pipeline(configured(*line), folder)
    assert json.loads((folder / "rounds.json").read_text())["kept"] == {TASK: 0, OTHER: 1}
    summary = json.loads((folder / "summary.json").read_text())
    assert [entry["task"] for entry in summary["tasks"]] == [TASK, OTHER]
    models = {TASK: folder / "world_model" / "world_model.pt", OTHER: folder / "rounds/1/world_model/world_model.pt"}
    assert {task: kept_world_model(folder, task) for task in models} == models  # which the films are played in
    for task, number in ((TASK, 0), (OTHER, 1)):
        model = load_policy(folder, "cpu", task=task).world_model
        assert_same(model.state_dict(), load_world_model(models[task]).state_dict())
        file = Path("policies") / task / "seed-0" / "policy.pt"
        kept = folder / "rounds" / str(number) / file
        assert_same(read_tensors(folder / file, what="policy"), read_tensors(kept, what="policy"))
    assert not (folder / "rounds" / "world_model.pt").exists()


def test_policies_that_begin_anew_in_the_last_model_are_one_more_round_to_choose(best, tmp_path):
    folder = Path(shutil.copytree(best, tmp_path / "run"))
    config, saved = configured("rounds.keep=best", "rounds.anew=true"), folder / "config.yaml"
    _, text = saved.read_text().split("\n", 1)  # without its checksum, as one that was changed by hand
    saved.write_text(text.replace("anew: false", "anew: true"))
    for again in range(2):
        shutil.rmtree(folder / "policies")
        (folder / "summary.json").unlink()
        run_pipeline(config, folder)
        for number, place in enumerate(["0", "1", "1/anew"]) if not again else ():
            file = folder / "rounds" / place / FILE.with_name("result.json")
            result = json.loads(file.read_text())
            result["successes"] = [number == 2]
            file.write_text(json.dumps(result))
    found = json.loads((folder / "rounds.json").read_text())
    assert [(entry["round"], "anew" in entry) for entry in found["rounds"]] == [(0, False), (1, False), (1, True)]
    assert (found["kept"], found["anew"]) == ({TASK: 1}, [TASK])
    kept = folder / "rounds" / "1" / "anew" / FILE
    assert_same(read_tensors(folder / FILE, what="policy"), read_tensors(kept, what="policy"))
    assert (folder / "rounds" / "world_model.pt").read_bytes() == (
        folder / "rounds" / "1" / "world_model" / "world_model.pt"
    ).read_bytes()
    steps, _ = policy_metrics(folder, {"task": TASK, "seed": 0})["loss_actor"]
    assert steps.tolist() == list(range(2, 51, 2)), "20 and 10 updates of the rounds, 20 from the start"


def test_the_last_policies_are_those_that_begin_anew_where_the_last_ones_count(best, tmp_path):
    folder = Path(shutil.copytree(best, tmp_path / "run"))
    saved = folder / "config.yaml"
    _, text = saved.read_text().split("\n", 1)
    saved.write_text(text.replace("anew: false", "anew: true").replace("keep: best", "keep: last"))
    shutil.rmtree(folder / "policies")
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "rounds" / "1" / "policies")
    run_pipeline(configured("rounds.keep=last", "rounds.anew=true"), folder)
    steps, _ = policy_metrics(folder, {"task": TASK, "seed": 0})["loss_actor"]
    assert steps.tolist() == list(range(2, 41, 2)), "20 updates before the round, 20 from the start after it"


def test_policies_that_begin_anew_know_nothing_of_the_rounds_but_the_model(best):
    before = [Round(number, best / "rounds" / str(number), best, {TASK: 0.0}, {TASK: []}) for number in range(2)]
    config = configured("rounds.starts_matched=0.9")
    assert beginning(config, before, True) == beginning(config, [], False)
    assert beginning(config, before, False)[1].own and not beginning(config, before, True)[1].own


@pytest.mark.parametrize(
    ("honest_from", "keep", "extracted", "counts"),
    [
        (9, "best", ["0", "1", "2", "2 anew"], True),
        (1, "best", ["0", "1", "1 anew"], True),
        (1, "honest", ["0", "1", "1 anew"], True),
        (0, "best", ["0"], False),
        (9, "last", ["0", "1"], None),
    ],
)
def test_policies_begin_anew_once_after_the_last_round(tmp_path, honest_from, keep, extracted, counts):
    done = []

    def extract(file, rounds, anew):
        number, folder = place_of(tmp_path, rounds, anew)
        done.append(f"{number} anew" if anew else str(number))
        trust = {TASK: [{"exploited": number < honest_from, "line": ""}]}
        return Round(number, folder, file, {TASK: 0.5}, trust, anew)

    settings = configured(
        "rounds.count=2", "rounds.until_honest=true", "rounds.anew=true", f"rounds.keep={keep}"
    ).rounds
    _, _, chosen = go_through(
        settings, tmp_path, tmp_path, extract=extract, play=lambda last: None, train=lambda file, rounds: file
    )
    assert done == extracted
    assert chosen is counts if counts is None else chosen[TASK].anew is counts


def test_a_run_goes_on_with_further_rounds(best, tmp_path):
    folder = Path(shutil.copytree(best, tmp_path / "run"))
    before = {
        path: path.read_bytes() for path in (folder / "rounds").rglob("*") if path.name in ("policy.pt", "steps.bin")
    }
    line = [f"resume={folder}", "rounds.count=2"]
    run_pipeline(*open_run(command_config("mt80", line), line))
    found, first = (json.loads((place / "rounds.json").read_text())["rounds"] for place in (folder, best))
    assert [one["score"] for one in found[:2]] == [one["score"] for one in first] and len(found) == 3
    assert all(path.read_bytes() == content for path, content in before.items())
    assert (folder / "rounds" / "2" / FILE).exists() and (folder / "summary.json").exists()
    assert json.loads((folder / "earlier" / "rounds.count-1" / "summary.json").read_text())["tasks"]


def test_the_world_model_of_a_round_hangs_on_nothing_that_the_process_drew_before(best, tmp_path):
    """With one head a sequence the loss draws; a run that was resumed has drawn other numbers before."""
    config, data = configured("model.num_heads=2", "model_loss.heads=one"), EpisodeStore(best / "data")
    before = [Round(0, best / "rounds" / "0", best, {TASK: 0.0}, {TASK: []})]
    measured = {"states": measured_states(data, [TASK], seed=0), "names": data.task_set.names}
    torch.manual_seed(0)
    weights, files = make_world_model(config).state_dict(), []
    for number in (1, 2):
        model = make_world_model(config)
        model.load_state_dict(weights)
        torch.manual_seed(number)
        files.append(train_on(config, tmp_path / str(number), model, best / "data", before, [TASK], **measured))
    assert_same(*(read_tensors(file)["model"] for file in files))


def test_every_round_has_an_ensemble_whose_spread_is_penalised(tmp_path):
    settings = ("loss.disagreement_coef=0.1", "world_model.disagreement_iterations=2")
    run_pipeline(configured(*settings), tmp_path / "run")
    assert len(list((tmp_path / "run").rglob("*disagreement*"))) == 2
    assert (tmp_path / "run" / "summary.json").exists()


def test_policies_of_rounds_do_not_go_back_to_the_updates_before(best):
    line = [f"resume={best}", "extraction.iterations=40"]
    with pytest.raises(ValueError, match=r"extraction.iterations: the run has 20.* More .*rounds.count than it has"):
        open_run(command_config("mt80", line), line)


@pytest.mark.parametrize(("rate", "expected"), [("null", [4e-3, 4e-3, 4e-3]), ("1e-3", [4e-3, 2e-3, 1e-3])])
def test_the_rate_of_the_actor_falls_from_round_to_round(best, rate, expected):
    line = ["stepper.actor_lr=4e-3", f"rounds.actor_lr={rate}", "rounds.count=2"]
    before = [Round(number, best, best, {TASK: 0.0}, {TASK: []}) for number in range(2)]
    config, cold = configured(*line), configured(*line, "rounds.warm=false")
    later = [beginning(config, before[:number], False)[0] for number in range(3)]
    assert [each.stepper.actor_lr for each in later] == pytest.approx(expected)
    assert [each.extraction.iterations for each in later] == [20, 10, 10]
    assert beginning(cold, before, False)[0].stepper.actor_lr == 4e-3
    del config.rounds.actor_lr  # as in a run of before
    assert beginning(config, before, False)[0].stepper.actor_lr == 4e-3


def test_rounds_are_scored_on_seeds_apart_from_the_final_ones(best):
    within = json.loads((best / "rounds" / "1" / FILE.with_name("result.json")).read_text())
    final = json.loads((best / FILE.with_name("result.json")).read_text())
    assert len(within["last"]["returns"]) == 1 and len(final["last"]["returns"]) == 2
    assert within["last"]["returns"][0] not in final["last"]["returns"]


def test_curves_go_through_all_rounds(best):
    steps, _ = policy_metrics(best, {"task": TASK, "seed": 0})["loss_actor"]
    assert steps.tolist() == list(range(2, 31, 2))
    summary = json.loads((best / "summary.json").read_text())
    seconds = [json.loads(file.read_text())["seconds"] for file in best.glob("rounds/*/policies/*/*/result.json")]
    assert len(seconds) == 2 and summary["tasks"][0]["seconds_extraction"] == pytest.approx(sum(seconds), abs=0.2)


def make_job(best, folder, before):
    config = OmegaConf.to_container(configured(), resolve=True)
    data, model = best / "data", best / "rounds" / "1" / "world_model" / "world_model.pt"
    return ExtractionJob(config, TASK, 0, folder, data, model, threads=1, device="cpu", before=before)


def test_actor_and_critics_begin_where_the_round_before_left_them(best, tmp_path):
    extraction = Extraction(make_job(best, tmp_path, Before(best / "rounds" / "0")))
    extraction.begin()
    left = read_tensors(best / "rounds" / "0" / FILE, what="policy")
    assert_same(dict(extraction.loss.actor_network.state_dict()), left["actor"])
    assert_same(dict(extraction.loss.value_network.state_dict()), left["value"])
    fresh = Extraction(make_job(best, tmp_path / "fresh", Before()))
    weights = fresh.loss.actor_network.state_dict()
    assert any(not torch.equal(value, left["actor"][key]) for key, value in weights.items())


def test_slow_critics_begin_where_the_critics_do(tmp_path):
    model = make_world_model(configured())
    before, after = (make_loss(configured("loss.delay_value=true"), model, 6) for _ in range(2))
    save_policy(before, tmp_path / "policy.pt")
    load_weights_of(after, tmp_path / "policy.pt")
    for slow, fast in zip(*after.slow_and_fast()):
        torch.testing.assert_close(slow, fast)


@pytest.fixture
def marked(tmp_path):
    """Data whose observations are zeros, and own episodes of two seeds whose observations are ones and twos."""
    for name, value in (("data", 0.0), ("own/seed-0", 1.0), ("own/seed-1", 2.0)):
        with EpisodeStoreWriter(tmp_path / name, "mt80", {TASK: 10}, row_length=100) as writer:
            observation = np.zeros((10, 101, 39), np.float32)
            observation[..., :3] = value
            writer.write(TASK, observation, np.zeros((10, 100, 6), np.float32), np.ones((10, 100), np.float32))
    return tmp_path


@pytest.mark.parametrize("starts", ["{count: 200, resets: 0.1, top: 0.5}", "null"])
def test_a_share_of_the_start_states_is_the_policies_own(marked, starts):
    config = configured(f"extraction.starts={starts}", "extraction.batch_size=200")
    before = Before(own=(marked / "own",), share=0.3)
    torch.manual_seed(0)
    model = make_world_model(config).requires_grad_(False)
    replay = make_starts(config, TASK, 0, model, data=marked / "data", before=before, device="cpu")
    batch = torch.cat([replay.sample().reshape(-1) for _ in range(20)])
    wanted = {0.0: 0.7, 1.0: 0.15, 2.0: 0.15}
    for value, share in wanted.items():
        assert seen(batch, model, value) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("starts", ["{count: 20, resets: 0.1, top: 0.5}", "null"])
@pytest.mark.parametrize(
    ("share", "wanted"), [(0.0, {0.0: 1.0}), (1.0, {1.0: 0.5, 2.0: 0.5}), (0.05, {0.0: 0.95, 2.0: 0.05})]
)
def test_a_set_that_has_no_share_is_left_out(marked, starts, share, wanted):
    config = configured(f"extraction.starts={starts}", "extraction.batch_size=20")
    before = Before(own=(marked / "own",), share=share, matched=share)
    model = make_world_model(config).requires_grad_(False)
    replay = make_starts(config, TASK, 0, model, data=marked / "data", before=before, device="cpu")
    batch = torch.cat([replay.sample().reshape(-1) for _ in range(10)])
    for value in (0.0, 1.0, 2.0):
        assert seen(batch, model, value) == pytest.approx(wanted.get(value, 0.0), abs=0.1)


@pytest.mark.parametrize(("reward", "share"), [(-2.5, 0.3), (1.25, 0.6), (5.0, 0.9), (25.0, 0.9)])
def test_more_start_states_are_the_policies_own_where_they_earn_more(tmp_path, reward, share):
    # recorded returns: 500 in the mean, 500 their standard deviation
    for name, rewards in (("data", [0.0, 10.0] * 5), ("own", [reward] * 10)):
        with EpisodeStoreWriter(tmp_path / name, "mt80", {TASK: 10}, row_length=100) as writer:
            steps = np.broadcast_to(np.float32(rewards)[:, None], (10, 100))
            writer.write(TASK, np.zeros((10, 101, 39), np.float32), np.zeros((10, 100, 6), np.float32), steps)
    before = Before(own=(tmp_path / "own",), share=0.3, matched=0.9)
    assert own_share(before, tmp_path / "data", TASK) == pytest.approx(share)
    assert own_share(replace(before, matched=None), tmp_path / "data", TASK) == 0.3


def seen(batch, model, value):
    """Share of the states of a batch, latents or observations, that are those of a value."""
    if "observation" in batch.keys():  # noqa: SIM118, a TensorDict has no `in` of its own
        return float((batch["observation"][:, 0] == value).float().mean())
    task = int(batch["task"][0])
    wanted = model.encode_observation(torch.zeros(1, 39).index_fill(1, torch.arange(3), value), task)
    return float(torch.isclose(batch["latent"], wanted, atol=1e-6).all(-1).float().mean())


@pytest.mark.parametrize(
    ("command", "stepper", "final", "lr", "expected"),
    [
        ("mt80", "model_stepper", 1e-5, 3e-4, (3e-4, 1e-5)),
        ("mt80", "model_stepper", 1e-3, 3e-4, (3e-4, 3e-4)),
        ("mt80", "model_stepper", None, 3e-4, (3e-4, None)),
        ("mt80", "model_stepper", 1e-5, None, (1e-3, 1e-5)),
        ("offline", "model_stepper", 1e-5, 3e-4, (3e-4, 1e-5)),
        ("tdmpc2-mt80", "stepper", 1e-5, 2e-4, (2e-4, 1e-5)),
    ],
)
def test_the_rate_of_a_round_falls_as_that_of_the_training_before(command, stepper, final, lr, expected):
    written = ["null" if value is None else str(value) for value in (final, lr)]
    line = [f"{stepper}.lr=1e-3", f"{stepper}.final_lr={written[0]}", f"rounds.lr={written[1]}"]
    settings = with_rate(command_config(command, line), stepper)[stepper]
    assert (settings.lr, settings.final_lr) == expected


def test_no_two_rounds_play_the_same_episodes():
    seeds = [round_seed(seed, number) + episode for seed in range(6) for number in range(12) for episode in range(100)]
    assert len(set(seeds)) == len(seeds) and min(seeds) > 100_000
