"""Updates of several tasks at once, new tasks and transforms of replayed steps on ``meta``."""

from __future__ import annotations

import pytest
import torch
from torchrl.data import TensorDictReplayBuffer, TensorStorage

from tests.devices.parts import ACTION, LATENT, META, MODELS, make_model, make_policy_loss, sequences
from tests.devices.reads import HostReads
from torchrl_pwm import ObservationNormalizer, WorldModelWrapper
from torchrl_pwm.modules import DynamicsEnsemble
from torchrl_pwm.objectives.stacked_pwm import StackedPWMLoss
from torchrl_pwm.trainers.stacked import StackedPWMUpdate
from torchrl_pwm.trainers.steppers import PWMOptimizationStepper

TASKS, BATCH = 3, 8
MULTITASK = [name for name in MODELS if "num_tasks" in MODELS[name]]


def policies(name, device=META, **options):
    """The objectives of some policies in one frozen model."""
    model = make_model(name, device).requires_grad_(False)
    ensemble = DynamicsEnsemble(model).to(device) if options.get("disagreement_coef") else None
    return [make_policy_loss(model, disagreement=ensemble, **options) for _ in range(TASKS)]


def starts(name, device=META):
    return torch.stack([sequences(name, device, batch=BATCH)[:, 0] for _ in range(TASKS)])


def elsewhere(*modules):
    tensors = [entry for module in modules for entry in (*module.named_parameters(), *module.named_buffers())]
    return [name for name, value in tensors if value.device.type != META]


@pytest.mark.parametrize("options", [{}, {"behavior_coef": 0.1}, {"disagreement_coef": 0.5}, {"mask_actions": True}])
@pytest.mark.parametrize("name", ["scalar head", "tasks"])
def test_losses_of_several_tasks(name, options):
    if "mask_actions" in options:
        name = "tasks"
    loss = StackedPWMLoss(policies(name, **options))
    losses = loss(starts(name))
    sum(value.sum() for key, value in losses.items() if key.startswith("loss_")).backward()
    assert {value.device.type for value in losses.values()} == {META} and not elsewhere(loss)


@pytest.mark.parametrize("skip_non_finite", [False, True])
@pytest.mark.parametrize("name", ["scalar head", "all"])
def test_updates_of_several_tasks(name, skip_non_finite):
    steppers = [
        PWMOptimizationStepper(loss, iterations=4, skip_non_finite=skip_non_finite)
        for loss in policies(name, behavior_coef=0.1)
    ]
    together = StackedPWMUpdate(steppers)
    for _ in range(2):
        metrics = together.update(starts(name))
        assert {value.device.type for value in metrics.values()} == {META}
    together.release()
    assert not elsewhere(*(stepper.loss_module for stepper in steppers))


def test_an_update_of_several_tasks_reads_no_number():
    together = StackedPWMUpdate([PWMOptimizationStepper(loss) for loss in policies("all", "cpu")])
    batch = starts("all", "cpu")
    together.update(batch)
    with HostReads() as reads:
        together.update(batch)
    assert reads.found == []


@pytest.mark.parametrize("like", [None, 1])
@pytest.mark.parametrize("generator", [None, torch.Generator()])
@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("name", MULTITASK)
def test_a_new_task(name, statistics, generator, like):
    model, of_task = make_model(name), {}
    if statistics:
        model.set_observation_statistics(torch.zeros(3, 5), torch.ones(3, 5))
        of_task = {"observation_mean": torch.zeros(4), "observation_std": torch.ones(4)}  # of data, on the CPU
    assert model.add_task(action_dim=1, like=like, generator=generator, **of_task) == 3
    assert not elsewhere(model)
    latent = model.encode_observation(torch.zeros(4, 5, device=META), 3)
    assert model.next_latent(latent, torch.zeros(4, ACTION, device=META), 3).device.type == META


@pytest.mark.parametrize("name", ["scalar head", "tasks"])
def test_replayed_steps_are_encoded(name):
    steps = sequences(name, batch=8).reshape(-1)
    replay = TensorDictReplayBuffer(
        storage=TensorStorage(steps), transform=WorldModelWrapper(make_model(name)), batch_size=4
    )
    batch = replay.sample()
    assert batch["latent"].shape == batch["next", "latent"].shape == (4, LATENT)


def test_replayed_steps_are_normalised():
    normalizer = ObservationNormalizer(5).to(META)
    replay = TensorDictReplayBuffer(storage=TensorStorage(sequences(batch=8).reshape(-1)), batch_size=4)
    replay.append_transform(lambda batch: normalizer(batch))
    assert replay.sample()["normalized_observation"].device.type == META
