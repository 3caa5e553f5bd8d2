"""Several processes at a time: what they make, what fails in them, and how they are ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from threadpoolctl import threadpool_info

from pyro_mvae.side_by_side import cores, each_by_itself, side_by_side

SLEEPER = """
import pathlib, signal, sys, time
from pyro_mvae.side_by_side import side_by_side

def interrupt(*_):
    raise KeyboardInterrupt

def work(path):
    # as long as it takes, unless it is interrupted
    signal.signal(signal.SIGTERM, interrupt)
    pathlib.Path(path + ".begun").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        pathlib.Path(path + ".ended").touch()
        raise

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests run in the background inherit that it is ignored
    try:
        list(side_by_side(work, [(sys.argv[1] + str(n),) for n in range(4)], processes=2))
    except KeyboardInterrupt:
        sys.exit(7)
"""


def interrupted(number):
    raise KeyboardInterrupt


def whereabouts(number):
    if number == 3:
        raise ValueError("three is too many")
    return number, os.getpid(), {torch.get_num_threads(), *(library["num_threads"] for library in threadpool_info())}


def test_cases_are_shared_by_processes_of_their_own():
    found = list(side_by_side(whereabouts, [(n,) for n in range(3)], processes=2))
    assert sorted(number for number, _, _ in found) == [0, 1, 2]
    assert os.getpid() not in {pid for _, pid, _ in found}
    assert all(threads == {max(cores() // 2, 1)} for _, _, threads in found)


def test_what_fails_elsewhere_is_raised_here():
    with pytest.raises(ValueError, match="three is too many"):
        list(side_by_side(whereabouts, [(3,)], processes=1))
    with pytest.raises(KeyboardInterrupt):
        list(side_by_side(interrupted, [(0,), (1,)], processes=2))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_those_at_work_in_their_own_way_and_the_rest_never_begin(tmp_path, how):
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "case")])
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*.begun"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(how)
    assert process.wait(30) == 7
    assert sorted(path.name for path in tmp_path.glob("*.begun")) == ["case0.begun", "case1.begun"]
    assert sorted(path.name for path in tmp_path.glob("*.ended")) == ["case0.ended", "case1.ended"]


def lost_at_three(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * number


def test_a_process_that_is_lost_stops_no_other():
    found = dict(each_by_itself(lost_at_three, [(number,) for number in (1, 3, 4)], processes=2))
    assert found == {(1,): 10, (3,): None, (4,): 40}
