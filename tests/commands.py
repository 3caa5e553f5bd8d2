"""The command line, called in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from pyro_mvae.cli import main


def run(*words: object, code: int = 0) -> Result:
    """What a command says, which has to end with an exit code."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, (result.output, result.exception)
    return result
