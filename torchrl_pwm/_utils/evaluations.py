"""Evaluations in worker processes, while the training goes on."""

from __future__ import annotations

import contextlib
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from torchrl_pwm._utils.devices import torch_threads
from torchrl_pwm._utils.processes import LazyPool
from torchrl_pwm._utils.seeds import TorchGenerators

__all__ = ["BackgroundEvaluation", "NetworkEvaluation"]

Snapshot = Mapping[str, Any]
Metrics = Mapping[str, Any]
Evaluation: TypeAlias = "PromptEvaluation | BackgroundEvaluation"


class PromptEvaluation:
    """Evaluates the present state at once, in this process; nothing without a function."""

    iterations: Sequence[int] = ()

    def __init__(self, evaluate: Callable[[], Metrics] | None) -> None:
        self.evaluate, self.wanted = evaluate, evaluate is not None
        self._found: list[tuple[int, Metrics]] = []

    def submit(self, iteration: int) -> None:
        """Evaluates the present state."""
        if self.evaluate is not None:
            self._found.append((iteration, self.evaluate()))

    def results(self, *, wait: bool) -> Iterator[tuple[int, Metrics]]:
        """Iteration and numbers of what was evaluated."""
        found, self._found = self._found, []
        yield from found


class BackgroundEvaluation:
    """Evaluates snapshots of a policy in worker processes, and joins the results in the order of their iterations.

    Given to a :class:`~torchrl_pwm.trainers.Trainer` as ``evaluate``, it makes a snapshot where the trainer would wait
    for an evaluation, and the trainer logs what came of it, at the iteration of the snapshot, as soon as it and those
    before it are done. A checkpoint holds the snapshots that are not, and a resumed run evaluates them again.

    Args:
        snapshot (callable): what an evaluation needs of the present state: a dictionary of numbers and copies of
            tensors.
        evaluate (callable): of a snapshot, returns named numbers; a name of a module, or a ``functools.partial`` of
            one, as it is sent to the workers.

    Keyword Args:
        joined (callable, optional): called with a snapshot and its numbers, in their order; returns what is logged.
        here (callable, optional): evaluates the present state in this process, while the training waits. Then nothing
            is done elsewhere but what a checkpoint of a run that did so still holds.
        workers (int): processes.
        pool (LazyPool, optional): of several evaluations together, in place of processes of its own.
        limit (int): snapshots that wait or are evaluated; with one more the training waits for the first.

    Use it as a context: at its end none of its own processes is left.

    Raises:
        ChildProcessError: where a result is joined, if its worker process was killed.
        Exception: there too, what the evaluation raised.

    Examples:
        >>> from functools import partial
        >>> evaluation = BackgroundEvaluation(lambda: {"weight": 2.0}, dict, workers=1)
        >>> with evaluation:
        ...     evaluation.submit(10)
        ...     list(evaluation.results(wait=True))
        [(10, {'weight': 2.0})]
    """

    optional = True  # in a checkpoint: a run that began without one has none waiting
    wanted = True

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        evaluate: Callable[[Snapshot], Metrics],
        *,
        joined: Callable[[Snapshot, Metrics], Metrics] = lambda snapshot, metrics: metrics,
        here: Callable[[], Metrics] | None = None,
        workers: int = 1,
        pool: LazyPool | None = None,
        limit: int = 8,
    ) -> None:
        self.snapshot, self.evaluate, self.joined, self.here, self.limit = snapshot, evaluate, joined, here, limit
        self._own = LazyPool(workers)
        self._pool = self._own if pool is None else pool
        self._waiting: deque[tuple[int, Snapshot, Future[Metrics]]] = deque()

    @property
    def iterations(self) -> list[int]:
        """Of the snapshots whose results are not joined."""
        return [iteration for iteration, _, _ in self._waiting]

    def submit(self, iteration: int) -> None:
        """Begins the evaluation of the present state, if that of this iteration has not begun."""
        if iteration in self.iterations:
            return
        if self.here is None:
            self._begin(iteration, self.snapshot())
        else:
            future: Future[Metrics] = Future()
            future.set_result(self.here())
            self._waiting.append((iteration, self.snapshot(), future))

    def _begin(self, iteration: int, snapshot: Snapshot) -> None:
        # as bytes: a queue between processes would move tensors into shared memory
        future = self._pool.submit(_evaluate, self.evaluate, pickle.dumps(snapshot))
        self._waiting.append((iteration, snapshot, future))

    def results(self, *, wait: bool) -> Iterator[tuple[int, Metrics]]:
        """Iteration and numbers of each evaluation that is done, and all before it are; with ``wait``, of all."""
        wait = wait or self.here is not None
        while self._waiting and (wait or self._waiting[0][2].done() or len(self._waiting) > self.limit):
            iteration, snapshot, future = self._waiting[0]
            try:
                metrics = future.result()
            except BrokenProcessPool as error:
                raise ChildProcessError(
                    f"the process that evaluated the policy of iteration {iteration} was killed, often for want of "
                    "memory; the run goes on from its checkpoint when it is resumed"
                ) from error
            self._waiting.popleft()
            yield iteration, self.joined(snapshot, metrics)

    def __enter__(self) -> BackgroundEvaluation:
        return self

    def __exit__(self, *error: object) -> None:
        # what an interrupted run has begun is evaluated again when it is resumed
        self._own.__exit__(*error)

    def state_dict(self) -> dict[str, Any]:
        return {"waiting": [{"iteration": iteration, "snapshot": snapshot} for iteration, snapshot, _ in self._waiting]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        for entry in state_dict["waiting"]:
            self._begin(entry["iteration"], entry["snapshot"])


class NetworkEvaluation(BackgroundEvaluation):
    """Evaluates networks as they are at each snapshot, with the same numbers in a process of its own as in this one.

    Args:
        networks (nn.Module): what is trained; their state is the snapshot.
        evaluate (callable): returns named numbers of the networks, which are a part of it. For the other process both
            are pickled, once, at the first snapshot. It may draw from torch's global generators, which it finds as they
            are at the snapshot, and leaves them as they were.

    Keyword Args:
        joined (callable, optional): called with a snapshot, whose ``"weights"`` are those of the networks, and its
            numbers, in their order; returns what is logged.
        applied (callable, optional): returns a context in which the networks are as they are to be evaluated.
        elsewhere (bool): evaluate in a process of its own, while the training goes on.
        beside (nn.Module, optional): what else the function reads, such as critics; its state is in the snapshot under
            ``"beside"``.

    Examples:
        >>> networks = torch.nn.Linear(2, 1)
        >>> evaluation = NetworkEvaluation(networks, lambda: {"bias": networks.bias.item()}, elsewhere=False)
        >>> _ = torch.nn.init.zeros_(networks.bias)
        >>> evaluation.submit(10)
        >>> list(evaluation.results(wait=True))
        [(10, {'bias': 0.0})]
    """

    def __init__(
        self,
        networks: nn.Module,
        evaluate: Callable[[], Metrics],
        *,
        joined: Callable[[Snapshot, Metrics], Metrics] = lambda snapshot, metrics: metrics,
        applied: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
        elsewhere: bool,
        beside: nn.Module | None = None,
    ) -> None:
        self._parts, self._applied, self._pickled = (networks, evaluate, beside), applied, False
        here = None if elsewhere else self._here
        super().__init__(self._state, partial(_evaluate_networks, b"", 1), joined=joined, here=here, limit=2)

    def _here(self) -> Metrics:
        with self._applied():
            return self._parts[1]()

    def _state(self) -> dict[str, Any]:
        with self._applied():
            networks, _, beside = self._parts
            further = {} if beside is None else {"beside": _on_host(beside)}
            return {"weights": _on_host(networks), **further, "generators": TorchGenerators().state_dict()}

    def _begin(self, iteration: int, snapshot: Snapshot) -> None:
        if not self._pickled:
            self._pickled = True
            self.evaluate = partial(_evaluate_networks, pickle.dumps(self._parts), torch.get_num_threads())
        super()._begin(iteration, snapshot)


def _on_host(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}


def _evaluate_networks(parts: bytes, threads: int, snapshot: Snapshot) -> Metrics:
    if _PARTS[:1] != [parts]:
        _PARTS[:] = [parts, pickle.loads(parts)]  # of the process that started this one, never of a file
    networks, evaluate, beside = _PARTS[1]
    networks.load_state_dict(snapshot["weights"])
    if beside is not None and "beside" in snapshot:  # which an interrupted run of before did not save
        beside.load_state_dict(snapshot["beside"])
    TorchGenerators().load_state_dict(snapshot["generators"])
    with torch_threads(threads):
        return evaluate()


_PARTS: list[Any] = []  # of a worker process: networks, how they are evaluated and what is beside, first as bytes


def _evaluate(evaluate: Callable[[Snapshot], Metrics], snapshot: bytes) -> Metrics:
    # bytes of the process that started this one, never of a file
    return evaluate(pickle.loads(snapshot))


def evaluation_of(evaluate: Callable[[], Metrics] | BackgroundEvaluation | None) -> Evaluation:
    """What a trainer was given, in the form that it asks for results."""
    return evaluate if isinstance(evaluate, BackgroundEvaluation) else PromptEvaluation(evaluate)
