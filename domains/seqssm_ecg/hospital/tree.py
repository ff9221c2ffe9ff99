"""XML files as trees without namespaces. Entities are not expanded and nothing outside the file is read."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from seqssm.errors import InputError

LARGEST = 1 << 28  # bytes; an hour of twelve leads as decimal text has about 80 million
DEEPEST = 100  # nested elements; the formats have fewer than 20


def read_tree(path: Path) -> Element:
    """Parse a file; names of elements and attributes lose their prefix: ``hl7:value`` becomes ``value``.

    Raises:
        InputError: the file is not well-formed, too large, or declares entities.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise InputError(f"is too large for an ECG in XML ({size} bytes)", file=path)
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
    builder, depth = TreeBuilder(), 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise InputError("has too deeply nested elements", file=path, place=f"line {parser.CurrentLineNumber}")
        builder.start(_local(name), {_local(key): value for key, value in attributes.items()})

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(_local(name))

    def refuse(*_: object) -> None:
        raise InputError(
            "declares entities, which are not expanded", file=path, place=f"line {parser.CurrentLineNumber}"
        )

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, builder.data
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(content, True)
        return builder.close()
    except InputError:
        raise
    except expat.ExpatError as error:
        raise InputError(
            f"is truncated or corrupt XML ({expat.ErrorString(error.code)})", file=path, place=f"line {error.lineno}"
        ) from None
    except (ValueError, LookupError, AssertionError):  # unknown encodings, invalid characters in them
        raise InputError("is corrupt XML, or has an unknown encoding", file=path) from None


def _local(name: str) -> str:
    return name.rpartition(":")[2]


def text_of(element: Element | None, path: str) -> str:
    """Return the stripped text of the first element at `path` below `element`; ``""`` if there is none."""
    found = None if element is None else element.find(path)
    return (found.text or "").strip() if found is not None else ""


def value_of(element: Element | None, path: str, name: str = "value") -> str:
    """Return an attribute of the first element at `path` below `element`; ``""`` if there is none."""
    found = None if element is None else element.find(path)
    return found.get(name, "").strip() if found is not None else ""
