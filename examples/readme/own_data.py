"""A Minari data set to a world model, a policy, its evaluation, and a report of how far it can be trusted.

A noisy controller balances a pole; most of its episodes end early, and on average they earn a tenth of what can be
earned. The policy that is learned from them balances for the full 1,000 steps. Some ten minutes on one CPU core.
"""

import gymnasium
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer

from torchrl_pwm import export_policy, import_minari, load_policy
from torchrl_pwm.runs.cli import main

EPISODES, UPDATES = 240, 1_500
TASK = "InvertedPendulum-v5"


def record(env, seed):
    """Yours: one episode, until the pole falls or 300 steps are over."""
    draws, noise = np.random.default_rng(seed), (0.5, 2.0, 4.0, 6.0)[seed % 4]
    observations, actions, rewards, fallen = [env.reset(seed=seed)[0]], [], [], False
    while not fallen and len(actions) < 300:
        push = np.array([0.8, 12.0, 1.0, 2.2]) @ observations[-1] + noise * draws.standard_normal()
        actions.append(np.clip([push], -3.0, 3.0).astype(np.float32))
        observation, reward, fallen, _, _ = env.step(actions[-1])
        observations.append(observation)
        rewards.append(reward)
    last = np.arange(len(actions)) == len(actions) - 1
    ends = {"terminations": list(last & fallen), "truncations": list(last & (not fallen))}
    return EpisodeBuffer(id=seed, observations=observations, actions=actions, rewards=rewards, **ends)


with gymnasium.make(TASK) as env:
    buffers = [record(env, seed) for seed in range(EPISODES)]
    minari.create_dataset_from_buffers("pendulum/noisy-v0", buffers, env=env, algorithm_name="a noisy controller")

# Episodes of any length, with their terminations; actions are scaled from the env's bounds to [-1, 1].
store = import_minari("pendulum/noisy-v0", "data/pendulum")
print(store, f"{store.terminated.mean():.0%} terminated", store.statistics()["pendulum"]["behavior_return_mean"])

# The same as: torchrl-pwm offline data=data/pendulum env=InvertedPendulum-v5
updates = [f"world_model.iterations={2 * UPDATES}", f"extraction.warm_start.behavior_updates={UPDATES}"]
updates += [f"extraction.iterations={UPDATES // 5}", f"extraction.warm_start.value_updates={UPDATES // 6}"]
main(["offline", "data=data/pendulum", f"env={TASK}", "folder=runs/pendulum", *updates])

# What the robot's computer runs. Its actions are in [-1, 1] of the env's bounds, which runs/pendulum/config.yaml has.
export_policy(load_policy("runs/pendulum"), "pendulum.onnx")
