"""What an ExecuTorch program leaves to its backend, and what it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyro_mvae.export._quiet import import_quietly

CORE_ML = "CoreMLBackend"


@dataclass(frozen=True)
class Delegation:
    """How many pieces of a program a backend runs, and the names of operations that are left to slower, portable code."""

    pieces: int
    outside: tuple[str, ...]
    backend: str = "xnnpack"


def delegation(content: bytes) -> Delegation:
    """What a `.pte` gives to its backend: best is one piece and nothing outside.

    Raises:
        ValueError: for what is no program.
    """
    return of_program(parsed(content))


def of_program(program: Any) -> Delegation:
    """What a program that was parsed gives to its backend."""
    (plan,) = program.execution_plan
    backend = "coreml" if CORE_ML in backends(program) else "xnnpack"
    return Delegation(len(plan.delegates), tuple(operator.name for operator in plan.operators), backend)


def backends(program: Any) -> list[str]:
    """The name of each piece's backend."""
    (plan,) = program.execution_plan
    return [each.id for each in plan.delegates]


def parsed(content: bytes) -> Any:
    """The program of a `.pte`, of one method.

    Raises:
        ValueError: for what is no program, or one of several methods.
    """
    try:
        program = import_quietly("executorch.exir._serialize._program").deserialize_pte_binary(content).program
    except Exception as error:  # whatever its parser says
        raise ValueError(f"these {len(content)} bytes are damaged or no ExecuTorch program: {error}") from error
    if len(program.execution_plan) != 1:
        names = ", ".join(plan.name for plan in program.execution_plan) or "none"
        raise ValueError(f"an ExecuTorch program with the methods {names}: expected one method, forward")
    return program
