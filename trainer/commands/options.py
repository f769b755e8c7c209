"""Command-line options of the commands that take any: a mistake is one line, and `name=value` is the same as `--name value`."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from data_pipeline.errors import UserError


class Options(argparse.ArgumentParser):
    """argparse, with the example of a command below its help, key=value beside its options and UserError for its mistakes."""

    def __init__(self, command: str, about: str, example: str) -> None:
        self.command = command
        super().__init__(
            prog=f"python trainer/main.py {command}",
            description=about,
            epilog=f"example:\n{example}\n\nAn option may also be written as key=value: seed=3 is --seed 3.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.command}: {message}; see python trainer/main.py {self.command} --help")

    def read(self, arguments: list[str]) -> argparse.Namespace:
        """The options' values. Raises UserError."""
        names = {option for action in self._actions for option in action.option_strings}
        given = []
        for argument in arguments:
            name, _, value = argument.partition("=")
            option = f"--{name.removeprefix('sample.').replace('_', '-')}"
            given.append(f"{option}={value}" if option in names and re.match(r"[\w.]+=", argument) else argument)
        return self.parse_args(given)


def size(text: str) -> tuple[int, int]:
    """(height, width) of '96x128', for --size."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, as in 96x128")
    return int(match[1]), int(match[2])
