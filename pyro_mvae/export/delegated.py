"""Core ML packages inside ExecuTorch programs: put in so that the same model gives the same bytes, taken out to be evaluated.

Nothing runs such a program off Apple's systems, but what its delegate is given is a package like any other.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from pyro_mvae.export._quiet import import_quietly, quiet
from pyro_mvae.export.delegation import CORE_ML, backends, of_program, parsed
from pyro_mvae.export.mil import MilProgram
from pyro_mvae.export.packages import DEFAULT_TARGETS, WRONG_PASSES, settle

PACKAGE, METADATA = "model.mlpackage", "metadata.json"
FOR_DEBUGGING = "debug_info.json"


@contextmanager
def core_ml(precision: str) -> Iterator[Any]:
    """What gives a program to Core ML, while it is lowered; the packages that are made then are settled."""
    ct = import_quietly("coremltools")
    preprocess = import_quietly("executorch.backends.apple.coreml.compiler.coreml_preprocess")
    partition = import_quietly("executorch.backends.apple.coreml.partition.coreml_partitioner")
    passes = ct.PassPipeline.DEFAULT
    passes.remove_passes(WRONG_PASSES)
    specs = preprocess.CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=getattr(ct.target, DEFAULT_TARGETS[precision]),
        compute_precision=ct.precision.FLOAT16,
        pass_names=list(passes.passes),
    )
    flatten = preprocess.executorchcoreml.flatten_directory_contents

    def flattened(folder: str) -> bytes:
        settle_lowered(Path(folder), precision=precision)
        return flatten(folder)

    with ExitStack() as stack:
        for module in (preprocess, partition):  # which set the levels of their logs themselves
            stack.enter_context(mock.patch.object(module.logger, "disabled", True))
        settled = SimpleNamespace(flatten_directory_contents=flattened)
        stack.enter_context(mock.patch.object(preprocess, "executorchcoreml", settled))
        yield partition.CoreMLPartitioner(compile_specs=specs)


def settle_lowered(folder: Path, *, precision: str) -> None:
    """Settle a package and what lies beside it. A device keeps compiled models by their identifier, so it is of the content."""
    (folder / FOR_DEBUGGING).unlink(missing_ok=True)
    settle(folder / PACKAGE, facts={"precision": precision})
    content = hashlib.sha256()
    for file in sorted(file for file in (folder / PACKAGE).rglob("*") if file.is_file()):
        content.update(file.read_bytes())
    metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    metadata["identifier"] = f"pyro_mvae_{content.hexdigest()}"
    (folder / METADATA).write_text(json.dumps(metadata), encoding="utf-8")


def delegated(content: bytes) -> MilProgram | None:
    """The Core ML program that a `.pte` consists of; None where it has none.

    Raises:
        ValueError: for a program that is damaged, or of which Core ML computes only a part.
    """
    if CORE_ML.encode() not in content:
        return None
    program = parsed(content)
    found, pieces = of_program(program), backends(program)
    if pieces != [CORE_ML] or found.outside:
        outside = ", ".join(found.outside) or "none"
        raise ValueError(
            f"expected a program that is one piece for Core ML: its pieces are for {', '.join(pieces) or 'none'}, "
            f"operations outside are {outside}"
        )
    (plan,) = program.execution_plan
    unflatten = import_quietly("executorch.backends.apple.coreml.executorchcoreml").unflatten_directory_contents
    with tempfile.TemporaryDirectory() as folder, quiet():
        unflatten(program.backend_delegate_data[plan.delegates[0].processed.index].data, folder)
        (package,) = Path(folder).rglob(PACKAGE)
        return MilProgram.load(package)
