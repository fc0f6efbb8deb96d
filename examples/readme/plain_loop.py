"""PWM in a plain loop: a world model and a policy for Pendulum, learnt while acting.

The return rises from about -1250 to between -120 and -270 in most episodes after the 30th; 4 minutes on one CPU core.
"""

import torch
from torchrl.data import LazyTensorStorage, ReplayBuffer, SliceSampler
from torchrl.envs import ActionScaling, Compose, GymEnv, TransformedEnv
from torchrl.objectives import ValueEstimators

from torchrl_pwm import (
    PWMLoss,
    PWMWorldModel,
    PWMWorldModelLoss,
    WorldModelWrapper,
    evaluate_policy,
    make_pwm_actor,
    make_value_ensemble,
)

EPISODES, UPDATES = 40, 40  # episodes of 200 steps; updates after each
T = 5  # steps of a sequence: short ones teach a new model fast; the published models saw 16
torch.manual_seed(0)
model = PWMWorldModel(observation_dim=3, action_dim=1, latent_dim=64, units=(128, 128))
actor, critics = make_pwm_actor(64, 1, units=(64, 64)), make_value_ensemble(64, units=(64, 64))
# Pendulum's actions are in [-2, 2], the model's in [-1, 1]. "latent" is what the policy reads, here and in imagination.
env = TransformedEnv(GymEnv("Pendulum-v1"), Compose(ActionScaling(), WorldModelWrapper(model)))
env.set_seed(0)
sampler = SliceSampler(slice_len=T, end_key=("next", "done"))
replay_buffer = ReplayBuffer(storage=LazyTensorStorage(EPISODES * 200), sampler=sampler, batch_size=128 * T)

model_loss = PWMWorldModelLoss(model, reward_coef=1.0)
loss = PWMLoss(actor, critics, model, horizon=16)
loss.make_value_estimator(ValueEstimators.TDLambda, gamma=0.99, lmbda=0.95)
optimizer = torch.optim.Adam([*model.parameters(), *loss.parameters()], lr=1e-3)

for episode in range(EPISODES):
    with torch.no_grad():
        rollout = env.rollout(200, actor if episode >= 10 else None)
    rollout["next", "done"][-1] = True  # here ends a longer episode, too: no slice goes on in the next rollout
    replay_buffer.extend(rollout.exclude("latent", ("next", "latent"), "loc", "scale"))
    for _ in range(UPDATES):
        batch = replay_buffer.sample().reshape(-1, T)  # [B, T] sequences
        losses = model_loss(batch).update(loss(batch[:, 0]))  # start states [B]
        optimizer.zero_grad()
        # No loss sends a gradient into the networks of another, so that one sum serves all.
        sum(value for name, value in losses.items() if name.startswith("loss_")).backward()
        torch.nn.utils.clip_grad_norm_(loss.actor_network_params.parameters(), 1.0)
        optimizer.step()
    print(f"episode {episode}: return {rollout['next', 'reward'].sum():.0f}, reward error {losses['reward_error']:.2f}")

print(f"return in the real Pendulum: {evaluate_policy(actor, env, episodes=10).return_mean:.0f}")
