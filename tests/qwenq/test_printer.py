"""The prefix of each line, with and without a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from qwenq.printer import Printer


def test_each_name_has_its_own_colour_on_a_terminal() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, color_system="standard", no_color=False, _environ={})
    printer = Printer(console, ["a", "bb"])
    printer.line("a", "one")
    printer.line("bb", "\x1b[31mred\x1b[0m two")
    assert written.getvalue() == "\x1b[36ma  | \x1b[0mone\n\x1b[32mbb | \x1b[0m\x1b[31mred\x1b[0m two\n"


def test_elsewhere_there_are_no_colours_and_no_wrapping() -> None:
    written = io.StringIO()
    printer = Printer(Console(file=written, _environ={}), ["a"])
    printer.line("a", "\x1b[31mred\x1b[0m " + "x" * 300)
    assert written.getvalue() == f"a | red {'x' * 300}\n"
