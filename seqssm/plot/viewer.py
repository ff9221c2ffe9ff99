"""Interactive HTML pages in one file, without external resources: common head and style, and the body of a template."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqssm.files.disk import atomic

HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>@@TITLE@@</title>
<style>
:root { color-scheme: light dark; --text: #1c1c1c; --back: #fff; --line: #999 }
@media (prefers-color-scheme: dark) { :root { --text: #ddd; --back: #17181a; --line: #555 } }
* { box-sizing: border-box }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1rem auto; max-width: 76rem; padding: 0 1rem; color: var(--text);
  background: var(--back); overflow-wrap: anywhere }
h1 { font-size: 1.25rem; margin: 0 } p { margin: .3rem 0 }
.controls { display: flex; flex-wrap: wrap; gap: .5rem 1.1rem; align-items: center; margin: .6rem 0 }
select, button, input { font: inherit; max-width: 100% }
"""


def write_viewer(
    path: Path, template: Path, title: str, subtitle: str, data: Mapping[str, Any], parts: Mapping[str, str]
) -> Path:
    """Fill a template and write the page.

    Args:
        path: the HTML file.
        template: style of the page (continues that of the head), body and script. Names between ``@@`` are replaced.
        title: title of the page, plain text (``TITLE``).
        subtitle: line under the title, plain text (``SUBTITLE``).
        data: plain Python values without NaN, given to the script as JSON (``DATA``).
        parts: HTML of the other names.
    """
    # JSON that cannot end the script element around it
    script = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    values = {"TITLE": html.escape(title), "SUBTITLE": html.escape(subtitle), "DATA": script, **parts}
    pieces = (HEAD + template.read_text(encoding="utf-8")).split("@@")  # text, name, text, name, ...
    with atomic(path, "w") as file:
        file.write("".join(values[piece] if place % 2 else piece for place, piece in enumerate(pieces)))
    return path
