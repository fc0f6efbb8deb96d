"""A trainer whose iterations are done goes on when it is given more, or says why it cannot."""

from __future__ import annotations

import logging

import pytest
import torch
from torchrl import torchrl_logger

from tests.trainers import tiny
from tests.trainers.test_online import make_trainer
from torchrl_pwm._utils.gated_steps import linear_schedule, load_schedule


@pytest.fixture
def said():
    """What is logged."""
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    handler = Keep()
    torchrl_logger.addHandler(handler)
    yield lines
    torchrl_logger.removeHandler(handler)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("data") / "store")


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_second_training_goes_on_when_there_is_something_left(kind, root, said):
    trainer = tiny.make_trainer(kind, tiny.make_buffer(tiny.BUFFERS[0], root))
    trainer.train()
    done = trainer.iterations
    trainer.train()
    assert trainer.iteration == done and said[-1].startswith(f"All {done} iterations are done, none are left")
    trainer.iterations = done + 2
    trainer.train()
    assert trainer.iteration == done + 2


def test_an_online_trainer_says_that_its_collector_was_closed(said):
    trainer = make_trainer(iterations=1)
    trainer.train()
    trainer.train()
    assert said[-1].startswith("All 1 iterations are done")
    trainer.iterations = 2
    with pytest.raises(RuntimeError, match=r"closed when train\(\) ended after 1 iterations.* resume\(\)"):
        trainer.train()


def test_an_online_trainer_that_is_built_anew_goes_on(tmp_path):
    make_trainer(iterations=2, save_folder=tmp_path).train()
    longer = make_trainer(iterations=5, save_folder=tmp_path)
    longer.resume()
    assert longer.iteration == 2
    longer.train()
    assert longer.iteration == 5 and longer.env_steps == 20 + 5 * 20


def test_a_longer_schedule_goes_on_with_its_own_rates():
    def schedule(iterations):
        optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], 1.0)
        return linear_schedule(optimizer, 0.0, iterations)

    short, longer = schedule(4), schedule(8)
    for _ in range(4):
        short.optimizer.step()
        short.step()
    longer.optimizer.load_state_dict(short.optimizer.state_dict())
    load_schedule(longer, short.state_dict())
    assert short.get_last_lr() == [0.0] and longer.get_last_lr() == [0.5]
    assert longer.optimizer.param_groups[0]["lr"] == 0.5
