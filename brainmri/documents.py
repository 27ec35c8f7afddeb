"""Measured tables in Markdown pages: whoever measures writes them between a pair of markers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from brainmri.errors import DataError


def write_tables(page: Path | str, tables: Mapping[str, str]) -> None:
    """Put each table between ``<!-- NAME -->`` and ``<!-- /NAME -->`` of a page.

    Raises
    ------
    DataError
        The page or one of the markers is missing.
    """
    page = Path(page)
    if not page.is_file():
        raise DataError(f"{page}: no such page; expected one with the markers <!-- {next(iter(tables))} -->")
    text = page.read_text("utf-8")
    for name, table in tables.items():
        pattern = re.compile(rf"<!-- {re.escape(name)} -->\n.*?<!-- /{re.escape(name)} -->", re.S)
        if not pattern.search(text):
            raise DataError(f"{page}: no markers <!-- {name} --> and <!-- /{name} -->")
        before, after = pattern.split(text, maxsplit=1)
        text = f"{before}<!-- {name} -->\n\n{table}\n\n<!-- /{name} -->{after}"
    page.write_text(text, "utf-8")
