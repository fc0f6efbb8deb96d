"""The matrix products that an update cannot avoid, run bare: the yardstick of the speed benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch


@dataclass(frozen=True)
class Product:
    """``times`` products of an [m, k] and a [k, n] matrix."""

    m: int
    k: int
    n: int
    times: int = 1

    @property
    def flops(self) -> int:
        return 2 * self.m * self.k * self.n * self.times


def mlp_products(
    rows: int, sizes: Sequence[int], times: int = 1, *, weights: bool = False, inputs: bool = False, first: bool = False
) -> list[Product]:
    """Products of an MLP: its forward pass and, if asked, its weight gradients and its input gradients.

    ``first`` says whether the gradient goes on into the input of the first layer.
    """
    products = []
    for layer, (i, o) in enumerate(pairwise(sizes)):
        products.append(Product(rows, i, o, times))
        if weights:
            products.append(Product(o, rows, i, times))
        if inputs and (first or layer):
            products.append(Product(rows, o, i, times))
    return products


def bare_run(products: Iterable[Product]) -> Callable[[], None]:
    """A function that runs the products on random matrices, and nothing else."""
    work = [(torch.randn(p.m, p.k), torch.randn(p.k, p.n), p.times) for p in products]

    def run() -> None:
        for left, right, times in work:
            for _ in range(times):
                torch.mm(left, right)

    return run


def side_by_side(update: Callable[[], object], bare: Callable[[], object], rounds: int = 7) -> dict[str, float]:
    """Median seconds of both, run in turn, and the median of the ratios of neighbours."""
    times: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        marks = [time.perf_counter()]
        for function in (update, bare):
            function()
            marks.append(time.perf_counter())
        times.append((marks[1] - marks[0], marks[2] - marks[1]))
    times = times[1:]  # the first round warms up
    return {
        "update_seconds": statistics.median(a for a, _ in times),
        "products_seconds": statistics.median(b for _, b in times),
        "ratio": statistics.median(a / b for a, b in times),
    }
