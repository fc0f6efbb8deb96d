"""A simulator of one's own in one small class, and a policy learnt through its gradients.

The reward of a step rises from about -1.4 to above -0.2 within 60 windows; 10 seconds on one CPU core.
"""

import torch

from torchrl_pwm import SHACLoss, Simulator, SimulatorEnv, SimulatorStep, make_pwm_actor, make_value_ensemble
from torchrl_pwm.trainers import SHACOptimizationStepper

WINDOWS = 60
torch.manual_seed(0)


class Hover(Simulator):
    """A point mass in the plane that the actions push; it should come to rest at the origin."""

    observation_size, action_size, episode_length = 4, 2, 100

    def __init__(self, num_envs, **options):
        super().__init__(num_envs, **options)
        self.state = torch.zeros(num_envs, 4, dtype=self.dtype, device=self.device)  # position and velocity

    def reset(self, envs):  # bool [N]: the others keep state and graph
        self.state = torch.where(envs[:, None], self.uniform(4), self.state)
        return self.state

    def step(self, actions):  # [N, 2] in [-1, 1]; tensors are replaced, never changed in place
        position, velocity = self.state.split(2, -1)
        velocity = velocity + 0.1 * actions
        position = position + 0.1 * velocity
        self.state = torch.cat([position, velocity], -1)
        distance = position.square().sum(-1)
        return SimulatorStep(self.state, -distance - 0.1 * velocity.square().sum(-1), terminated=distance > 9)


env = SimulatorEnv(Hover(num_envs=64), requires_grad=True)
actor = make_pwm_actor(4, 2, units=(64, 64), in_key="observation")
loss = SHACLoss(actor, make_value_ensemble(4, units=(64, 64), in_key="observation"), horizon=16)
stepper = SHACOptimizationStepper(loss, iterations=WINDOWS, critic_iterations=4)

td = env.reset()
for window in range(WINDOWS):
    rollout, td = loss.rollout(env, td)  # [N, 16] with its graph; episodes go on in the next window
    stepper.update(rollout)
    if window % 20 == 0 or window == WINDOWS - 1:
        print(f"window {window}: reward of a step {rollout['next', 'reward'].mean():.2f}")
