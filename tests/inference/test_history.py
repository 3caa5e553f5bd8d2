import pandas as pd
import pytest
from torch import nn

from pyro_mvae import fit, write_csv, write_tensorboard
from tests.catalog import MODELS


def test_the_history_has_the_papers_columns_first_and_a_row_an_epoch(images, tmp_path):
    path = tmp_path / "history.csv"
    history = fit(MODELS["MVAE"]((1, 16, 16)), images[:64], epochs=2, callbacks=[write_csv(path)])
    columns = ["epoch", "loss", "kl", "likelihood", "learning_rate", "guide_learning_rate", "kl_weight", "batch_size"]
    assert history.columns.tolist() == [*columns, "seconds", "images_per_second"]
    assert (history["images_per_second"] > 0).all()
    assert (history["images_per_second"] * history["seconds"]).tolist() == pytest.approx([64, 64])
    pd.testing.assert_frame_equal(pd.read_csv(path), history, check_like=False)


def test_rows_of_an_earlier_run_make_way(tmp_path):
    path = tmp_path / "history.csv"
    for epochs in ((0, 1, 2), (1,)):
        write = write_csv(path)
        for epoch in epochs:
            write(nn.Identity(), {"epoch": epoch, "loss": float(len(epochs))})
    assert pd.read_csv(path).to_dict("list") == {"epoch": [0, 1], "loss": [3.0, 1.0]}


def test_a_file_that_is_no_history_is_left_alone(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text("milk, eggs\n")
    with pytest.raises(ValueError, match="does not begin with the column"):
        write_csv(path)
    assert path.read_text() == "milk, eggs\n"


def test_tensorboard_reads_what_is_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write = write_tensorboard(tmp_path)
    for epoch, loss in enumerate((2.0, 1.5)):
        write(nn.Identity(), {"epoch": epoch, "loss": loss})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 2.0), (1, 1.5)]


def test_without_tensorboard_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(ValueError, match="pip install"):
        write_tensorboard(tmp_path)
