"""Why a world model: the variance of policy gradients on the double pendulum, as in figure 3 of PWM (arXiv 2407.02466).

    python examples/gradient_variance.py            # 5 minutes on one core; writes docs/images/gradient_variance.png
    python examples/gradient_variance.py --policies 2

The gradient of the reward summed over h steps is sampled 100 times for h = 1..50: through the true dynamics, and
through world models trained on sequences of H = 3 and of H = 16 steps. Policy, noise and start, hanging at rest,
are the same in all. The policy reads the model's latent, of the true observation where the dynamics are true, and
takes it as given (detached): all three gradients have the same parameters. Rewards are in the model's unit, one
standard deviation.

    variance(h) = mean over parameters of Var[g],   ESNR(h) = mean over parameters of E[g]^2 / (Var[g] + 1e-9)

Claim: variance grows with h fastest under the true dynamics; the model trained over long horizons has the higher
ESNR at long horizons (here: the mean over h = 30..50). A gradient without noise is of no use if it points
elsewhere, so the figure adds the angle between the mean gradient of a model and the true one.

Both models share the first half of their updates, at H = 3, unless ``--from-scratch``.

Found here, with two random policies in each of 3 seeds: variance grows slower in the model of H = 16 than under the
true dynamics in 3, in that of H = 3 in 2; late ESNR in the model of H = 16 beats that of H = 3 in 1 and the true
dynamics in 1. The mean gradient of the model of H = 16 stays within 40 degrees of the true one in all of them.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torchrl.data import ReplayBuffer, SliceSampler, TensorStorage
from torchrl.envs import EnvBase, TransformedEnv
from tqdm import tqdm

from torchrl_pwm import PWMWorldModel, PWMWorldModelLoss, WorldModelWrapper, make_pwm_actor
from torchrl_pwm.envs.simulators import AnalyticEnv, SwingUpController

TASK = "double_pendulum"
# The figure looks 50 steps ahead, 0.8 s: later in an episode random torques only spin the rods ever faster.
EPISODE_STEPS = 60
SHORT, LONG = 3, 16
LATENT, UNITS, POLICY_UNITS = 64, (128, 128), (64, 64)
NAMES = {"true": "true dynamics", SHORT: f"model trained at H = {SHORT}", LONG: f"model trained at H = {LONG}"}
COLORS = {"true": "#1b1f24", SHORT: "#d1495b", LONG: "#2f6db3"}


class MixedBehavior(TensorDictModuleBase):
    """Uniform random actions in half of the episodes; in the others they are mixed with the swing-up controller's."""

    in_keys, out_keys = ["observation"], ["action"]

    def __init__(self, episodes: int) -> None:
        super().__init__()
        self.controller = SwingUpController(TASK)
        self.share = (2 * torch.rand(episodes, 1)).clamp_max(1.0)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        wanted = self.controller(tensordict)["action"]
        return tensordict.set("action", torch.lerp(wanted, 2 * torch.rand_like(wanted) - 1, self.share))


def collect(episodes: int) -> TensorDictBase:
    """Episodes ``[episodes, 60]`` from drawn starts."""
    env = AnalyticEnv(TASK, episodes, episode_length=EPISODE_STEPS, seed=int(torch.randint(2**31, ())))
    with torch.no_grad(), tqdm(total=EPISODE_STEPS, desc="collecting", unit="step", leave=False) as bar:
        return env.rollout(EPISODE_STEPS, MixedBehavior(episodes), callback=lambda *_: bar.update())


def standardize_reward(data: TensorDictBase) -> float:
    """Rewards of mean 0 and standard deviation 1, as PWM's single-task models see them; returns the old deviation."""
    std, mean = torch.std_mean(data["next", "reward"])
    data["next", "reward"] = (data["next", "reward"] - mean) / std
    return std.item()


def make_model(data: TensorDictBase) -> PWMWorldModel:
    """A small world model with a scalar reward head, untrained."""
    observation = data["observation"].flatten(0, 1)
    model = PWMWorldModel(
        observation.shape[-1], data["action"].shape[-1], latent_dim=LATENT, encoder_units=UNITS[:1], units=UNITS
    )
    model.set_observation_statistics(*reversed(torch.std_mean(observation, 0)))
    return model


