"""What the commands print to.

A reader of standard output may have had enough (`lufleet run … | head`): what was asked for goes on
without it, and ends with the exit code that it would have had. A file that takes no more (a full
disk) is an error like that of any other file: `CannotWrite`.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from fleet.unwritable import STANDARD_OUTPUT, CannotWrite, drop_the_rest, writing

__all__ = ["Output", "consoles"]


def consoles() -> tuple[Console, Console]:
    """Standard output and standard error; lines of the latter are as long as they are.

    A text is shown as it is: `[s]` in a name is a unit and no style, `:b:` no picture. Letters that
    a terminal's encoding does not have are escaped, on both of them.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    errors = Console(stderr=True, soft_wrap=True, markup=False, emoji=False)
    return Output(markup=False, emoji=False), errors


class Output(Console):
    """A console whose `print` and `out` raise CannotWrite if its file takes no more."""

    def print(self, *objects: Any, **how: Any) -> None:  # noqa: ANN401 - rich's options
        """As rich has it. Raises: CannotWrite."""
        with self._writing():
            super().print(*objects, **how)

    def out(self, *objects: Any, **how: Any) -> None:  # noqa: ANN401 - rich's options
        """As rich has it. Raises: CannotWrite."""
        with self._writing():
            super().out(*objects, **how)

    def on_broken_pipe(self) -> None:
        """Say no more, where rich would end the process."""
        self.quiet = True
        drop_the_rest(self.file)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with writing(STANDARD_OUTPUT):
                yield
        except CannotWrite:
            drop_the_rest(self.file)
            raise
