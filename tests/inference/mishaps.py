"""What may happen to a run of training, as a `progress` that makes it happen."""

import os
import signal

import torch


def interrupt_at(step):
    """A progress that presses Ctrl-C when a step is reached."""

    def progress(steps, description, total):
        for number, x in enumerate(steps):
            if number == step:
                os.kill(os.getpid(), signal.SIGINT)
            yield x

    return progress


def poisoned(steps_that_are):
    """A progress that turns some batches, by their number, to no numbers."""

    def progress(steps, description, total):
        for number, x in enumerate(steps):
            yield torch.full_like(x, torch.nan) if number in steps_that_are else x

    return progress
