"""Tables in Markdown, and the places in a page that hold them."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.common.errors import UserError, require

_START, _END = re.compile(r"\s*<!--\s*table:\s*(.*?)\s*-->\s*"), re.compile(r"\s*<!--\s*end of table\s*-->\s*")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


class Block(NamedTuple):
    """A place for a table: two lines of a page, ``<!-- table: NAME -->`` and ``<!-- end of table -->``.

    Attributes:
      name: of the table.
      first: number of its first line, from 1.
      last: number of its last line.
      content: the lines between them.
    """

    name: str
    first: int
    last: int
    content: tuple[str, ...]


def blocks(text: str, page: str) -> list[Block]:
    """The places for tables in the text of a page, in order.

    Raises:
      UserError: if a place has no end, or no beginning.
    """
    lines, found = text.split("\n"), []
    marks = [(number, line) for number, line in enumerate(lines, 1) if _START.fullmatch(line) or _END.fullmatch(line)]
    pairs = itertools.zip_longest(marks[::2], marks[1::2], fillvalue=(len(lines), "the end of the page"))
    for (first, line), (last, end) in pairs:
        start = _START.fullmatch(line)
        if start is None:
            raise UserError(f"{page}, line {first}: expected <!-- table: NAME --> before it, got {line}")
        expected = f"expected <!-- end of table --> after table {start[1]!r}"
        require(_END.fullmatch(end) is not None, f"{page}, line {first}: {expected}, got {end} in line {last}")
        found.append(Block(start[1], first, last, tuple(lines[first : last - 1])))
    return found


def filled(text: str, contents: Mapping[Block, Sequence[str]]) -> str:
    """The text of a page with other lines in its places for tables."""
    lines = text.split("\n")
    for block in sorted(contents, key=lambda block: -block.first):
        lines[block.first : block.last - 1] = contents[block]
    return "\n".join(lines)
