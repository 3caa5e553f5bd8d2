"""What lies beside exported files: a manifest for programs, a page for people."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from pyro_mvae.export.manifest import check_manifest, write_manifest
from pyro_mvae.export.snippets import write_readme
from pyro_mvae.export.verify import Verification
from pyro_mvae.latency.timing import file_latency
from pyro_mvae.models import VAE


def document(
    folder: str | os.PathLike[str],
    model: VAE,
    files: Iterable[Verification],
    *,
    images: Tensor | None = None,
    overwrite: bool = False,
) -> dict[str, dict[str, float] | None]:
    """Write `manifest.json` and `README.md` beside files that a model was exported to, once each was timed.

    What they say of other files of the same model stays.

    Args:
        files: what the exporters returned.
        images: what to time on, uint8, (n, C, H, W); noise when None.
        overwrite: whether a manifest of another model, or one that can't be read, may be replaced.

    Returns: p50 and p90 of each file by its path, µs, on one thread of this machine; None where nothing here can run it.

    Raises:
        ValueError: for such a manifest, if it may not.
        OSError: when the folder can't be written.

    Example:
        >>> import tempfile
        >>> from pyro_mvae import export_onnx
        >>> folder, vae = Path(tempfile.mkdtemp()), VAE((1, 8, 8), 4).eval()
        >>> latencies = document(folder, vae, [export_onnx(vae, folder / "decoder.onnx", part="decoder")])
        >>> sorted(path.name for path in folder.iterdir())
        ['README.md', 'decoder.onnx', 'manifest.json']
    """
    folder, files = Path(folder), list(files)
    check_manifest(folder, model, overwrite=overwrite)
    latencies = {each.path: file_latency(each, model, images=images) for each in files}
    write_manifest(folder, model, files, latencies=latencies, overwrite=overwrite)
    write_readme(folder)
    return latencies
