from __future__ import annotations

import gzip
import io
import json
import os
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_mvae.data import load_data
from pyro_mvae.data.pictures import decode


def saved(image: Image.Image, kind: str = "png", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def halves() -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (40, 40), "red")
    image.paste("blue", (20, 0, 40, 40))
    return image


class TestPictures:
    @pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
    def test_kinds(self, kind):
        corner = decode(saved(Image.new("RGB", (30, 20), (200, 100, 50)), kind), size=8, channels=3)[:, 0, 0]
        assert torch.allclose(corner.float(), torch.tensor([200.0, 100.0, 50.0]), atol=4)

    @pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
    def test_exif_rotation(self, kind):
        exif = Image.Exif()
        exif[0x0112] = 6  # to be shown turned clockwise, so that red comes to the top
        picture = decode(saved(halves(), kind, exif=exif), size=8, channels=3).float()
        assert picture[0, 0].mean() > 200 > 50 > picture[2, 0].mean()
        assert picture[2, -1].mean() > 200 > 50 > picture[0, -1].mean()

    @pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
    def test_damaged_exif_does_not_cost_the_picture(self, kind):
        content = saved(halves(), kind, exif=b"Exif\0\0not EXIF")
        assert decode(content, size=8, channels=3)[0, 0, 0] > 200

    def test_centre_square(self):
        wide = Image.new("RGB", (60, 20), "red")
        wide.paste("blue", (20, 0, 40, 20))
        picture = decode(saved(wide), size=16, channels=3)
        assert picture.shape == (3, 16, 16)
        assert picture[2].min() > 240
        assert picture[0].max() < 15

    def test_transparent_is_white(self):
        clear = saved(Image.new("RGBA", (20, 20), (255, 0, 0, 0)))
        half = saved(Image.new("RGBA", (20, 20), (0, 0, 0, 127)))
        assert decode(clear, size=8, channels=3).unique().tolist() == [255]
        assert decode(half, size=8, channels=1).unique().tolist() == [128]

    def test_palette_with_transparency(self):
        image = Image.new("P", (20, 20), 0)
        image.putpalette([10, 20, 30])
        assert decode(saved(image), size=8, channels=3)[:, 0, 0].tolist() == [10, 20, 30]
        assert decode(saved(image, transparency=0), size=8, channels=3)[:, 0, 0].tolist() == [255, 255, 255]

    @pytest.mark.parametrize(("value", "expected"), [(0, 0), (257 * 77, 77), (65535, 255)])
    def test_16_bits(self, value, expected):
        content = saved(Image.fromarray(np.full((20, 20), value, dtype=np.uint16)))
        assert decode(content, size=8, channels=3).unique().tolist() == [expected]

    def test_grey(self):
        assert decode(saved(Image.new("RGB", (9, 9), "white")), size=8, channels=1).shape == (1, 8, 8)

    def test_other_formats_are_refused(self):
        with pytest.raises(ValueError, match="not a JPEG, PNG or WebP"):
            decode(saved(halves(), "bmp"), size=8, channels=3)

    @pytest.mark.parametrize("limit", [100, 1000])  # beyond twice the limit Pillow raises, below it warns
    def test_decompression_bomb(self, limit, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match="too large"):
            decode(saved(halves()), size=8, channels=3)

    @pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
    def test_cut_short_anywhere(self, kind, encoded):
        content = encoded(0, kind=kind)
        for length in range(0, len(content) // 2, 37):
            with pytest.raises(ValueError, match=r"not a|damaged"):
                decode(content[:length], size=8, channels=3)


class TestFolder:
    def test_all_below_are_read_at_the_usual_size(self, fill, encoded):
        folder = fill(12)
        (folder / "a" / "b").mkdir(parents=True)
        (folder / "a" / "b" / "UPPER.JPG").write_bytes(encoded(100, kind="jpeg"))
        (folder / "notes.txt").write_text("no picture")
        data = load_data(f"folder:{folder}")
        assert len(data.train) + len(data.test) == 13
        assert (data.shape, data.binarization, data.skipped) == ((3, 32, 32), "none", ())
        assert data.train.images.dtype == torch.uint8
        assert data.train.captions is data.train.labels is data.train.tags is None

    def test_size_and_channels(self, fill):
        assert load_data(f"folder:{fill(3)}", size=8, channels=1).shape == (1, 8, 8)

    def test_damaged_ones_are_named_and_the_rest_used(self, fill, encoded):
        folder = fill(5)
        (folder / "cut.png").write_bytes(encoded(50)[:600])
        (folder / "text.jpg").write_text("not a picture")
        (folder / "empty.webp").touch()
        data = load_data(f"folder:{folder}")
        assert len(data.train) + len(data.test) == 5
        names = [entry.partition(": ")[0] for entry in data.skipped]
        assert names == [str(folder / name) for name in ("cut.png", "empty.webp", "text.jpg")]
        assert "truncated" in data.skipped[0]
        assert all("\n" not in entry and "0x" not in entry for entry in data.skipped)

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows forbids such names")
    def test_names_that_cannot_be_printed(self, fill):
        folder = fill(3)
        (folder / "red\x1b[31m\n.png").write_text("x")
        os.rename(os.fsencode(folder / "000.png"), os.fsencode(folder) + b"/\xff.png")  # noqa: PTH104
        (skipped,) = load_data(f"folder:{folder}").skipped
        assert skipped.isprintable()

    @pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root reads everything")
    def test_unreadable_file(self, fill):
        folder = fill(3)
        (folder / "001.png").chmod(0)
        (skipped,) = load_data(f"folder:{folder}").skipped
        assert "Permission denied" in skipped

    def test_missing(self, tmp_path):
        with pytest.raises(ValueError, match=r"no folder .*nowhere"):
            load_data(f"folder:{tmp_path / 'nowhere'}")

    def test_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match="is a file, expected a folder"):
            load_data(f"folder:{tmp_path / 'file'}")

    def test_empty(self, tmp_path):
        (tmp_path / "below").mkdir()
        with pytest.raises(ValueError, match="is empty"):
            load_data(f"folder:{tmp_path}")

    def test_only_text(self, tmp_path):
        (tmp_path / "notes.txt").touch()
        (tmp_path / "more.txt").touch()
        with pytest.raises(ValueError, match=r"has 2 files, none of them \.jpg"):
            load_data(f"folder:{tmp_path}")

    def test_all_damaged(self, tmp_path):
        for name in ("a.png", "b.png"):
            (tmp_path / name).write_text("x")
        with pytest.raises(ValueError, match=r"no picture could be read; 2 skipped, first .*a\.png: not a JPEG"):
            load_data(f"folder:{tmp_path}")

    def test_one_picture(self, fill):
        with pytest.raises(ValueError, match=r"expected at least 2: .*\(1 read, 0 skipped\)"):
            load_data(f"folder:{fill(1)}")

    def test_one_picture_many_times(self, tmp_path, encoded):
        for number in range(9):
            (tmp_path / f"{number}.png").write_bytes(encoded(0))
        with pytest.raises(ValueError, match=r"1 different picture.*\(9 read"):
            load_data(f"folder:{tmp_path}")

    @pytest.mark.parametrize("count", [2, 3])
    @pytest.mark.parametrize("seed", range(12))
    def test_neither_side_is_empty(self, fill, count, seed):
        data = load_data(f"folder:{fill(count)}", size=8, seed=seed)
        assert len(data.train) >= 1
        assert len(data.test) >= 1

    def test_same_files_are_on_one_side(self, tmp_path, encoded):
        for number in range(40):
            for copy in ("a", "z"):
                (tmp_path / f"{copy}{number}.png").write_bytes(encoded(number))
        for seed in range(3):
            data = load_data(f"folder:{tmp_path}", size=8, seed=seed)
            train, test = ({image.numpy().tobytes() for image in split.images} for split in (data.train, data.test))
            assert len(train) + len(test) == 40
            assert not train & test

    def test_split_follows_bytes_and_seed(self, fill, tmp_path, encoded):
        folder = fill(60)
        (tmp_path / "renamed").mkdir()
        for number in range(60):
            (tmp_path / "renamed" / f"{60 - number:02}.png").write_bytes(encoded(number))

        def held(place, seed):
            images = load_data(f"folder:{place}", size=8, seed=seed).test.images
            return {image.numpy().tobytes() for image in images}

        assert held(folder, 0) == held(tmp_path / "renamed", 0)
        assert held(folder, 0) != held(folder, 1)
        assert 1 <= len(held(folder, 0)) <= 15

    def test_progress_is_told(self, fill):
        folder = fill(4)
        told = []

        def progress(steps, description, total):
            told.append((description, total))
            return steps

        load_data(f"folder:{folder}", progress=progress)
        assert told == [(f"Reading {folder}", 4)]


