"""Launches and host reads are counted as a GPU would see them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.speed.cases import Bench
from benchmarks.speed.counting import Counting, Counts, count
from benchmarks.speed.naive import NaiveUpdate
from benchmarks.speed.sizes import SIZES

CPU = torch.device("cpu")


def test_views_and_allocations_are_no_launches():
    x = torch.randn(4, 6)
    assert count(lambda: torch.empty(3)) == Counts(0, 0)
    assert count(lambda: x.view(24).detach()[3:].unsqueeze(0).T) == Counts(0, 0)
    assert count(lambda: x.T.contiguous() + 1) == Counts(2, 0)


def test_a_backward_pass_counts():
    layer, x = nn.Linear(4, 3), torch.randn(2, 4)
    forward = count(lambda: layer(x).sum())
    both = count(lambda: layer(x).sum().backward())
    assert forward.launches == 2
    assert both.launches >= forward.launches + 2


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: float(x[0]),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.equal(x, x),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: torch.unique(x),
    ],
)
def test_each_kind_of_host_read_counts(read):
    assert count(lambda: read(torch.arange(3.0))).host_reads == 1


def test_what_reads_nothing_counts_none():
    x = torch.arange(3.0)
    assert count(lambda: torch.where(x > 1, x, 0.0)[torch.tensor([1, 2])].to(torch.float64)).host_reads == 0


def test_names_say_where_they_come_from():
    with Counting() as counting:
        float(torch.ones(3).exp().sum())
    assert counting.launches["exp"] == 1
    assert counting.host_reads == {"_local_scalar_dense": 1}


def test_a_naive_update_trains_with_more_host_reads_than_this_package_s(tmp_path):
    naive = NaiveUpdate(SIZES["tiny"], CPU)
    before = [param.detach().clone() for net in (naive.actor, naive.critics) for param in net.parameters()]
    naive()
    after = [param for net in (naive.actor, naive.critics) for param in net.parameters()]
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    own = Bench(SIZES["tiny"], CPU, tmp_path).pwm_update().run
    own()
    assert count(naive).host_reads > 10 * count(own).host_reads
