"""What the README shows runs."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pyro_mvae
from pyro_mvae.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ {4}(?:.*&& )?pyro-mvae (.*?)(?: *#.*)?$", README, re.MULTILINE)


def test_the_two_commands_stand_first():
    first, second = re.findall(r"^ {4}(.*)$", README, re.MULTILINE)[:2]
    assert first == "pip install . && pyro-mvae build"
    assert second == "pip install -e '.[dev]' && pytest"


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_can_be_parsed(line):
    name, *arguments = shlex.split(line)
    main.commands[name].make_context(name, arguments)


def test_the_examples_run(tmp_path, monkeypatch):
    few = pyro_mvae.load_data("digits")
    few = replace(few, train=replace(few.train, images=few.train.images[:64], labels=None))
    monkeypatch.setattr(pyro_mvae, "load_data", lambda spec: few)
    monkeypatch.chdir(tmp_path)
    whole_way, _, training, passes, clusters = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {"torch": torch}
    exec(compile(whole_way.replace("minutes=5", "minutes=0.001"), "README.md", "exec"), names)
    assert (tmp_path / "decoder.pte").exists()
    exec(compile(training, "README.md", "exec"), names)
    assert (tmp_path / "history.csv").exists()
    exec(compile(passes, "README.md", "exec"), names)
    assert [text.split("(")[0] for text in names["small"].passes][-2:] == ["FoldAndFuse", "Quantize"]
    exec(compile(clusters, "README.md", "exec"), names)
    assert names["mvae"].num_clusters == 10
