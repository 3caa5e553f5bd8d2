"""Import coremltools, torchao and executorch, and convert with them, without their chatter."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from pathlib import Path
from types import ModuleType

# Libraries that warn, on every import, about optional parts that are absent or not yet tested together.
_TALKATIVE = ("coremltools", "torchao", "executorch", "torch.utils._pytree", "torch.onnx", "onnxscript", "onnx_ir")

# ct.convert leaves its temporary folder of weights to the garbage collector: a ResourceWarning.
_NOTICES = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ResourceWarning)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the export libraries for a while: log lines below ERROR, progress bars, notices to developers.

    Exceptions, errors in the log and every other warning (an overflow in a cast to float16, say) still come through.
    Settings are the process's, not the thread's, and are put back on leaving.

    >>> with quiet():
    ...     logging.getLogger("coremltools").warning("unheard")
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        for category in _NOTICES:
            warnings.simplefilter("ignore", category)
        for name in _TALKATIVE:
            stack.enter_context(_errors_only(logging.getLogger(name)))
        stack.enter_context(_no_progress_bars())
        stack.enter_context(_no_new_handlers(logging.getLogger()))
        yield


def import_quietly(name: str) -> ModuleType:
    """Import a module by its full name as `quiet` does, with no warning of any kind.

    >>> import_quietly("json").dumps([1])
    '[1]'
    """
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


@contextmanager
def no_native_messages() -> Iterator[None]:
    """Silence what libraries in C++ write to the process's standard error, past Python or, in a notebook, through it."""
    sys.stderr.flush()
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def _errors_only(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _no_new_handlers(logger: logging.Logger) -> Iterator[None]:
    before = list(logger.handlers)
    try:
        yield
    finally:
        for handler in [each for each in logger.handlers if each not in before]:
            logger.removeHandler(handler)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from tqdm import tqdm

    # coremltools offers no switch of its own, and TQDM_DISABLE counts only before tqdm's first import.
    init = tqdm.__init__
    tqdm.__init__ = functools.partialmethod(init, disable=True)  # type: ignore[assignment]
    try:
        yield
    finally:
        tqdm.__init__ = init