def train(
    model: PWMWorldModel, data: TensorDictBase, horizon: int, *, updates: int, lr: float, transitions: int = 512
) -> PWMWorldModel:
    """Trains on sequences of ``horizon`` steps, with as many transitions in a batch at any horizon."""
    sampler = SliceSampler(slice_len=horizon, end_key=("next", "done"), cache_values=True)
    batch_size = transitions // horizon * horizon
    buffer = ReplayBuffer(storage=TensorStorage(data.reshape(-1)), sampler=sampler, batch_size=batch_size)
    loss = PWMWorldModelLoss.single_task(model, divide_reward_by_horizon=False)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, updates)
    for _ in tqdm(range(updates), desc=f"training at H = {horizon}", unit="update", leave=False):
        losses = loss(buffer.sample().reshape(-1, horizon))
        optimizer.zero_grad()
        (losses["loss_consistency"] + losses["loss_reward"]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 20.0)
        optimizer.step()
        schedule.step()
    return model


class NoisyPolicy(TensorDictModuleBase):
    """a_k = tanh(mu(z_k) + sigma eps_k) with given noise eps [H, N, A]; keeps latents, and actions as leaves."""

    in_keys, out_keys = ["latent"], ["action"]

    def __init__(self, network: nn.Module, noise: Tensor) -> None:
        super().__init__()
        self.network, self.noise = network, noise
        self.latents: list[Tensor] = []
        self.actions: list[Tensor] = []

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        latent = tensordict["latent"].detach()
        with torch.no_grad():
            action = squashed(self.network(latent), self.noise[len(self.actions)])
        self.latents.append(latent)
        self.actions.append(action.requires_grad_())
        return tensordict.set("action", action)


def squashed(parameters: tuple[Tensor, Tensor], noise: Tensor) -> Tensor:
    """tanh(loc + scale noise)."""
    loc, scale = parameters
    return torch.tanh(loc + scale * noise)


def sampled_gradients(env: EnvBase, network: nn.Module, noise: Tensor) -> Iterator[Tensor]:
    """For h = 1..H in turn: each sample's gradient of R_h = r_1 + ... + r_h by the P policy parameters, [N, P].

    The policy reads detached latents, so that its parameters reach a reward through the actions alone:

        dR_h / dtheta = sum_k (da_k / dtheta)^T dR_h / da_k,

    with the first factor from the policy at z_k and the second, for all h at once, from one batched backward pass.
    """
    steps = len(noise)
    policy = NoisyPolicy(network, noise)
    reward = env.rollout(steps, policy, break_when_any_done=False)["next", "reward"].sum((0, 2))
    partial_sums = torch.ones(steps, steps, dtype=reward.dtype).tril()
    # [h, k, N, A]
    slopes = torch.stack(torch.autograd.grad(reward, policy.actions, partial_sums, is_grads_batched=True), 1)
    latents = torch.stack(policy.latents)

    def weighted_actions(parameters: dict[str, Tensor], latent: Tensor, eps: Tensor, slope: Tensor) -> Tensor:
        return (squashed(functional_call(network, parameters, latent), eps) * slope).sum()

    per_sample = vmap(grad(weighted_actions), in_dims=(None, 1, 1, 1))
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    for h in range(1, steps + 1):
        gradients = per_sample(parameters, latents[:h], noise[:h], slopes[h - 1, :h])
        yield torch.cat([gradient.flatten(1) for gradient in gradients.values()], 1)


def variance(gradients: Tensor) -> float:
    """mean over parameters of Var[g], for samples ``[N, P]``."""
    return gradients.var(0).mean().item()


def esnr(gradients: Tensor) -> float:
    """Expected signal-to-noise ratio: mean over parameters of E[g]^2 / (Var[g] + 1e-9); pure noise has 1 / N."""
    return (gradients.mean(0).square() / (gradients.var(0) + 1e-9)).mean().item()


