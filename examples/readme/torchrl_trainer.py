"""PWM under TorchRL's own Trainer: its collector, replay buffer, logger and checkpoint, and our optimisation stepper.

The return of an episode rises from about -1250 to about -130 within 8,000 frames; 2 minutes on one CPU core. Started
again after an interruption, it goes on from its last checkpoint.
"""

import torch
from torchrl.checkpoint import Checkpoint, GlobalRNGState
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer, SliceSampler
from torchrl.envs import ActionScaling, Compose, GymEnv, TransformedEnv
from torchrl.record.loggers import CSVLogger
from torchrl.trainers import LogScalar, ReplayBufferTrainer, Trainer

from torchrl_pwm import (
    PWMLoss,
    PWMWorldModel,
    PWMWorldModelLoss,
    WorldModelWrapper,
    make_pwm_actor,
    make_value_ensemble,
)
from torchrl_pwm.trainers import OnlinePWMOptimizationStepper, PWMOptimizationStepper, WorldModelOptimizationStepper

FRAMES, UPDATES = 8_000, 40  # updates after every 200 frames
T = 5  # steps of a sequence: short ones teach a new model fast; the published models saw 16
SAVED = "runs/pendulum/checkpoint"
torch.manual_seed(0)
model = PWMWorldModel(observation_dim=3, action_dim=1, latent_dim=64, units=(128, 128))
actor, value = make_pwm_actor(64, 1, units=(64, 64)), make_value_ensemble(64, units=(64, 64))
env = TransformedEnv(GymEnv("Pendulum-v1"), Compose(ActionScaling(), WorldModelWrapper(model)))
env.set_seed(0)
collector = Collector(
    env,
    actor,
    frames_per_batch=200,
    total_frames=FRAMES,
    init_random_frames=2_000,
    auto_register_policy_transforms=False,  # the actor needs none
)
sampler = SliceSampler(slice_len=T, traj_key=("collector", "traj_ids"))
replay_buffer = ReplayBuffer(storage=LazyTensorStorage(10_000), sampler=sampler, batch_size=128 * T)
replay_buffer.append_transform(lambda batch: batch.reshape(-1, T))  # [B, T] sequences

model_loss, loss = PWMWorldModelLoss(model, reward_coef=1.0), PWMLoss(actor, value, model, horizon=16)
iterations = FRAMES // 200 * UPDATES
trainer = Trainer(
    collector=collector,
    total_frames=FRAMES,
    frame_skip=1,
    optim_steps_per_batch=UPDATES,
    loss_module=loss,
    optimization_stepper=OnlinePWMOptimizationStepper(  # one update of the model, then one of the policy
        loss,
        model_loss,
        replay_buffer,
        model_updates=1,
        start_states=128,
        recent_share=0.0,
        model_stepper=WorldModelOptimizationStepper(model_loss, iterations=iterations, lr=1e-3, encoder_lr_scale=1.0),
        policy_stepper=PWMOptimizationStepper(loss, iterations=iterations, critic_iterations=1),
    ),
    logger=CSVLogger("pendulum", log_dir="runs"),
    log_interval=100,
    checkpoint=Checkpoint(rng=GlobalRNGState()),
    save_trainer_file=SAVED,
    save_trainer_interval=1_000,
)
replay = ReplayBufferTrainer(replay_buffer, flatten_tensordicts=True)
trainer.register_op("batch_process", replay.extend)
trainer.register_module("replay_buffer", replay)
trainer.register_module("world_model", model)  # PWMLoss holds actor and critics, and leaves the model to others
trainer.register_op("pre_steps_log", LogScalar(("next", "reward"), "reward", log_pbar=True))
if Checkpoint.is_checkpoint(SAVED):
    trainer.load_from_file(SAVED)
trainer.train()
