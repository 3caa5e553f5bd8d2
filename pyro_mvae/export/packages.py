"""Core ML packages as files: what every one that is written has to go by, wherever it ends up."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_mvae.export._quiet import import_quietly

TARGETS = {"iOS16": 7, "iOS17": 8, "iOS18": 9}
"""The oldest systems that packages are written for, and the specifications that those read."""
DEFAULT_TARGETS = {"float16": "iOS16", "palettized": "iOS16", "int8": "iOS18", "int8_weights": "iOS18", "int4": "iOS18"}
# this pass fuses dequantise → reshape → quantise without comparing the two scales
WRONG_PASSES = ("common::int_op_canonicalization",)
FOR_DEBUGGING = "executorch_debug_handle_mapping.json"
DATE = "com.github.apple.coremltools.conversion_date"


def caution(*, precision: str, target: str) -> str | None:
    """What an app has to mind of a package, or None.

    Example:
        >>> caution(precision="int8", target="iOS17")[:35]
        'int8 weights for iOS17 are computed'
        >>> caution(precision="int8", target="iOS18")
    """
    if precision not in ("int8", "int8_weights") or target == "iOS18":
        return None
    return (
        f"int8 weights for {target} are computed wrong by GPU and neural engine of some phones: "
        "set computeUnits to cpuOnly, or take iOS18"
    )


def needs(package: Path) -> dict[str, str | None]:
    """The oldest system that runs a package, and what an app has to mind, both as the package says itself."""
    spec = import_quietly("coremltools").utils.load_spec(str(package))
    (target,) = (name for name, version in TARGETS.items() if version == spec.specificationVersion)
    return {"target": target, "caution": spec.description.metadata.userDefined.get("caution")}


def settle(package: Path, *, metadata: Any = None, facts: Mapping[str, str] | None = None) -> None:
    """Write a saved package's specification and manifest again, so that the same model gives the same bytes.

    Maps are written in the order of their keys, items are named after what they are instead of by chance, no day is noted, and
    what is for those who debug converters, as many bytes as small nets' weights, is taken away.

    Args:
        metadata: what the package is to say of itself; what it says already when None.
        facts: what it is to say besides.
    """
    (package / FOR_DEBUGGING).unlink(missing_ok=True)
    manifest_path = package / "Manifest.json"
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    items = {item["path"]: (name, item) for name, item in manifest["itemInfoEntries"].items()}
    names = {name: str(uuid.uuid5(uuid.NAMESPACE_URL, path)) for path, (name, _) in items.items()}
    manifest["itemInfoEntries"] = {names[name]: items[path][1] for path, (name, _) in sorted(items.items())}
    root = manifest["rootModelIdentifier"]
    specification = package / "Data" / next(path for path, (name, _) in items.items() if name == root)
    manifest["rootModelIdentifier"] = names[root]
    model = import_quietly("coremltools").proto.Model_pb2.Model()
    model.ParseFromString(specification.read_bytes())
    if metadata is not None:  # coremltools keeps none where there are several functions
        model.description.metadata.CopyFrom(metadata)
    model.description.metadata.userDefined.pop(DATE, None)
    model.description.metadata.userDefined.update(facts or {})
    specification.write_bytes(model.SerializeToString(deterministic=True))
    manifest_path.write_text(json.dumps(manifest, indent=4) + "\n", encoding="utf-8")