@dataclass(frozen=True)
class Curves:
    """Of one dynamics, by h: variance and ESNR [H], and the mean gradient [H, P]."""

    variance: np.ndarray
    esnr: np.ndarray
    mean: Tensor

    @property
    def growth(self) -> float:
        """Factor by which the variance grows in ten steps: from the slope of log variance over h."""
        return float(10 ** (10 * np.polyfit(np.arange(len(self.variance)), np.log10(self.variance), 1)[0]))

    @property
    def last(self) -> float:
        """Variance at the longest horizon."""
        return float(self.variance[-1])

    @property
    def late_esnr(self) -> float:
        """Mean ESNR of the last two fifths of the horizons, 30 to 50."""
        return float(self.esnr[3 * len(self.esnr) // 5 - 1 :].mean())


def measure(env: EnvBase, network: nn.Module, noise: Tensor, scale: float, name: str) -> Curves:
    """Curves of rewards times ``scale``."""
    rows = []
    samples = sampled_gradients(env, network, noise)
    for gradients in tqdm(samples, total=len(noise), desc=f"gradients, {name}", unit="horizon", leave=False):
        gradients = scale * gradients
        rows.append((variance(gradients), esnr(gradients), gradients.mean(0)))
    variances, ratios, means = zip(*rows)
    return Curves(np.array(variances), np.array(ratios), torch.stack(means))


@dataclass(frozen=True)
class Pair:
    """A model, and the true dynamics under the same policy: it reads the model's latent in both."""

    model: Curves
    true: Curves

    @property
    def cosine(self) -> np.ndarray:
        """Of the angle between both mean gradients, [H]."""
        return nn.functional.cosine_similarity(self.model.mean, self.true.mean, dim=-1).numpy()


def typical(pairs: list[Pair], dynamics: str, field: str) -> float:
    """Geometric mean over the policies of ``growth`` or ``late_esnr`` of the ``model`` or the ``true`` dynamics."""
    return geometric_mean(getattr(getattr(pair, dynamics), field) for pair in pairs)


def compare(model: PWMWorldModel, network: nn.Module, noise: Tensor, reward_std: float, name: str) -> Pair:
    """Both dynamics from the same start, hanging at rest, with the same policy and noise; in float64."""
    model, network, noise = copy.deepcopy(model).double(), copy.deepcopy(network).double(), noise.double()
    simulator = AnalyticEnv(TASK, noise.shape[1], dtype=torch.float64, requires_grad=True, stochastic_init=False)
    real = TransformedEnv(simulator, WorldModelWrapper(model))
    imagined = real.transform.imagined_env()
    return Pair(measure(imagined, network, noise, 1.0, name), measure(real, network, noise, 1 / reward_std, "true"))


Outcome = dict[int, list[Pair]]  # by the model's training horizon, for each policy


def run(seed: int, options: argparse.Namespace) -> Outcome:
    """Data, a model of each horizon, and the gradients of random policies."""
    torch.manual_seed(seed)
    data = collect(options.episodes)
    reward_std = standardize_reward(data)
    start, updates = make_model(data), options.updates
    if not options.from_scratch:
        updates //= 2
        start = train(start, data, SHORT, updates=updates, lr=2e-3)
    lr = 2e-3 if options.from_scratch else 6e-4
    models = {horizon: train(copy.deepcopy(start), data, horizon, updates=updates, lr=lr) for horizon in (SHORT, LONG)}
    outcome: Outcome = {horizon: [] for horizon in models}
    for _ in range(options.policies):
        network = make_pwm_actor(LATENT, 1, units=POLICY_UNITS).get_submodule("module.0.module")
        noise = torch.randn(options.steps, options.samples, 1)
        for horizon, model in models.items():
            outcome[horizon].append(compare(model, network, noise, reward_std, NAMES[horizon]))
    return outcome


def draw_curves(axes: Axes, curves: dict[str | int, list[np.ndarray]], *, log: bool) -> None:
    """Each run faintly and their mean, which on a logarithmic axis is the geometric one."""
    for kind, runs in curves.items():
        horizon = np.arange(1, len(runs[0]) + 1)
        for values in runs:
            axes.plot(horizon, values, color=COLORS[kind], alpha=0.3, lw=0.9)
        mean = np.exp(np.log(runs).mean(0)) if log else np.mean(runs, 0)
        axes.plot(horizon, mean, color=COLORS[kind], lw=2.2, label=NAMES[kind])
    if log:
        axes.set_yscale("log")
    axes.set_xlabel("horizon h [steps of 1/60 s]")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)


def draw(outcomes: list[Outcome], samples: int, path: Path) -> None:
    """Variance, ESNR and, beyond the paper, whether the model's mean gradient points where the true one does."""
    figure = Figure(figsize=(11.0, 4.2), layout="constrained", dpi=120)
    left, middle, right = figure.subplots(1, 3)
    for axes, field in ((left, "variance"), (middle, "esnr")):
        curves: dict[str | int, list[np.ndarray]] = {
            "true": [getattr(pair.true, field) for outcome in outcomes for pairs in outcome.values() for pair in pairs]
        }
        for horizon in (SHORT, LONG):
            curves[horizon] = [getattr(pair.model, field) for outcome in outcomes for pair in outcome[horizon]]
        draw_curves(axes, curves, log=True)
    cosines: dict[str | int, list[np.ndarray]] = {
        horizon: [pair.cosine for outcome in outcomes for pair in outcome[horizon]] for horizon in (SHORT, LONG)
    }
    draw_curves(right, cosines, log=False)
    middle.axhline(1 / samples, color="#8a8f98", ls=":", lw=1.3, label=f"nothing but noise, 1/{samples}")
    right.axhline(0, color="#8a8f98", lw=0.8)
    right.set_ylim(-1.05, 1.05)
    left.set(title="variance of the policy gradient", ylabel="mean variance of a parameter's gradient")
    middle.set(title="expected signal-to-noise ratio", ylabel="ESNR")
    right.set(title="mean gradient against the true one", ylabel="cosine of the angle")
    left.legend(frameon=False, fontsize=9, loc="upper left")
    middle.legend(*(labels[-1:] for labels in middle.get_legend_handles_labels()), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def report(outcomes: list[Outcome]) -> str:
    """Numbers of every seed, means over its policies, and in how many seeds the parts of the claim hold."""
    steps = len(outcomes[0][SHORT][0].cosine)
    places = (max(steps // 2, 1), steps)
    head = f"{'dynamics':26}{'seed':>5}{'variance in 10 steps':>22}{f'at h = {steps}':>12}{'late ESNR':>11}"
    lines = [head + "".join(f"{f'cosine at {h}':>14}" for h in places)]
    for seed, outcome in enumerate(outcomes):
        for horizon, pairs in outcome.items():
            for dynamics, name in (("model", NAMES[horizon]), ("true", f"true, latent of H = {horizon}")):
                growth, last, ratio = (typical(pairs, dynamics, field) for field in ("growth", "last", "late_esnr"))
                line = f"{name:26}{seed:5}{f'x {growth:.1f}':>22}{last:12.1e}{ratio:11.3f}"
                if dynamics == "model":
                    line += "".join(f"{np.mean([pair.cosine[h - 1] for pair in pairs]):14.2f}" for h in places)
                lines.append(line)
    alone = [
        {horizon: [pair] for horizon, pair in zip(outcome, pairs)}
        for outcome in outcomes
        for pairs in zip(*outcome.values())
    ]
    for (claim, holds), each in zip(claims(outcomes).items(), claims(alone).values()):
        verdict = "holds" if all(holds) else "does not hold in all seeds" if any(holds) else "does not hold"
        lines.append(
            f"{claim}: in {sum(holds)} of {len(holds)} seeds, and with {sum(each)} of {len(each)} policies taken "
            f"alone; this {verdict}"
        )
    return "\n".join(lines)


def claims(outcomes: list[Outcome]) -> dict[str, list[bool]]:
    """For each part of the claim, in which seeds it holds; the true dynamics are those under the same latent."""
    more = f"late ESNR is higher in the model of H = {LONG}"
    verdicts: dict[str, list[bool]] = {}
    for horizon in (SHORT, LONG):
        verdicts[f"variance grows faster under the true dynamics than in the model of H = {horizon}"] = [
            typical(outcome[horizon], "true", "growth") > typical(outcome[horizon], "model", "growth")
            for outcome in outcomes
        ]
    ratios = [typical(outcome[LONG], "model", "late_esnr") for outcome in outcomes]
    for name, horizon, dynamics in (
        (f"{more} than in that of H = {SHORT}", SHORT, "model"),
        (f"{more} than under the true dynamics", LONG, "true"),
    ):
        verdicts[name] = [
            ratio > typical(outcome[horizon], dynamics, "late_esnr") for ratio, outcome in zip(ratios, outcomes)
        ]
    return verdicts


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    picture = Path(__file__).parents[1] / "docs" / "images" / "gradient_variance.png"
    parser.add_argument("--seeds", type=int, default=3, help="of data, models and policies (default: 3)")
    parser.add_argument("--policies", type=int, default=1, help="random policies of each seed (default: 1)")
    parser.add_argument("--episodes", type=int, default=800, help="of data, 60 steps each (default: 800)")
    parser.add_argument("--updates", type=int, default=3000, help="of each model (default: 3000)")
    parser.add_argument("--from-scratch", action="store_true", help="no updates at H = 3 for the model of H = 16")
    parser.add_argument("--samples", type=int, default=100, help="gradients at each horizon (default: 100)")
    parser.add_argument("--steps", type=int, default=50, help="longest horizon (default: 50)")
    parser.add_argument("--picture", type=Path, default=picture, help=f"file to write (default: {picture.name})")
    options = parser.parse_args(arguments)
    outcomes = [run(seed, options) for seed in tqdm(range(options.seeds), desc="seeds", unit="seed")]
    print(report(outcomes))
    draw(outcomes, options.samples, options.picture)
    print(options.picture)


if __name__ == "__main__":
    main()
