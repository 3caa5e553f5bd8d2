"""A table of blocks: each is measured once, for real."""

import json
import sys

import pytest

from pyro_mvae.latency.blocks import Block, LatencyTable, blocks, measured
from tests.catalog import MODELS


def test_blocks_are_measured_once_a_machine(tmp_path, monkeypatch):
    asked = []

    def some(block):
        asked.append(block)
        return 1.0 + block.in_channels * block.out_channels / block.groups

    monkeypatch.setattr(sys.modules["pyro_mvae.latency.blocks"], "measured", some)
    model = MODELS["MVAE"]((1, 16, 16))
    table = LatencyTable(tmp_path / "table.json")
    first = table.estimate(model)
    assert len(asked) == len({block.rounded() for block in blocks(model)}) + 1
    adds = [some(block.rounded()) - 2.0 for block in blocks(model)]  # less the call, which is 1 + 1 · 1
    assert first == pytest.approx(2 * 2.0 + sum(max(each, 0.0) for each in adds))
    asked.clear()
    assert LatencyTable(tmp_path / "table.json").estimate(model) == first
    assert not asked
    held = json.loads((tmp_path / "table.json").read_text())
    (tmp_path / "table.json").write_text(json.dumps({**held, "machine": {"cpu": "another"}}))
    LatencyTable(tmp_path / "table.json").estimate(model)
    assert asked


def test_a_block_is_measured_for_real():
    small = Block(
        transposed=True, in_channels=8, out_channels=4, kernel=(4, 4), stride=(2, 2), padding=(1, 1), groups=1, height=4, width=4
    )
    assert measured(small) > 0