class TestShards:
    def test_captions_and_tags(self, tmp_path, shard, encoded):
        members = {}
        for number in range(30):
            members[f"{number:05}.png"] = encoded(number)
            members[f"{number:05}.txt"] = f"caption {number}\n".encode()
            members[f"{number:05}.json"] = json.dumps({"caption": "other", "tags": ["a", str(number)]}).encode()
        shard(tmp_path / "0.tar", members)
        data = load_data(f"shards:{tmp_path}/*.tar", size=8)
        assert data.train.captions is not None
        assert data.test.captions is not None
        assert data.train.tags is not None
        assert sorted(data.train.captions + data.test.captions) == sorted(f"caption {n}" for n in range(30))
        for image, caption, tags in zip(data.train.images, data.train.captions, data.train.tags, strict=True):
            number = int(caption.split()[1])
            assert tags == ("a", str(number))
            assert torch.equal(image, decode(encoded(number), size=8, channels=3))

    def test_caption_from_json_and_none_at_all(self, tmp_path, shard, encoded):
        members = {f"{n}.jpg": encoded(n, kind="jpeg") for n in range(3)}
        bare = load_data(f"shards:{shard(tmp_path / 'bare.tar', members)}")
        assert bare.train.captions is bare.train.tags is None
        described = members | {"3.webp": encoded(3, kind="webp"), "3.json": b'{"caption": "third", "tags": null}'}
        data = load_data(f"shards:{shard(tmp_path / 'described.tar', described)}")
        assert data.train.captions is not None
        assert data.test.captions is not None
        assert sorted(data.train.captions + data.test.captions) == ["", "", "", "third"]

    def test_failed_downloads_are_no_samples(self, tmp_path, shard, encoded):
        members = {f"{n}.png": encoded(n) for n in range(3)} | {"9.json": b'{"status": "failed_to_download"}'}
        data = load_data(f"shards:{shard(tmp_path / '0.tar', members)}")
        assert (len(data.train) + len(data.test), data.skipped) == (3, ())

    def test_damaged_samples_are_named(self, tmp_path, shard, encoded):
        good = {f"{n}.png": encoded(n) for n in range(3)}
        bad = {
            "cut.png": encoded(9)[:500],
            "json.png": encoded(10),
            "json.json": b"{",
            "list.png": encoded(11),
            "list.json": b"[1]",
            "deep.png": encoded(12),
            "deep.json": b"[" * 100_000,
        }
        path = shard(tmp_path / "0.tar", good | bad)
        data = load_data(f"shards:{path}")
        assert len(data.train) + len(data.test) == 3
        assert [entry.partition(": ")[0] for entry in data.skipped] == [
            f"{path}/{name}.png" for name in ("cut", "json", "list", "deep")
        ]

    def test_nothing_is_unpickled(self, tmp_path, shard, encoded):
        mark = tmp_path / "mark"
        attack = f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()
        members = {f"{n}{end}": encoded(n) for n in range(3) for end in (".png",)}
        members |= {f"2.{end}": attack for end in ("pyd", "pickle", "pkl", "npy", "pth", "cls", "json.pkl")}
        assert len(load_data(f"shards:{shard(tmp_path / '0.tar', members)}").train) == 2
        assert not mark.exists()

    def test_member_names_write_nothing(self, tmp_path, shard, encoded):
        members = {f"{n}.png": encoded(n) for n in range(3)}
        members |= {"../../escaped.png": encoded(7), f"{tmp_path}/absolute.png": encoded(8), "../bad\x1b[31m.png": b"x"}
        path = shard(tmp_path / "below" / "0.tar", members)
        before = sorted(tmp_path.rglob("*"))
        data = load_data(f"shards:{path}")
        assert sorted(tmp_path.rglob("*")) == before
        assert len(data.train) + len(data.test) == 5
        (skipped,) = data.skipped
        assert skipped.isprintable()

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows forbids such names")
    def test_a_shard_named_pipe_runs_nothing(self, tmp_path, shard, encoded, monkeypatch):
        monkeypatch.chdir(tmp_path)
        shard(tmp_path / "pipe:touch mark; cat good.tar", {f"{n}.png": encoded(n) for n in range(3)})
        for pattern in ("pipe:*", "pipe:touch mark; cat good.tar", "*"):
            assert len(load_data(f"shards:{pattern}").train) == 2
        with pytest.raises(ValueError, match="no local file matches"):
            load_data("shards:pipe:touch mark")
        assert not (tmp_path / "mark").exists()

    @pytest.mark.parametrize("pattern", ["*.tar", "http://localhost/0.tar", "{0..3}.tar"])
    def test_no_match(self, tmp_path, pattern, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "folder.tar").mkdir()
        with pytest.raises(ValueError, match="no local file matches"):
            load_data(f"shards:{pattern}")

    def test_damaged_shards_among_good_ones(self, tmp_path, shard, encoded):
        shard(tmp_path / "3.tar", {f"{n}.png": encoded(n) for n in range(4)})
        (tmp_path / "0.tar").write_text("not a tar file " * 100)
        (tmp_path / "1.tar").touch()
        whole = shard(tmp_path / "2.tar", {f"{n}.png": encoded(10 + n) for n in range(4)}).read_bytes()
        (tmp_path / "2.tar").write_bytes(whole[:3000])
        data = load_data(f"shards:{tmp_path}/*.tar")
        assert len(data.train) + len(data.test) == 5
        assert [entry.partition(": ")[0] for entry in data.skipped] == [f"{tmp_path}/{n}.tar" for n in range(3)]

    def test_a_cut_anywhere_is_told(self, tmp_path, shard, encoded):
        path = shard(tmp_path / "0.tar", {f"{n}.png": encoded(n) for n in range(4)})
        whole = path.read_bytes()
        end = len(whole.rstrip(b"\0"))
        for length in [*range(4200, end, 256), 512 * 8, 512 * 12]:
            path.write_bytes(whole[:length])
            (skipped,) = load_data(f"shards:{path}", size=8).skipped
            assert skipped.startswith(f"{path}: damaged shard: ")

    def test_a_damaged_header_is_told(self, tmp_path, shard, encoded):
        path = shard(tmp_path / "0.tar", {f"{n}.png": encoded(n) for n in range(20)})
        content = bytearray(path.read_bytes())
        place = content.index(b"10.png")
        content[place] ^= 0xFF
        path.write_bytes(content)
        data = load_data(f"shards:{path}", size=8)
        assert len(data.train) + len(data.test) == 10
        assert "damaged header" in data.skipped[0]

    def test_compressed(self, tmp_path, shard, encoded):
        path = shard(tmp_path / "0.tar", {f"{n}.png": encoded(n) for n in range(4)})
        whole = gzip.compress(path.read_bytes())
        path.write_bytes(whole)
        assert load_data(f"shards:{path}").skipped == ()
        path.write_bytes(whole[: len(whole) * 3 // 4])
        assert len(load_data(f"shards:{path}").skipped) == 1

    def test_nothing_left(self, tmp_path, shard):
        (tmp_path / "0.tar").write_text("not a tar file")
        with pytest.raises(ValueError, match=r"no picture could be read; 1 skipped, first .*0\.tar: damaged shard"):
            load_data(f"shards:{tmp_path / '0.tar'}")
        shard(tmp_path / "0.tar", {"0.txt": b"no picture"})
        with pytest.raises(ValueError, match=r"no picture could be read$"):
            load_data(f"shards:{tmp_path / '0.tar'}")

    def test_same_key_in_two_shards(self, tmp_path, shard, encoded):
        for n in range(4):
            shard(tmp_path / f"{n}.tar", {"0.png": encoded(n), "0.txt": str(n).encode()})
        data = load_data(f"shards:{tmp_path}/*.tar")
        assert len(data.train) + len(data.test) == 4

    def test_order_is_the_files(self, tmp_path, shard, encoded):
        for n in (1, 0):
            shard(tmp_path / f"{n}.tar", {f"{i}.png": encoded(10 * n + i) for i in range(5)})
        first, second = (load_data(f"shards:{tmp_path}/*.tar", size=8).train.images for _ in range(2))
        assert torch.equal(first, second)
        expected = [decode(encoded(n), size=8, channels=3) for n in (*range(5), *range(10, 15))]
        positions = [next(i for i, image in enumerate(expected) if torch.equal(image, picture)) for picture in first]
        assert positions == sorted(positions)

    def test_an_emoji_shard(self, raw_data):
        begin = time.perf_counter()
        data = load_data(f"shards:{raw_data}/emoji/00007.tar", size=16)
        assert len(data.train) + len(data.test) == 160
        assert data.skipped == ()
        assert data.train.captions is not None
        assert all(data.train.captions)
        assert data.train.tags is not None
        assert any(data.train.tags)
        assert time.perf_counter() - begin < 10
