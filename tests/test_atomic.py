"""Whatever happens while something is written, what stood there before is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyro_mvae import atomic as module
from pyro_mvae.atomic import atomic


def folder_with(path, text):
    path.mkdir()
    (path / "weights").write_text(text)
    return path


def test_a_folder_takes_the_place_of_another(tmp_path):
    old = folder_with(tmp_path / "a.mlpackage", "old")
    with atomic(old) as temporary:
        folder_with(temporary, "new")
    assert (old / "weights").read_text() == "new"
    assert list(tmp_path.iterdir()) == [old]


def test_what_stood_there_stays_whole_until_the_other_is_in_place(tmp_path, monkeypatch):
    """A process that is killed while it removes the old folder has put the new one there before."""
    old, removed = folder_with(tmp_path / "a.mlpackage", "old"), []

    def remove(path):
        if Path(path).is_dir():
            removed.append((old / "weights").read_text())

    monkeypatch.setattr(module, "remove", remove)
    with atomic(old) as temporary:
        folder_with(temporary, "new")
    assert removed == ["new"]


@pytest.mark.parametrize("made", ["file", "folder"])
def test_an_error_leaves_what_was_there(made, tmp_path):
    path = tmp_path / "kept"
    folder_with(path, "old") if made == "folder" else path.write_text("old")

    def broken():
        with atomic(path) as temporary:
            folder_with(temporary, "half") if made == "folder" else temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert (path / "weights" if made == "folder" else path).read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
