"""Make the data sets that come with the package from the raw ones; the same input gives the same bytes.

python scripts/bundle_data.py [--output FOLDER] [RAW]
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from torch import Tensor

from pyro_mvae.atomic import atomic
from pyro_mvae.data.holdout import SHARE, rank
from pyro_mvae.data.idx import load_mnist, write_idx
from pyro_mvae.data.images import Split

ROOT = Path(__file__).resolve().parent.parent
TILE, COLUMNS = 32, 44
SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}


def bundle_digits(raw: Path, output: Path) -> None:
    """Write a part of MNIST as idx files: of each split the pictures whose hashes come first."""
    mnist = load_mnist(raw / "mnist", name="mnist")
    for part, split, count in (("train", mnist.train, 10_000), ("t10k", mnist.test, 2_000)):
        chosen = by_hash(split.images)[:count]
        write_idx(split.images[chosen, 0], output / "digits" / f"{part}-images-idx3-ubyte.gz")
        write_idx(labels_of(split)[chosen].byte(), output / "digits" / f"{part}-labels-idx1-ubyte.gz")


def by_hash(images: Tensor) -> list[int]:
    """The pictures' numbers in the order of their hashes: as good as shuffled, on every machine and for good."""
    digests = [hashlib.sha256(image.numpy().tobytes()).digest() for image in images]
    return sorted(range(len(digests)), key=lambda index: (digests[index], index))


def labels_of(split: Split) -> Tensor:
    if split.labels is None:
        raise ValueError("the raw MNIST has no label files, expected them beside the images")
    return split.labels


def bundle_emoji(raw: Path, output: Path) -> None:
    """Write Noto's emoji without skin tones as one lossless sheet and a listing."""
    found = sorted(noto(raw / "emoji"), key=lambda entry: entry[0]["code"])
    rows = -(-len(found) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * TILE, rows * TILE), "white")
    for index, (_, content) in enumerate(found):
        row, column = divmod(index, COLUMNS)
        sheet.paste(tile(content), (column * TILE, row * TILE))
    with atomic(output / "emoji" / "emoji.webp") as temporary:
        sheet.save(temporary, "webp", lossless=True, quality=100, method=4)
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry, _ in found)
    with atomic(output / "emoji" / "emoji.json") as temporary:
        temporary.write_text(f'{{"tile": {TILE}, "emoji": [\n{lines}\n]}}\n', encoding="utf-8")


def tile(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as image:
        picture = image.convert("RGBA")
    on_white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return on_white.resize((TILE, TILE), Image.Resampling.LANCZOS)


def noto(shards: Path) -> Iterator[tuple[dict, bytes]]:
    """Yield the listing's entry and the file of each emoji in Noto's style that has no skin tone."""
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            contents = {member.name: file.read() for member in tar if (file := tar.extractfile(member))}
        for name in (name for name in contents if name.endswith(".json")):
            notes = json.loads(contents[name])
            style, _, code = notes["url"].partition("/")
            codes = code.split("-")
            if style == "noto" and SKIN_TONES.isdisjoint(codes):
                # Sequences with one beginning are variants of one picture, so they stay on one side.
                side = "test" if rank(codes[0].encode()) < SHARE else "train"
                entry = {"code": code, "name": notes["caption"], "tags": notes["tags"], "split": side}
                yield entry, contents[name.removesuffix(".json") + ".webp"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the bundled data sets.")
    parser.add_argument("raw", type=Path, nargs="?", default=ROOT / "../shared/data", help="folder with mnist and emoji")
    parser.add_argument("--output", type=Path, default=ROOT / "pyro_mvae/data/bundled", help="folder to write to")
    options = parser.parse_args(arguments)
    bundle_digits(options.raw, options.output)
    bundle_emoji(options.raw, options.output)
    for path in sorted(options.output.rglob("*.*")):
        print(f"{path.stat().st_size:>9,}  {path.relative_to(options.output)}")


if __name__ == "__main__":
    main()
