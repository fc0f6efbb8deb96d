"""Report of a run on recorded data: what the held-out episodes say of its model, critics and policy."""

from __future__ import annotations

import datetime
import json
import math
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_pwm._utils.files import replace_file
from torchrl_pwm.evaluation import collapse_warning, package_versions, representation
from torchrl_pwm.evaluation.held_out import distance_from_data, open_loop_ends, open_loop_errors, value_gaps
from torchrl_pwm.evaluation.trust import PROBED_STEPS
from torchrl_pwm.modules import PWMWorldModel
from torchrl_pwm.objectives import PWMLoss
from torchrl_pwm.runs.recordings import Recordings

_SEQUENCES, _STATES = 1024, 2048  # that are measured, at most
_ENOUGH, _SMALL = 0.5, 0.05  # of the rewards' variance and size: what counts as predicted


@torch.no_grad()
def measure_trust(
    config: DictConfig, recordings: Recordings, task: str, model: PWMWorldModel, loss: PWMLoss
) -> dict[str, Any]:
    """What the held-out episodes of a task say of its model, critics and policy; plain numbers.

    Without held-out episodes it is measured on those that were learned from, which ``"held_out": 0`` says.
    """
    store, device = recordings.store, next(model.parameters()).device
    (rows,) = store.select(task)
    own = recordings.held_out[(recordings.held_out >= rows.start) & (recordings.held_out < rows.stop)]
    measured = recordings.measured(task)
    sequences = measured_sequences(config, recordings, task, _SEQUENCES).to(device)
    episodes = [{**store.episode(row)._asdict(), "terminated": store.terminated[row]} for row in measured.tolist()]
    gaps = value_gaps(
        model,
        loss.value_network,
        episodes,
        gamma=config.extraction.gamma,
        task=rows.index if model.num_tasks else None,
    )
    kept = int(((recordings.kept >= rows.start) & (recordings.kept < rows.stop)).sum())
    sizes = {"kept": kept, "held_out": len(own), "transitions": int(store.lengths[measured].sum())}
    return {
        **sizes,
        "behavior_return_mean": rows.behavior_return_mean,
        "reward": open_loop_errors(model, sequences),
        "representation": representation(model, sequences),
        "ends": open_loop_ends(model, sequences) if model.termination else None,
        "value_gap": {"mean": float(gaps.mean()), "std": float(gaps.std())},
        "behavior_distance": float(loss.behavior_distance(sequences[:, 0])) ** 0.5,
        "distance_from_data": _distance(config, recordings, task, model, loss, sequences[:, 0]),
    }


def measured_sequences(config: DictConfig, recordings: Recordings, task: str, count: int) -> TensorDictBase:
    """Sequences [count, T] of the episodes of a task that the model is measured on."""
    measured = recordings.measured(task)
    longest = min(max(PROBED_STEPS), int(recordings.store.lengths[measured].max()))
    return recordings.replay(count, longest, episodes=measured, tasks=task, seed=config.seed).sample()


def _distance(
    config: DictConfig, recordings: Recordings, task: str, model: PWMWorldModel, loss: PWMLoss, starts: Any
) -> float:
    """How much farther the last states that the policy imagines lie from the data than real held-out ones do."""
    known = recordings.replay(_STATES, 1, tasks=task, seed=config.seed).sample()[:, 0].to(starts.device)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        noise = torch.zeros(loss.horizon, len(starts), model.action_dim, device=starts.device)
        imagined = loss.imagine(starts, noise)["next", "latent"][:, -1]
    latents = [model.encode_observation(td["observation"], _task(model, td)) for td in (known, starts)]
    return distance_from_data(imagined, *latents)


def _task(model: PWMWorldModel, td: Any) -> Any:
    return td["task"] if model.num_tasks else None


def write_offline_report(
    config: DictConfig, folder: Path, recordings: Recordings, results: dict[str, dict[str, Any]], *, seconds: float
) -> Path:
    """Writes ``report.md`` and ``summary.json``, whose path it returns."""
    content = {
        "data": str(recordings.store.root),
        "seed": config.seed,
        "evaluation_seed": config.evaluation.seed,
        "select": config.extraction.select,
        "seconds": round(seconds, 1),
        "tasks": results,
        "versions": package_versions(),
        "made": datetime.date.today().isoformat(),
    }
    text = "\n".join([_head(recordings), *(_section(config, task, result) for task, result in results.items())])
    replace_file(folder / "report.md", text.encode())
    replace_file(folder / "summary.json", json.dumps(_plain(content), indent=2, allow_nan=False).encode())
    return folder / "summary.json"


