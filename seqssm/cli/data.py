"""``seqssm data list`` and ``seqssm data get NAME``."""

from __future__ import annotations

import sys
import time

from seqssm.cli.options import Parser
from seqssm.errors import InputError, nearest
from seqssm.files import datasets

HELP = """usage: seqssm data list [NAME...]
       seqssm data get NAME [--accept-unverified]

list  list the public data sets of all domains: address, size, licence, hash, origin, and path on this machine
get   download one into the cache and verify its hash; nothing is downloaded otherwise

Data sets are searched in the folders of $SEQSSM_DATA, laid out as <domain>/<path>, then in the cache.
example: seqssm data get etth1"""


def data(argv: list[str]) -> int:
    """``seqssm data ...``."""
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return 0
    if argv[0] == "list":
        return show(argv[1:])
    if argv[0] == "get":
        return get(argv[1:])
    raise InputError(f"data: unknown command {argv[0]}{nearest(argv[0], ['list', 'get'])} (see seqssm data --help)")


def show(argv: list[str]) -> int:
    """``seqssm data list``."""
    parser = Parser("seqssm data list", "List the public data sets.", "seqssm data list")
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets to list (default: all)")
    names = parser.parse(argv).names or list(datasets.registry())
    for name in names:
        domain, one = datasets.look_up(name)
        here = datasets.search(domain.name, one.path)
        print(f"{name}  ({domain.name})  {one.title}")
        print(
            f"  address  {one.url or 'none: available from the owner on request only'}"
            + (f" : {one.member}" if one.member else "")
        )
        print(f"  size     {size(one.size)}")
        print(f"  licence  {one.licence}")
        print(f"  sha256   {one.sha256 or 'unverified: no hash has been computed'}")
        print(f"  origin   {one.found}")
        print(f"  here     {here or ('no' if one.url is None else f'no: seqssm data get {name}')}\n")
    print(f"cache: {datasets.cache_folder()}")
    return 0


def get(argv: list[str]) -> int:
    """``seqssm data get NAME``."""
    parser = Parser("seqssm data get", "Download a public data set into the cache.", "seqssm data get etth1")
    parser.add_argument("name", metavar="NAME", help="name shown by `seqssm data list`")
    parser.add_argument("--accept-unverified", action="store_true", help="accept a file whose hash is unknown")
    options = parser.parse(argv)
    progress = Progress()
    path = datasets.get(options.name, accept_unverified=options.accept_unverified, progress=progress.show)
    progress.end()
    print(path)
    return 0


def size(count: int | None) -> str:
    """Format a number of bytes."""
    if count is None:
        return "unknown"
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.1f} {unit}" if isinstance(count, float) else f"{count} {unit}"
        count = count / 1000  # type: ignore[assignment]
    raise AssertionError("not reached")


class Progress:
    """Download progress: one updated line on a terminal, a line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self.terminal, self.shown, self.begun = sys.stderr.isatty(), time.monotonic(), False

    def show(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self.shown < (0.2 if self.terminal else 10):
            return
        self.shown, self.begun = now, True
        text = f"fetched {size(done)}" + (f" of {size(total)}" if total else "")
        print(f"\r{text}   " if self.terminal else text, end="" if self.terminal else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.begun and self.terminal:
            print(file=sys.stderr)
