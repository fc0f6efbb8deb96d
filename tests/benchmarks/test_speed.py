"""The speed suite still runs, and its yardstick is what it says. No test asserts a time."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import variants
from benchmarks.speed.cases import CASES, Bench
from benchmarks.speed.products import Product, bare_run, mlp_products
from benchmarks.speed.record import Result, table, write
from benchmarks.speed.sizes import SIZES
from benchmarks.speed.stores import HotReplay, bare_reads, write_sparse_store
from torchrl_pwm import PWMWorldModel

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def run_suite(*arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "benchmarks/speed/test_speed.py", *arguments]
    options = ["--size", "tiny", "--rounds", "1", "--threads", "1", "--backend", "eager", "--device", "cpu"]
    done = subprocess.run(
        [*command, *options, "-q", "-p", "no:randomly", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow  # compiles
def test_the_suite_runs_and_records_every_case_in_every_variant(tmp_path):
    out = run_suite("--benchmark-only", "--record", str(tmp_path))
    assert "written: speed_tiny_cpu.md, speed_tiny_cpu.json" in out
    content = json.loads((tmp_path / "speed_tiny_cpu.json").read_text())
    found = {(result["case"], result["variant"]): result for result in content["results"]}
    assert set(found) == {(case, variant) for case in CASES for variant in variants.VARIANTS}
    for (case, variant), result in found.items():
        if variant == "CUDA graphs" or (not CASES[case].compiles and variant != "eager"):
            assert result["seconds"] is None and (
                "CUDA" in result["remark"] or "nothing to compile" in result["remark"]
            )
        else:
            assert min(result["seconds"], result["bare_seconds"], result["ratio"]) > 0
            assert result["rounds"] == (5 if CASES[case].fast else 1)
            low, high = result["quartiles"]
            assert 0 < low <= high
            assert (result["launches"] is not None) == (variant == "eager")
            assert case == "sample" or variant != "eager" or result["launches"] > 20
    assert "--size tiny" in content["command"] and content["date"] and content["machine"]["processor"]
    assert {"torch", "torchrl"} <= set(content["versions"]) and content["size"]["horizon"] == 2
    page = (tmp_path / "speed_tiny_cpu.md").read_text()
    assert page.count("\n| ") == 1 + len(found) and content["command"] in page and "skipped: " in page


def test_nothing_is_written_unless_asked_and_a_plain_test_run_times_nothing():
    before = sorted((ROOT / "benchmarks" / "results").iterdir())
    assert "skipped" in run_suite()
    assert sorted((ROOT / "benchmarks" / "results").iterdir()) == before


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].compiles])
def test_products_are_those_that_the_computation_does(name, tmp_path):
    """Bare products are at most what torch counts, and no small part of it: what is left is avoidable."""
    case = CASES[name].build(Bench(SIZES["tiny"], CPU, tmp_path))
    case.run()
    with FlopCounterMode(display=False) as counter:
        case.run()
    with FlopCounterMode(display=False) as bare:
        case.bare()
    products = sum(product.flops for product in case.products)
    assert bare.get_total_flops() == products
    assert 0.85 <= products / counter.get_total_flops() <= 1.0


def test_products_of_a_network_by_hand():
    found = mlp_products(4, [3, 5, 2], weights=True, inputs=True)
    assert found == [Product(4, 3, 5), Product(5, 4, 3), Product(4, 5, 2), Product(2, 4, 5), Product(4, 2, 5)]
    assert mlp_products(4, [3, 5], 2, inputs=True, first=1) == [Product(4, 3, 5, 2), Product(4, 5, 1, 2)]
    assert Product(4, 3, 5, 2).flops == 240


def test_a_bare_run_takes_no_empty_product():
    with FlopCounterMode(display=False) as counter:
        bare_run([Product(2, 3, 4, 5), Product(0, 3, 4)], CPU)()
    assert counter.get_total_flops() == 240


@pytest.mark.parametrize("name, preset", [("small", "5M"), ("paper", "48M")])
def test_sizes_are_those_of_the_presets(name, preset):
    size = SIZES[name]
    options = {"observation_dim": size.observation_dim, "action_dim": size.action_dim, "num_tasks": size.tasks}
    with torch.device("meta"):
        published = PWMWorldModel.from_preset(preset, **options)
        own = PWMWorldModel(
            size.observation_dim, size.action_dim, **size.networks, num_bins=size.bins, num_tasks=size.tasks,
            task_dim=size.task_dim,
        )  # fmt: skip
    assert {key: value.shape for key, value in own.state_dict().items()} == {
        key: value.shape for key, value in published.state_dict().items()
    }
    assert preset in size.describe()


def test_bare_reads_read_what_a_sample_reads(tmp_path):
    root = write_sparse_store(tmp_path / "store", 1)
    hot = HotReplay(root, batches=1, slices=4, transitions=3)
    assert hot.replay.sample().shape == (4, 3)
    bare_reads(hot.replay.store, 4, 3)()


def test_a_compiler_that_does_not_work_is_a_reason_to_skip(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no C++ compiler found\nlong story")

    variants.compiler_obstacle.cache_clear()
    monkeypatch.setattr(torch, "compile", refuse)
    try:
        reason = variants.Variant("compiled", CPU).obstacle(True)
    finally:
        variants.compiler_obstacle.cache_clear()
    assert reason == "torch.compile with inductor does not work here (no C++ compiler found)"
    assert variants.Variant("eager", CPU).obstacle(False) is None
    assert "need a CUDA device, this run is on cpu" in variants.Variant("CUDA graphs", CPU).obstacle(True)


def test_table_and_files_say_what_was_skipped_and_against_what(tmp_path):
    results = [
        Result("a", "one | thing", "eager", "bare reads", 0.5, 0.25, 2.0, 7, None, "x", (0.4, 0.6), 70, 3),
        Result("a", "one | thing", "compiled", "bare reads", remark="no compiler"),
        Result("b", "product", "eager", "bare matrix products", 0.5, 0.25, 2.0, 7, 100.0),
    ]
    lines = table(results).splitlines()
    assert (
        lines[2]
        == "| one / thing | eager | 500 | 400 to 600 | 2 | 250 | 2.00 | - | - | 70 | 3 | against bare reads; x |"
    )
    assert lines[3].endswith("| - | - | - | - | skipped: no compiler |")
    assert lines[4].endswith("| 100 | 0.2 | - | - |  |")
    assert len({line.count("|") for line in lines}) == 1
    page, data = write(
        tmp_path, results, size="small", device=CPU, threads=2, backend="inductor", command="make speed",
        today=datetime.date(2026, 11, 21),
    )  # fmt: skip
    assert page.name == "speed_small_cpu.md" and "Date: 2026-11-21" in page.read_text()
    assert json.loads(data.read_text())["results"][0]["ratio"] == 2.0
