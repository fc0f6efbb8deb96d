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


def _updates(kind: str, what: str, batch: int) -> list[Piece]:
    command = ("benchmarks.gpu.updates", kind, "--size", "paper", "--batch", str(batch), "--updates", "300")
    return [
        Piece(f"{kind}-{variant.replace(' ', '-')}", f"{what}, {variant}", _python(*command, "--variant", variant), 3)
        for variant in ("CUDA graphs", "bf16", "eager")
    ]


def _newton(method: str, envs: int) -> Piece:
    command = _python("benchmarks.gpu.simulators", method, "--envs", str(envs), "--folder", "{folder}")
    return Piece(f"{method}-newton-{envs}", f"{method} on the Newton ant, {envs} envs", command, 4)


def _learning(script: str, *settings: str) -> tuple[str, ...]:
    return _python("benchmarks.gpu.learning", script, "{folder}", "--minutes", "8", *settings)


_SPEED = ("pytest", "benchmarks/speed", "--benchmark-only", "--benchmark-disable-gc", "-p", "no:randomly", "-s")
_RECORD = ("--size", "paper", "--record", "{folder}", "--device", "cuda")

PIECES: tuple[Piece, ...] = (
    Piece("tests", "tests on CUDA", _python("pytest", "tests", "-q", "-n", "4", "-k", "cuda"), 5),
    *_updates("pwm", "PWM update, 48M, batch 512, one task", 512),
    *_updates("pwm-8", "PWM update, 48M, batch 512, eight tasks at once", 512),
    *_updates("model", "world-model update, 48M, batch 1024", 1024),
    *_updates("tdmpc2", "TD-MPC2 update, 48M, batch 1024", 1024),
    *(_newton(method, envs) for method in ("shac", "pwm") for envs in (64, 512, 4096)),
    Piece("resumed", "a run that is killed and resumed", _python("benchmarks.gpu.resumed", "{folder}"), 5),
    *(
        Piece(f"speed-{variant.split()[0]}", f"make speed, {variant}", _python(*_SPEED, "-k", variant, *_RECORD), 8.5)
        for variant in ("eager", "compiled", "CUDA and graphs", "bf16")
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
