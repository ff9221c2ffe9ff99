"""HTML pages without external resources: the demo's, and the report of a run."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from seqssm.files.disk import atomic
from seqssm.metrics.report import number

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

READABLE, WIDEST = 0.6, 800  # scale at which the text of a figure is still readable; pixels
THUMBNAIL = 640  # width of a card's figure, pixels

STYLE = """
:root { color-scheme: light dark; --text: #1c1c1c; --soft: #5a5a5a; --back: #fff; --band: #f3f4f6; --line: #d0d3d8;
  --link: #1f5fa8 }
@media (prefers-color-scheme: dark) { :root { --text: #ddd; --soft: #a2a7ae; --back: #17181a; --band: #222428;
  --line: #3a3d42; --link: #86b7f0 } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: var(--text);
  background: var(--back); overflow-wrap: break-word }
a { color: var(--link) } h1, h2, h3 { line-height: 1.2 } h1 { margin-bottom: .3rem }
h2 { margin-top: 3rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line) } .lead { color: var(--soft) }
nav ul { padding-left: 1.2rem; columns: 16rem; column-gap: 2.5rem } nav li { break-inside: avoid }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 1rem;
  margin: 1.5rem 0 }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem; background: var(--band) }
.card h2 { margin: 0 0 .5rem; border: 0; font-size: 1.05rem; padding: 0 }
.card p { margin: .5rem 0 0; font-size: .9rem }
.card img { width: 100%; height: 11rem; object-fit: contain; background: #fff; border-radius: .3rem; display: block }
figure { margin: 1.5rem 0 } figcaption { font-weight: 600; font-size: .9rem } figure .wide { margin: .3rem 0 }
table { border-collapse: collapse; font-size: .9rem }
th, td { padding: .25rem .9rem .25rem .2rem; text-align: right; vertical-align: top; white-space: nowrap }
th { border-bottom: 1px solid var(--line) }
th.text, td.text { text-align: left } td.text { white-space: normal; min-width: 5rem; max-width: 32rem }
tbody tr:nth-child(odd) { background: var(--band) } .wide { overflow-x: auto; margin: 1rem 0 }
.wide img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: .3rem }
code, pre { font-size: .85em } code { background: var(--band); padding: .1em .25em; border-radius: .2rem }
pre { overflow-x: auto; background: var(--band); padding: .8rem; border-radius: .4rem } pre code { padding: 0 }
summary { cursor: pointer; margin: .5rem 0 }
""".strip()


@dataclass(frozen=True)
class Picture:
    """A figure that is not a file.

    Attributes:
        content: the PNG file's content.
        alt: alternative text.
    """

    content: bytes
    alt: str


@dataclass
class Section:
    """A section of a page.

    Attributes:
        title: its heading; ``""`` for none.
        text: what was done and what to look for; blank lines separate paragraphs, backticks enclose code, lines that
            start with ``- `` form a list.
        tables: (title, frame) pairs.
        figures: image files (PNG) or pictures, in order.
        code: commands or a configuration, shown as they are.
        folded: whether tables and code are hidden until the reader opens them.
        headline: the result in one sentence, for the card of the chapter on the page.
    """

    title: str
    text: str = ""
    tables: list[tuple[str, pd.DataFrame]] = field(default_factory=list)
    figures: Sequence[Path | Picture] = field(default_factory=list)
    code: str = ""
    folded: bool = False
    headline: str = ""


@dataclass
class Chapter:
    """A chapter of a page: a science of the demo, or a part of a report.

    Attributes:
        title: its heading.
        sections: its sections.
        units: units of table columns by name, which are added to their headings.
    """

    title: str
    sections: list[Section]
    units: Mapping[str, str] = field(default_factory=dict)

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower()).strip("-") or "chapter"


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


def write_page(path: Path, title: str, lead: str, chapters: Sequence[Chapter], cards: bool = False) -> None:
    """Write the page as a single file with embedded images and no external resources.

    Args:
        path: the HTML file.
        title: its heading.
        lead: a sentence under it.
        chapters: the chapters; a contents list links to them.
        cards: whether each chapter with a headline or a figure has a card with them under the contents list.
    """
    body = [f"<h1>{html.escape(title)}</h1>", f'<p class="lead">{prose(lead)}</p>']
    if chapters:
        items = (f'<li><a href="#{one.anchor}">{html.escape(one.title)}</a></li>' for one in chapters)
        body.append(f'<nav aria-label="Contents"><ul>{"".join(items)}</ul></nav>')
    if cards:
        shown = (one for one in chapters if any(section.headline or section.figures for section in one.sections))
        body.append(f'<div class="cards">{"".join(map(card, shown))}</div>')
    body.append("<main>")
    for chapter in chapters:
        body.append(f'<h2 id="{chapter.anchor}">{html.escape(chapter.title)}</h2>')
        body += [block for section in chapter.sections for block in blocks(section, chapter.units)]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    with atomic(path, "w") as file:
        file.write(f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n' + "\n".join(body))
        file.write("\n</main>\n</body>\n</html>\n")


def card(chapter: Chapter) -> str:
    """Format the card of a chapter: its title, first figure and headline."""
    figures = [figure for section in chapter.sections for figure in section.figures]
    picture = ""
    if figures:
        content, alt = load(figures[0])
        picture = f'<img alt="{html.escape(alt)}" src="{source(thumbnail(content))}">'
    first = next((section.headline for section in chapter.sections if section.headline), "")
    title = f'<h2><a href="#{chapter.anchor}">{html.escape(chapter.title)}</a></h2>'
    return f'<div class="card">{title}{picture}{f"<p>{prose(first)}</p>" if first else ""}</div>'


def blocks(section: Section, units: Mapping[str, str]) -> list[str]:
    """Format a section: heading, paragraphs, tables, code, figures."""
    found = [f"<h3>{html.escape(section.title)}</h3>"] if section.title else []
    found += [paragraph(part.strip()) for part in section.text.split("\n\n") if part.strip()]
    hidden = [table(caption, frame, units) for caption, frame in section.tables]
    if section.code:
        hidden.append(f'<pre tabindex="0"><code>{html.escape(section.code)}</code></pre>')
    if section.folded and hidden:
        hidden = [f"<details><summary>{html.escape(section.title)}: show</summary>", *hidden, "</details>"]
    return [*found, *hidden, *(image(figure) for figure in section.figures)]


def paragraph(text: str) -> str:
    """Format a paragraph, or a list if each of its lines starts with ``- ``."""
    lines = text.splitlines()
    if all(line.startswith("- ") for line in lines):
        return f"<ul>{''.join(f'<li>{prose(line[2:])}</li>' for line in lines)}</ul>"
    return f"<p>{prose(text)}</p>"


def prose(text: str) -> str:
    """Escape a text; what stands between backticks becomes code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def table(caption: str, frame: pd.DataFrame, units: Mapping[str, str] | None = None) -> str:
    """Format a frame as an HTML table; columns of text are aligned left.

    Args:
        caption: its title.
        frame: the rows.
        units: units of columns by name.
    """
    texts = [any(isinstance(value, str) and not numeric(value) for value in frame[name]) for name in frame.columns]
    texts = [words or place == 0 for place, words in enumerate(texts)]
    units = units or {}
    names = [f"{name} ({units[name]})" if units.get(name) else str(name) for name in frame.columns]

    def row(cells: Sequence[object], tag: str, scope: str = "") -> str:
        kinds = (' class="text"' if words else "" for words in texts)
        found = (f"<{tag}{scope}{kind}>{html.escape(text(cell))}</{tag}>" for cell, kind in zip(cells, kinds))
        return f"<tr>{''.join(found)}</tr>"

    head = row(names, "th", ' scope="col"')
    rows = "\n".join(row(values, "td") for values in frame.itertuples(index=False, name=None))
    title = html.escape(caption)
    return (
        f'<figure><figcaption>{title}</figcaption>\n<div class="wide" tabindex="0"><table aria-label="{title}">\n'
        f"<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody></table></div></figure>"
    )


