"""Several things at a time, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from threadpoolctl import threadpool_limits

Result = TypeVar("Result")


def cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_each(cases: int, *, processes: int) -> int:
    """How many threads each of so many cases has, of which so many at most are run at a time.

    Example:
        >>> threads_each(100, processes=2 * cores()), threads_each(1, processes=2) == cores()
        (1, True)
    """
    return max(cores() // min(processes, max(cases, 1)), 1)


def side_by_side(function: Callable[..., Result], cases: Sequence[tuple[Any, ...]], *, processes: int) -> Iterator[Result]:
    """Yield what a function makes of each case, as it comes: `processes` of them at a time, which share the cores.

    Ctrl-C or SIGTERM, or closing the iterator, ends them with SIGTERM, which `fit` takes as time to write its state, and waits
    for that; cases that had not begun do not begin. What fails or is interrupted in a process is raised here.

    Args:
        function: one that can be imported, as its name is what a new process is given.
    """
    threads = threads_each(len(cases), processes=processes)
    processes = min(processes, max(len(cases), 1))
    spawn, others = multiprocessing.get_context("spawn"), multiprocessing.active_children()
    with (
        terminated_as_interrupted(),
        ProcessPoolExecutor(processes, mp_context=spawn, initializer=begin, initargs=(threads,)) as pool,
    ):
        left, at_work = list(cases), set[Future[Result]]()
        try:
            while left or at_work:
                while left and len(at_work) < processes:  # no more: a pool does not call back what it has handed out
                    at_work.add(pool.submit(interruptible, function, left.pop(0)))
                done, at_work = wait(at_work, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BaseException:
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()
            raise


def each_by_itself(
    function: Callable[..., Result], cases: Sequence[tuple[Any, ...]], *, processes: int
) -> Iterator[tuple[tuple[Any, ...], Result | None]]:
    """`side_by_side`, each case with what was made of it; None where its process was lost, which stops no other.

    All processes end when one of them is lost. Who it was is found by beginning what is left one at a time.
    """
    left, at_a_time = dict(enumerate(cases)), processes
    while left:
        jobs = [(function, number, case) for number, case in left.items()]
        try:
            for number, result in side_by_side(numbered, jobs, processes=at_a_time):
                yield left.pop(number), result
        except BrokenProcessPool:
            if at_a_time > 1:
                at_a_time = 1
            else:
                yield left.pop(next(iter(left))), None
                at_a_time = processes


def numbered(function: Callable[..., Result], number: int, case: tuple[Any, ...]) -> tuple[int, Result]:
    """What a function makes of a case, and the case's number."""
    return number, function(*case)


def begin(threads: int) -> None:
    """In a new process: its share of the cores, and a group of its own, so that Ctrl-C reaches it from here alone, once."""
    os.setpgrp()
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # NumPy's and scikit-learn's


def interruptible(function: Callable[..., Result], case: tuple[Any, ...]) -> Result:
    """What a function makes of a case; whatever interrupts it is sent home as a KeyboardInterrupt, which can be pickled."""
    try:
        return function(*case)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(str(error)) from None


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM is as Ctrl-C; outside the main thread, where Python lets nobody say so, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(received: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