def _plain(value: Any) -> Any:
    """Numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _head(recordings: Recordings) -> str:
    store = recordings.store
    ended = int(store.terminated.sum())
    return (
        f"# {store.root.name}: a policy from recorded data\n\n{store.num_rows:,} episodes of "
        f"{store.lengths.min()} to {store.lengths.max()} steps, {store.num_transitions:,} together; {ended:,} ended by "
        "termination.\n"
    )


def _section(config: DictConfig, task: str, result: dict[str, Any]) -> str:
    """What is said of one task."""
    lines = [f"## {task}\n"]
    if "outcomes" in result:
        lines += _returns(result["outcomes"], result["behavior_return_mean"], config.extraction.select)
    lines += _rounds(task, result.get("rounds"))
    count = f"{result['held_out']:,} of {result['held_out'] + result['kept']:,} episodes, which were held out"
    where = count if result["held_out"] else "the episodes that it learned from, as none was held out"
    lines.append(f"How far to trust the model, by {where} ({result['transitions']:,} steps):\n")
    lines += ["| steps ahead | reward, predicted - real | mean size | variance explained | of the state |"]
    lines += ["|---|---|---|---|---|"]
    reward = result["reward"]
    for step, error in reward["error"].items():
        share, state = reward["explained"][step], reward["state_explained"][step]
        shown = "does not vary" if math.isnan(share) else f"{share:.0%}"
        lines.append(f"| {step} | {error:+.3g} | {reward['absolute_error'][step]:.3g} | {shown} | {state:.0%} |")
    gap = result["value_gap"]
    lines += ["", _reach(config, reward)]
    lines += _latents(result["representation"])
    if (ends := result["ends"]) is not None:
        lines.append(
            f"- Ends of episodes: to the steps that really ended one the model gives a probability of "
            f"{ends['where_ended']:.2f} on average, to the others {ends['elsewhere']:.3f}."
        )
    lines.append(
        f"- V - G, the critics' values minus the discounted return that the data went on to earn: {gap['mean']:+.3g} "
        f"on average, with a spread of {gap['std']:.3g}. Far above zero it is a promise that the data do not support."
    )
    lines.append(
        f"- The policy's action differs from the recorded one by {result['behavior_distance']:.2f} (root mean square, "
        f"in [-1, 1]). After {config.loss.horizon} imagined steps its states lie {result['distance_from_data']:.1f} "
        f"times as far from the data as real ones {'that were held out' if result['held_out'] else 'of it'}."
    )
    lines += _trust(result.get("outcomes"))
    return "\n".join([*lines, ""])


def _rounds(task: str, found: dict[str, Any] | None) -> list[str]:
    """What the policy of each round earned, on seeds apart from those above."""
    if found is None:
        return []
    rows = [
        f"| {each['round']}{', anew' if 'anew' in each else ''} | {each['tasks'][task]:.1f} | "
        f"{'; '.join(each['trust'][task])} |"
        for each in found["rounds"]
    ]
    head = [
        "Before it, on other seeds, the policies of the rounds:\n",
        "| round | return | trust probe |",
        "|---|---|---|",
    ]
    if found["kept"] is None:
        return [*head, *rows, ""]
    anew = ", begun anew," if task in found.get("anew", []) else ""
    return [*head, *rows, f"\nThat of round {found['kept'][task]}{anew} counts.", ""]


def _trust(outcomes: dict[str, Any] | None) -> list[str]:
    """What the trust probe says of the policy that counts, or what is not known without an env."""
    if outcomes is None:
        return [
            "- Nothing here is a return of the policy: no env was given (env=). What it earns on the machine is known "
            "when it has run there.",
            "- Whether the policy exploits the model cannot be known without an env: all of the above is of states "
            "that the data hold, and the policy may leave them for others where model and critics promise too much.",
        ]
    trust = outcomes["policy"].get("trust")
    if trust is None:
        return []
    lines = [f"- Trust probe, of the policy's {len(outcomes['policy']['returns'])} real episodes: {trust['line']}."]
    pairs = [(trust[where] or {}).get("observation_error", {}) for where in ("own", "data")]
    steps = [step for step in pairs[0] if step in pairs[1]]
    if steps:
        shown = ", ".join(f"{pairs[0][step]:.2g} and {pairs[1][step]:.2g} at step {step}" for step in steps)
        lines.append(
            "- The model's error of the observation on the policy's own path and on the data, in standard deviations: "
            f"{shown}. Several times as large on its own path, the policy has left the data."
        )
    return lines


def _latents(found: dict[str, float]) -> list[str]:
    """How well the latents tell states apart, and an alarm where they do not."""
    if "observation_explained" not in found:
        return [f"- The latent's standard deviation over states is {found['latent_spread']:.3g}."]
    share, spread = found["observation_explained"], found["latent_spread"]
    decoded = f", its own decoder {found['decoder_explained']:.0%}" if "decoder_explained" in found else ""
    lines = [
        f"- From the latent, whose standard deviation over states is {spread:.3g}, a small network reads {share:.0%} "
        f"of the observations' variance{decoded}."
    ]
    warning = collapse_warning({"": found})
    return [*lines, f"- {warning}"] if warning else lines


def _returns(outcomes: dict[str, Any], behavior: float, select: str) -> list[str]:
    head = f"Return of {len(outcomes['policy']['returns'])} episodes in the env; the {select} policy counts:\n"
    rows = [f"| {name} | {found['return_mean']:.1f} +- {found['return_std']:.1f} |" for name, found in outcomes.items()]
    return [head, "| | mean +- standard deviation |", "|---|---|", *rows, f"| the data | {behavior:.1f} |", ""]


def _reach(config: DictConfig, reward: dict[str, dict[int, float]]) -> str:
    """Up to how many steps ahead the model can be believed."""
    believed = {
        step: error <= _SMALL or reward["explained"][step] >= _ENOUGH
        for step, error in reward["relative_error"].items()
    }
    first_bad = min((step for step, good in believed.items() if not good), default=None)
    meaning = f"half of the variance explained, or an error of the reward below {_SMALL:.0%} of its size"
    if first_bad is None:
        return f"- The model can be believed up to {max(believed)} steps ahead ({meaning})."
    if first_bad == min(believed):
        return (
            f"- The model cannot be believed even {first_bad} step ahead ({meaning}): do not use this policy. More "
            "data, or more world_model.iterations, may help."
        )
    reach = max(step for step in believed if step < first_bad)
    advice = f" The policy was optimised over {config.loss.horizon}." if config.loss.horizon > reach else ""
    return f"- The model can be believed up to {reach} steps ahead ({meaning}), not {first_bad}.{advice}"
