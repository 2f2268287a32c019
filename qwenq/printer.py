"""Many programs, one terminal: each output line behind the coloured name of the program that wrote it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.text import Text

COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_red", "bright_cyan")


class Printer:
    """Writes lines as `name | text`. Colours follow the terminal and NO_COLOR.

    Args:
        console: where to write.
        names: everyone who will write, in the order that decides the colours.
    """

    def __init__(self, console: Console, names: Sequence[str]) -> None:
        self._console = console
        width = max(map(len, names))
        self._prefixes = {
            name: (f"{name:<{width}} | ", COLOURS[position % len(COLOURS)])
            for position, name in enumerate(names)
        }
        self._reader_gone = False

    def line(self, name: str, text: str) -> None:
        """Write one line of `name`'s output; its own colour codes are kept on a terminal and dropped elsewhere."""
        self.block(Text.assemble(self._prefixes[name], Text.from_ansi(text)))

    def block(self, content: RenderableType) -> None:
        """Write something that stands for itself, without a name before it."""
        if self._reader_gone:
            return
        try:
            self._console.print(content, soft_wrap=True, highlight=False)
        except (OSError, SystemExit):
            # The terminal or the pipe that read us is closed (rich would leave the program then). The stack
            # serves on; there is nobody to tell.
            self._reader_gone = True
