"""Registry of public data sets: search on this machine, and download on request.

A data set of a domain is searched at ``root``, in ``$SEQSSM_DATA/<domain>/<path>`` (several folders, separated as in
``PATH``), then in the user's cache, plain or gzipped. Nothing is downloaded unless `get` is called.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import IO

from seqssm.domain import DataSet, Domain, domains
from seqssm.environment import DATA
from seqssm.errors import InputError, nearest, require_type
from seqssm.files.content import DAMAGED
from seqssm.files.disk import atomic, writing
from seqssm.files.lock import Lock

CHUNK = 1 << 20  # bytes per read
SECONDS = 60  # timeout of a server


def registry() -> dict[str, tuple[Domain, DataSet]]:
    """List the data sets of all installed domains, by name."""
    return {data.name: (domain, data) for domain in domains().values() for data in domain.data_sets}


def look_up(name: str) -> tuple[Domain, DataSet]:
    """Return the data set `name` and its domain.

    Raises:
        InputError: no such data set; the message suggests the most similar name.
    """
    known = registry()
    if name not in known:
        raise InputError(f"no data set {name}{nearest(name, known)} (seqssm data list shows them)")
    return known[name]


def cache_folder() -> Path:
    """Return the user's cache: ``$XDG_CACHE_HOME/seqssm``, else the platform's cache folder."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"], "seqssm")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "seqssm"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"), "seqssm")
    return Path.home() / ".cache" / "seqssm"


def folders(domain: str, root: str | Path | None = None) -> list[Path]:
    """List the folders in which a domain's data sets are searched, in order."""
    if root is not None:
        return [Path(root), Path(root, domain)]
    given = [Path(place, domain) for place in os.environ.get(DATA, "").split(os.pathsep) if place]
    return [*given, cache_folder() / domain]


def search(domain: str, path: str, root: str | Path | None = None) -> Path | None:
    """Find the file (or folder) `path` of a domain, plain or gzipped; None if it is not found."""
    names = [path, path.removesuffix(".gz") if path.endswith(".gz") else path + ".gz"]
    for folder in folders(domain, root):
        for name in names:
            if (folder / name).exists():
                return folder / name
    return None


def find_data_set(domain: str, path: str, root: str | Path | None = None) -> Path:
    """Return the file of a domain's data set.

    Args:
        domain: name of the domain.
        path: path of the file relative to the domain's folder.
        root: folder to search instead of the default ones (``--data.root``).

    Raises:
        InputError: the file is not found; the message has the command to download it, or its origin.
    """
    found = search(domain, path, root)
    if found is not None:
        return found
    known = next((data for own, data in registry().values() if own.name == domain and data.path == path), None)
    hint = "not a file of a registered data set"
    if known is not None and known.url is None:
        hint = f"`seqssm data list {known.name}` shows its origin"
    elif known is not None:
        hint = f"run `seqssm data get {known.name}`"
    where = ", ".join(str(folder) for folder in folders(domain, root))
    raise InputError(f"not found in {where}; {hint}", file=path)


def find(name: str, root: str | Path | None = None) -> Path:
    """Return the file of the data set `name`: ``seqssm.find("etth1")``. Errors as in `locate`."""
    if name is None:
        raise InputError("name: expected the name of a data set")
    require_type("name", name, str, "the name of a data set")
    require_type("root", root, (str, Path), "a folder")
    domain, data = look_up(name)
    return find_data_set(domain.name, data.path, root)


def get(
    name: str, *, accept_unverified: bool = False, progress: Callable[[int, int | None], None] | None = None
) -> Path:
    """Download a data set into the user's cache, unless it is already on this machine.

    Args:
        name: name in the registry.
        accept_unverified: whether to accept a data set without a hash in the registry.
        progress: called with (bytes received, total bytes or None).

    Returns:
        Its path, which exists only once the file is complete and, if the registry has a hash, verified.

    Raises:
        InputError: no such data set, no address, no connection, a hash mismatch, or a full disk.
    """
    domain, data = look_up(name)
    here = search(domain.name, data.path)
    if here is not None:
        if data.sha256 is not None and here.is_file() and plain_hash(here) != data.sha256:
            raise InputError(
                f"SHA-256 differs from the registry; remove the file and run `seqssm data get {name}` again", file=here
            )
        return here
    target = cache_folder() / domain.name / data.path
    if data.url is None:
        raise InputError(f"{name} cannot be downloaded: {data.found}; place it at {target}")
    if data.sha256 is None and not accept_unverified:
        raise InputError(
            f"{name} is unverified: the hash of {data.url} is unknown; pass --accept-unverified to accept it"
        )
    with Lock(target.parent):
        part = target.with_name(f".{target.name}.download")
        resumed = download(data.url, part, progress)
        try:
            unpack(part, target, data)
        except DamagedError as error:
            part.unlink()
            if not resumed:
                raise InputError(str(error), file=data.url) from None
            download(data.url, part, progress)  # the resumed part belonged to another version of the file
            try:
                unpack(part, target, data)
            except DamagedError as again:
                part.unlink()
                raise InputError(str(again), file=data.url) from None
        part.unlink()
    return target


