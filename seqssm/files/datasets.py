"""Public data sets: which there are, where they lie on this machine, and fetching one when it is asked for.

A data set of a domain is looked for at ``root``, in ``$SEQSSM_DATA/<domain>/<path>`` (several folders, separated as in
``PATH``), then in the user's cache; plain or gzipped. Nothing is downloaded unless `get` is called.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import IO

from seqssm.domain import DataSet, Domain, domains
from seqssm.environment import DATA
from seqssm.errors import InputError, nearest
from seqssm.files.disk import atomic, writing
from seqssm.files.lock import Lock

CHUNK = 1 << 20  # bytes read at a time
SECONDS = 60  # without an answer, after which a server counts as not there


def registry() -> dict[str, tuple[Domain, DataSet]]:
    """Every data set of every installed domain, by name."""
    return {data.name: (domain, data) for domain in domains().values() for data in domain.data_sets}


def look_up(name: str) -> tuple[Domain, DataSet]:
    """The data set `name` and its domain.

    Raises:
        InputError: there is none; the nearest name is given.
    """
    known = registry()
    if name not in known:
        raise InputError(f"no data set {name}{nearest(name, known)} (seqssm data list shows all)")
    return known[name]


def cache_folder() -> Path:
    """The user's cache: ``$XDG_CACHE_HOME/seqssm``, else the platform's place for caches."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"], "seqssm")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "seqssm"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"), "seqssm")
    return Path.home() / ".cache" / "seqssm"


def folders(domain: str, root: str | Path | None = None) -> list[Path]:
    """The folders in which a domain's data sets are looked for, in this order."""
    if root is not None:
        return [Path(root), Path(root, domain)]
    given = [Path(place, domain) for place in os.environ.get(DATA, "").split(os.pathsep) if place]
    return [*given, cache_folder() / domain]


def search(domain: str, path: str, root: str | Path | None = None) -> Path | None:
    """The file (or folder) `path` of a domain, plain or gzipped; None when it is nowhere."""
    names = [path, path.removesuffix(".gz") if path.endswith(".gz") else path + ".gz"]
    for folder in folders(domain, root):
        for name in names:
            if (folder / name).exists():
                return folder / name
    return None


def locate(domain: str, path: str, root: str | Path | None = None) -> Path:
    """The file of a domain's data set.

    Args:
        domain: name of the domain.
        path: place of the file under the domain's folder.
        root: folder to look in instead of the usual places (``--data.root``).

    Raises:
        InputError: it is nowhere; the message gives the command that fetches it or says where it comes from.
    """
    found = search(domain, path, root)
    if found is not None:
        return found
    known = next((data for own, data in registry().values() if own.name == domain and data.path == path), None)
    hint = "no data set of the registry has it"
    if known is not None and known.url is None:
        hint = f"`seqssm data list {known.name}` says where it comes from"
    elif known is not None:
        hint = f"`seqssm data get {known.name}` fetches it"
    where = ", ".join(str(folder) for folder in folders(domain, root))
    raise InputError(f"not found in {where}; {hint}", file=path)


def find(name: str, root: str | Path | None = None) -> Path:
    """The file of the data set `name`: ``seqssm.find("etth1")``. Errors as in `locate`."""
    domain, data = look_up(name)
    return locate(domain.name, data.path, root)


def get(
    name: str, *, accept_unverified: bool = False, progress: Callable[[int, int | None], None] | None = None
) -> Path:
    """Fetches a data set into the user's cache, unless it is on this machine already.

    Args:
        name: of the registry.
        accept_unverified: take it although the registry has no hash of it.
        progress: called with (bytes here, bytes in all or None).

    Returns:
        Where it lies. It is there only when complete and, where the registry has a hash, verified.

    Raises:
        InputError: no such data set, no address, no connection, a wrong hash, a full disk.
    """
    domain, data = look_up(name)
    here = search(domain.name, data.path)
    if here is not None:
        if data.sha256 is not None and here.is_file() and plain_hash(here) != data.sha256:
            raise InputError(f"is not the file of the registry (another SHA-256): remove it, and get {name}", file=here)
        return here
    target = cache_folder() / domain.name / data.path
    if data.url is None:
        raise InputError(f"{name} cannot be fetched: {data.found}; put it at {target}")
    if data.sha256 is None and not accept_unverified:
        raise InputError(
            f"{name} is unverified: no hash of {data.url} is known; --accept-unverified takes it as it comes"
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
            download(data.url, part, progress)  # the first half was of another file: all of it again
            try:
                unpack(part, target, data)
            except DamagedError as again:
                part.unlink()
                raise InputError(str(again), file=data.url) from None
        part.unlink()
    return target


class DamagedError(Exception):
    """What came is not what the registry describes."""


def download(url: str, part: Path, progress: Callable[[int, int | None], None] | None = None) -> bool:
    """Fetches `url` to `part`; goes on where an earlier try ended when the server still has the same file.

    Returns:
        Whether the beginning is an earlier try's.

    Raises:
        InputError: no connection, an error of the server, a broken transfer, a full disk.
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
            part.unlink()  # longer than the server's file: begin again
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
        raise InputError(f"the transfer broke off at {done} of {total} bytes; the same command goes on", file=url)
    notes.unlink()
    return resumed


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turns what a network can do to us into one line."""
    try:
        yield
    except urllib.error.HTTPError as error:
        raise InputError(f"the server answers {error.code} {error.reason}", file=url) from None
    except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"cannot be reached ({reason}); is this machine offline?", file=url) from None


def unpack(part: Path, target: Path, data: DataSet) -> None:
    """Makes the data set's file of what came: out of its archive, unzipped, verified.

    Raises:
        DamagedError: no such archive, no such member, a wrong size or hash.
    """
    if data.size is not None and part.stat().st_size != data.size:
        raise DamagedError(f"{part.stat().st_size} bytes came, the registry says {data.size}")
    try:
        with opened(part, target, data) as source, atomic(target) as file:
            shutil.copyfileobj(source, file, CHUNK)
            file.flush()
            if data.sha256 is not None:
                found = plain_hash(Path(file.name))
                if found != data.sha256:
                    raise DamagedError(f"SHA-256 is {found}, the registry says {data.sha256}")
    except KeyError:
        raise DamagedError(f"the archive has no {data.member}") from None
    except (zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error):
        raise DamagedError("archive is truncated or corrupt") from None


@contextmanager
def opened(part: Path, target: Path, data: DataSet) -> Iterator[IO[bytes]]:
    """What came, as the bytes that the target holds."""
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
    """SHA-256 of a file's content, uncompressed."""
    with gzip.open(path) if is_gzip(path) else open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