def numeric(value: str) -> bool:
    """Whether a text is a number, an interval or empty, and belongs to the right."""
    return re.fullmatch(r"[\d\s.,%+–-]*", value) is not None


def text(value: object) -> str:
    """Format a cell; empty if there is no value."""
    if isinstance(value, float):
        return "" if math.isnan(value) else number(value)
    return "" if value is None else str(value)


def picture(figure: Figure, alt: str = "") -> Picture:
    """Render a figure; the alternative text is its description by default.

    Args:
        figure: of matplotlib.
        alt: alternative text.
    """
    from seqssm.plot.canvas import describe, write_png

    file = io.BytesIO()
    write_png(figure, file)
    return Picture(file.getvalue(), alt or describe(figure) or "figure")


def load(figure: Path | Picture) -> tuple[bytes, str]:
    """Return the content of a PNG and its alternative text: the description in the file, else its name."""
    if isinstance(figure, Picture):
        return figure.content, figure.alt
    from PIL import Image

    content = figure.read_bytes()
    with Image.open(io.BytesIO(content)) as opened:
        opened.load()  # text may follow the pixels
        described = str(getattr(opened, "text", {}).get("Description", ""))
    return content, described or figure.stem.replace("_", " ")


def thumbnail(content: bytes) -> bytes:
    """Shrink a PNG to the size of a card."""
    from PIL import Image

    file = io.BytesIO()
    with Image.open(io.BytesIO(content)) as opened:
        small = opened.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(file, "PNG", optimize=True)
    return file.getvalue()


def source(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def image(figure: Path | Picture) -> str:
    """Embed a PNG; on a narrow screen it scrolls sideways instead of shrinking until its text is unreadable."""
    content, alt = load(figure)
    width = int.from_bytes(content[16:20], "big")  # of the PNG header
    style = f"min-width: {min(int(READABLE * width), WIDEST)}px"
    return (
        f'<div class="wide" tabindex="0"><img alt="{html.escape(alt)}" style="{style}" src="{source(content)}"></div>'
    )