class DamagedError(Exception):
    """The downloaded file does not match the registry."""


def download(url: str, part: Path, progress: Callable[[int, int | None], None] | None = None) -> bool:
    """Download `url` to `part`, resuming an earlier attempt if the server still has the same file.

    Returns:
        Whether an earlier attempt was resumed.

    Raises:
        InputError: no connection, a server error, a broken transfer, or a full disk.
    """
    notes = part.with_name(part.name + ".json")
    done, validator = 0, None
    with suppress(OSError, ValueError):
        kept = json.loads(notes.read_text(encoding="utf-8"))
        if kept["url"] == url and kept["validator"]:
            done, validator = part.stat().st_size, kept["validator"]
    request = urllib.request.Request(url, headers={"User-Agent": "seqssm"})
    if done and validator:
        request.add_header("Range", f"bytes={done}-")
        request.add_header("If-Range", validator)
    with reaching(url):
        try:
            answer = urllib.request.urlopen(request, timeout=SECONDS)
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise
            part.unlink()  # longer than the server's file: start again
            notes.unlink()
            return download(url, part, progress)
    with answer:
        if getattr(answer, "status", None) != 206:
            done = 0
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length and length.isdigit() else None
        etag = answer.headers.get("ETag")
        validator = etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified")
        with atomic(notes, "w") as file:
            json.dump({"url": url, "validator": validator}, file)
        resumed = done > 0
        with writing(part):
            file = open(part, "ab" if done else "wb")  # noqa: SIM115 - closed below
        with file:
            while True:
                with reaching(url):
                    block = answer.read(CHUNK)
                if not block:
                    break
                with writing(part):
                    file.write(block)
                done += len(block)
                if progress is not None:
                    progress(done, total)
            with writing(part):
                file.flush()
                os.fsync(file.fileno())
    if total is not None and done < total:
        raise InputError(f"transfer interrupted at {done} of {total} bytes; repeat the command to resume", file=url)
    notes.unlink()
    return resumed


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Translate network errors into one-line messages."""
    try:
        yield
    except urllib.error.HTTPError as error:
        raise InputError(f"server returned {error.code} {error.reason}", file=url) from None
    except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"cannot be reached ({reason}); check the network connection", file=url) from None


def unpack(part: Path, target: Path, data: DataSet) -> None:
    """Make the data set's file from the download: extracted, decompressed and verified.

    Raises:
        DamagedError: not a readable archive, no such member, or a wrong size or hash.
    """
    if data.size is not None and part.stat().st_size != data.size:
        raise DamagedError(f"size is {part.stat().st_size} bytes, expected {data.size}")
    try:
        with opened(part, target, data) as source, atomic(target) as file:
            shutil.copyfileobj(source, file, CHUNK)
            file.flush()
            if data.sha256 is not None:
                found = plain_hash(Path(file.name))
                if found != data.sha256:
                    raise DamagedError(f"SHA-256 is {found}, expected {data.sha256}")
    except KeyError:
        raise DamagedError(f"archive has no member {data.member}") from None
    except InputError:  # of the disk
        raise
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # no number: bzip2; EINVAL: a directory in front of the file
            raise
        raise DamagedError("archive is truncated or corrupt") from None
    except DAMAGED:
        raise DamagedError("archive is truncated or corrupt") from None


@contextmanager
def opened(part: Path, target: Path, data: DataSet) -> Iterator[IO[bytes]]:
    """Open the download as the bytes of the target."""
    if data.member is not None:
        with zipfile.ZipFile(part) as archive, archive.open(data.member) as source:
            yield source
    elif is_gzip(part) and target.suffix != ".gz":
        with gzip.open(part) as source:
            yield source  # type: ignore[misc]
    else:
        with open(part, "rb") as source:
            yield source


def is_gzip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def plain_hash(path: Path) -> str:
    """Compute the SHA-256 of a file's uncompressed content."""
    with gzip.open(path) if is_gzip(path) else open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
