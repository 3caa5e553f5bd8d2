from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def raw_data() -> Path:
    folder = Path(__file__).parents[2] / "../shared/data"
    if not (folder / "mnist").is_dir() or not (folder / "emoji").is_dir():
        pytest.skip("needs the raw data in ../shared/data")
    return folder


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """Bytes of a picture of noise, another for each number."""

    def encode(number: int, *, kind: str = "png", width: int = 20, height: int = 20, **options) -> bytes:
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, kind, **options)
        return file.getvalue()

    return encode


@pytest.fixture
def fill(tmp_path: Path, encoded: Callable[..., bytes]) -> Callable[..., Path]:
    """Make a folder of so many good pictures."""

    def make(count: int, *, name: str = "pictures") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for number in range(count):
            (folder / f"{number:03}.png").write_bytes(encoded(number))
        return folder

    return make


@pytest.fixture(scope="session")
def shard() -> Callable[[Path, dict[str, bytes]], Path]:
    """Write a tar file of the given members."""

    def write(path: Path, members: dict[str, bytes]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return path

    return write
