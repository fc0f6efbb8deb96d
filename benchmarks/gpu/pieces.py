"""The pieces of ``make gpu``: what each is, its command, and the minutes that it may take."""

from __future__ import annotations

import sys
from dataclasses import dataclass

#: A command that ends with this exit code has more to do, and goes on at its next call.
GOES_ON = 75


@dataclass(frozen=True)
class Piece:
    """One command.

    Args:
        name: key of its state and its log.
        what: what it shows, for the report.
        command: program and arguments; ``{folder}`` is a folder of its own, which is kept from call to call.
        minutes: after which it is stopped.
    """

    name: str
    what: str
    command: tuple[str, ...]
    minutes: float


def _python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *arguments)


def _updates(kind: str, batch: int) -> tuple[str, ...]:
    return _python("benchmarks.gpu.updates", kind, "--size", "paper", "--batch", str(batch), "--updates", "300")


def _newton(method: str, envs: int) -> Piece:
    command = _python("benchmarks.gpu.simulators", method, "--envs", str(envs), "--folder", "{folder}")
    return Piece(f"{method}-newton-{envs}", f"{method} on the Newton ant, {envs} envs", command, 4)


def _learning(script: str, *settings: str) -> tuple[str, ...]:
    return _python("benchmarks.gpu.learning", script, "{folder}", "--minutes", "8", *settings)


_SPEED = ("pytest", "benchmarks/speed", "--benchmark-only", "--benchmark-disable-gc", "-p", "no:randomly", "-s")
_RECORD = ("--size", "paper", "--record", "{folder}", "--device", "cuda")

PIECES: tuple[Piece, ...] = (
    Piece("tests", "tests on CUDA", _python("pytest", "tests", "-q", "-n", "4", "-k", "cuda"), 5),
    Piece("pwm-update", "PWM update, 48M, batch 512, one task", _updates("pwm", 512), 3),
    # Eight tasks at once: a line like the last with the function that extracts several policies.
    Piece("model-update", "world-model update, 48M, batch 1024", _updates("model", 1024), 3),
    Piece("tdmpc2-update", "TD-MPC2 update, 48M, batch 1024", _updates("tdmpc2", 1024), 3),
    *(_newton(method, envs) for method in ("shac", "pwm") for envs in (64, 512, 4096)),
    Piece("resumed", "a run that is killed and resumed", _python("benchmarks.gpu.resumed", "{folder}"), 5),
    *(
        Piece(f"speed-{variant.split()[0]}", f"make speed, {variant}", _python(*_SPEED, "-k", variant, *_RECORD), 8.5)
        for variant in ("eager", "compiled", "CUDA and graphs")
    ),
    Piece(
        "learning-shac",
        "SHAC on the Newton ant as published",
        _learning("shac_simulator", "env=newton/ant", "device=cuda", "select=last"),
        8.5,
    ),
    Piece(
        "learning-pwm",
        "online PWM on the Newton ant",
        _learning("pwm_simulator", "env=newton/ant", "device=cuda"),
        8.5,
    ),
)
