"""Sections of the demo of a domain, and the HTML page made from them."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from seqssm.files.disk import atomic
from seqssm.metrics.report import number

if TYPE_CHECKING:
    import pandas as pd

READABLE, WIDEST = 0.6, 800  # scale at which the text of a figure is still readable; pixels

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 3rem; border-bottom: 1px solid #ccc }
table { border-collapse: collapse; margin: 1rem 0; font-size: .9rem } caption { text-align: left; font-weight: 600 }
th, td { padding: .2rem .8rem .2rem 0; text-align: right } th:first-child, td:first-child { text-align: left }
tbody tr:nth-child(odd) { background: #f5f5f5 } .wide { overflow-x: auto; margin: 1rem 0 }
.wide img { display: block; max-width: 100%; height: auto } code { font-size: .9em }
@media (prefers-color-scheme: dark) {
  body { background: #181818; color: #ddd } tbody tr:nth-child(odd) { background: #242424 } img { background: #fff }
}
""".strip()


@dataclass
class Section:
    """A section of the demo page.

    Attributes:
        title: its heading.
        text: what was done and what to look for; blank lines separate paragraphs, backticks enclose code.
        tables: (title, frame) pairs.
        figures: image files (PNG), in order.
    """

    title: str
    text: str
    tables: list[tuple[str, pd.DataFrame]] = field(default_factory=list)
    figures: list[Path] = field(default_factory=list)


def read_test_table(run_folder: Path, start: str) -> pd.DataFrame:
    """Return one of the tables that `test` wrote for a run.

    Args:
        run_folder: folder of the run.
        start: start of the table's title, which one table has.

    Raises:
        LookupError: no table, or several, with such a title.
    """
    import pandas as pd

    report = json.loads((run_folder / "metrics.json").read_text(encoding="utf-8"))["test"]
    found = [one["rows"] for one in report["tables"] if one["title"].startswith(start)]
    if len(found) != 1:
        titles = ", ".join(one["title"] for one in report["tables"])
        raise LookupError(f"{run_folder}: {len(found)} tables whose title starts with {start!r} among {titles}")
    return pd.DataFrame(found[0])


def write_page(path: Path, title: str, lead: str, sciences: list[tuple[str, list[Section]]]) -> None:
    """Write the page as a single file with embedded images and no external resources.

    Args:
        path: the HTML file.
        title: its heading.
        lead: a sentence under it.
        sciences: (heading, sections) of each domain.
    """
    body = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(lead)}</p>"]
    for heading, sections in sciences:
        body.append(f"<h2>{html.escape(heading)}</h2>")
        for section in sections:
            body.append(f"<h3>{html.escape(section.title)}</h3>")
            body += [f"<p>{prose(part.strip())}</p>" for part in section.text.split("\n\n") if part.strip()]
            body += [table(caption, frame) for caption, frame in section.tables]
            body += [image(figure) for figure in section.figures]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    with atomic(path, "w") as file:
        file.write(f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n' + "\n".join(body))
        file.write("\n</body>\n</html>\n")


def prose(paragraph: str) -> str:
    """Escape a paragraph; text between backticks becomes code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(paragraph))


def table(caption: str, frame: pd.DataFrame) -> str:
    """Format a frame as an HTML table."""

    def row(cells: list, tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(text(cell))}</{tag}>" for cell in cells) + "</tr>"

    rows = "\n".join(row(list(values), "td") for values in frame.itertuples(index=False))
    return (
        f'<div class="wide"><table><caption>{html.escape(caption)}</caption>\n'
        f"<thead>{row(list(frame.columns), 'th')}</thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def text(value: object) -> str:
    """Format a cell; empty if there is no value."""
    if isinstance(value, float):
        return "" if math.isnan(value) else number(value)
    return "" if value is None else str(value)


def image(figure: Path) -> str:
    """Embed a PNG; on a narrow screen it scrolls sideways instead of shrinking until its text is unreadable."""
    content = figure.read_bytes()
    width = int.from_bytes(content[16:20], "big")  # of the PNG header
    alt, source = html.escape(figure.stem.replace("_", " ")), base64.b64encode(content).decode()
    style = f"min-width: {min(int(READABLE * width), WIDEST)}px"
    return f'<div class="wide"><img alt="{alt}" style="{style}" src="data:image/png;base64,{source}"></div>'
