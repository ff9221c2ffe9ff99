"""`data list` and `data get` against a local server; the search order of data sets."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import os
import threading
import zipfile
from pathlib import Path

import pytest

import seqssm
from seqssm.cli.main import main
from seqssm.domain import DataSet
from seqssm.files import datasets

CONTENT = b"date,OT\n" + b"".join(b"%d,%d\n" % (n, n * n) for n in range(5000))
HASH = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; supports ranges and breaks off after some bytes if the server is set to do so."""

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        self.server.asked.append(self.headers.get("Range"))
        if not path.is_file():
            self.send_error(404)
            return
        content, tag = path.read_bytes(), f'"{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"'
        start = 0
        wanted = self.headers.get("Range")
        if wanted and self.server.ranges and self.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", tag)
        self.end_headers()
        end = len(content) if self.server.breaks is None else self.server.breaks
        self.wfile.write(content[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.ranges, running.breaks, running.asked = True, None, []
        running.folder, running.url = tmp_path / "served", f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def listed(toy, monkeypatch):
    """Put one data set into the toy's registry."""

    def put(**fields):
        fields = {"path": "sub/numbers.csv", "url": None, "licence": "CC0", "found": "made here", **fields}
        domain = dataclasses.replace(toy, data_sets=(DataSet(name="numbers", title="Numbers", **fields),))
        monkeypatch.setattr("seqssm_toy.DOMAIN", domain)

    return put


def cached() -> Path:
    return datasets.cache_folder() / "toy" / "sub" / "numbers.csv"


def leftovers() -> list[str]:
    return sorted(path.name for path in cached().parent.iterdir() if path != cached())


def test_sets_that_cannot_be_fetched_are_not_offered(listed, capsys):
    listed(url=None)
    with pytest.raises(seqssm.InputError, match="`seqssm data list numbers` shows its origin"):
        seqssm.find("numbers")
    assert main(["data", "list", "numbers"]) == 0
    assert "data get" not in capsys.readouterr().out


def test_get_fetches_verifies_and_is_found(listed, server, capsys):
    (server.folder / "n.csv").write_bytes(CONTENT)
    listed(url=f"{server.url}/n.csv", sha256=HASH, size=len(CONTENT))
    with pytest.raises(seqssm.InputError, match="run `seqssm data get numbers`"):
        seqssm.find("numbers")
    assert server.asked == [], "nothing is fetched without `data get`"
    assert main(["data", "get", "numbers"]) == 0
    assert capsys.readouterr().out.strip() == str(cached())
    assert seqssm.find("numbers").read_bytes() == CONTENT
    assert leftovers() == []
    assert main(["data", "get", "numbers"]) == 0
    assert len(server.asked) == 1, "present files are not fetched again"
    assert main(["data", "list"]) == 0
    page = capsys.readouterr().out
    for word in (server.url, HASH, "CC0", "made here", str(cached())):
        assert word in page


def test_an_unverified_set_needs_consent(listed, server, capsys):
    (server.folder / "n.csv").write_bytes(CONTENT)
    listed(url=f"{server.url}/n.csv")
    assert main(["data", "list", "numbers"]) == 0
    assert "unverified" in capsys.readouterr().out
    assert main(["data", "get", "numbers"]) == 2
    assert "--accept-unverified" in capsys.readouterr().err
    assert server.asked == []
    assert main(["data", "get", "numbers", "--accept-unverified"]) == 0
    assert cached().read_bytes() == CONTENT


def test_a_wrong_hash_or_size_leaves_nothing(listed, server, capsys):
    (server.folder / "n.csv").write_bytes(CONTENT + b"more")
    listed(url=f"{server.url}/n.csv", sha256=HASH)
    assert main(["data", "get", "numbers"]) == 2
    assert "SHA-256 is" in capsys.readouterr().err
    listed(url=f"{server.url}/n.csv", sha256=HASH, size=len(CONTENT))
    assert main(["data", "get", "numbers"]) == 2
    assert f"expected {len(CONTENT)}" in capsys.readouterr().err
    assert not datasets.cache_folder().exists()


def test_an_interrupted_transfer_is_resumed(listed, server, capsys):
    (server.folder / "n.csv").write_bytes(CONTENT)
    listed(url=f"{server.url}/n.csv", sha256=HASH)
    server.breaks = 20_000
    assert main(["data", "get", "numbers"]) == 2
    message = capsys.readouterr().err
    assert "interrupted at 20000 of" in message or "cannot be reached" in message
    assert not cached().exists()
    server.breaks = None
    assert main(["data", "get", "numbers"]) == 0
    assert server.asked == [None, "bytes=20000-"]
    assert cached().read_bytes() == CONTENT
    assert leftovers() == []


@pytest.mark.parametrize("ranges", [True, False])
def test_a_transfer_of_a_changed_file_is_restarted(listed, server, ranges):
    (server.folder / "n.csv").write_bytes(b"x" * 30_000)
    listed(url=f"{server.url}/n.csv", sha256=HASH)
    server.breaks, server.ranges = 20_000, ranges
    assert main(["data", "get", "numbers"]) == 2
    (server.folder / "n.csv").write_bytes(CONTENT)
    server.breaks = None
    assert main(["data", "get", "numbers"]) == 0
    assert cached().read_bytes() == CONTENT


def test_a_member_of_an_archive(listed, server, capsys):
    box = io.BytesIO()
    with zipfile.ZipFile(box, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("all/n.csv", CONTENT)
    (server.folder / "n.zip").write_bytes(box.getvalue())
    listed(url=f"{server.url}/n.zip", sha256=HASH, member="all/m.csv")
    assert main(["data", "get", "numbers"]) == 2
    assert "archive has no member all/m.csv" in capsys.readouterr().err
    listed(url=f"{server.url}/n.zip", sha256=HASH, member="all/n.csv")
    assert main(["data", "get", "numbers"]) == 0
    assert cached().read_bytes() == CONTENT
    cached().unlink()
    (server.folder / "n.zip").write_bytes(box.getvalue()[:-50])
    assert main(["data", "get", "numbers"]) == 2
    assert "archive is truncated or corrupt" in capsys.readouterr().err


def test_a_gzipped_file_is_unpacked_unless_the_layout_has_it_gzipped(listed, server):
    (server.folder / "n.csv.gz").write_bytes(gzip.compress(CONTENT))
    listed(url=f"{server.url}/n.csv.gz", sha256=HASH)
    assert main(["data", "get", "numbers"]) == 0
    assert cached().read_bytes() == CONTENT
    cached().unlink()
    listed(url=f"{server.url}/n.csv.gz", sha256=HASH, path="sub/numbers.csv.gz")
    assert main(["data", "get", "numbers"]) == 0
    assert gzip.decompress(seqssm.find("numbers").read_bytes()) == CONTENT
    assert datasets.plain_hash(seqssm.find("numbers")) == HASH


def test_errors_are_one_line(listed, server, capsys):
    listed(url=f"{server.url}/missing.csv", sha256=HASH)
    assert main(["data", "get", "numbers"]) == 2
    assert "server returned 404" in capsys.readouterr().err
    listed(url="http://127.0.0.1:9/n.csv", sha256=HASH)
    assert main(["data", "get", "numbers"]) == 2
    message = capsys.readouterr().err.strip()
    assert "check the network connection" in message
    assert len(message.splitlines()) == 1
    listed(found="ask the owner")
    assert main(["data", "get", "numbers"]) == 2
    assert f"ask the owner; place it at {cached()}" in capsys.readouterr().err
    assert main(["data", "get", "nubmers"]) == 2
    assert "did you mean numbers?" in capsys.readouterr().err


def test_file_urls_are_accepted(listed, tmp_path):
    (tmp_path / "n.csv").write_bytes(CONTENT)
    listed(url=(tmp_path / "n.csv").as_uri(), sha256=HASH)
    assert main(["data", "get", "numbers"]) == 0
    assert cached().read_bytes() == CONTENT


def test_a_changed_local_file_is_reported(listed, capsys):
    listed(url="http://127.0.0.1:9/n.csv", sha256=HASH)
    cached().parent.mkdir(parents=True)
    cached().write_bytes(CONTENT[:-1])
    assert main(["data", "get", "numbers"]) == 2
    assert "SHA-256 differs from the registry" in capsys.readouterr().err


def test_search_order_plain_or_gzipped(listed, tmp_path, monkeypatch):
    listed()
    places = [tmp_path / name for name in ("root", "one", "two")]
    targets = [places[0] / "sub", places[1] / "toy" / "sub", places[2] / "toy" / "sub", cached().parent]
    for folder in targets:
        folder.mkdir(parents=True)
    monkeypatch.setenv("SEQSSM_DATA", os.pathsep.join(map(str, places[1:])))
    (targets[3] / "numbers.csv").write_bytes(b"cache")
    assert datasets.find_data_set("toy", "sub/numbers.csv") == targets[3] / "numbers.csv"
    (targets[2] / "numbers.csv.gz").write_bytes(b"two")
    assert datasets.find_data_set("toy", "sub/numbers.csv") == targets[2] / "numbers.csv.gz"
    (targets[1] / "numbers.csv").write_bytes(b"one")
    assert seqssm.find("numbers") == targets[1] / "numbers.csv"
    with pytest.raises(seqssm.InputError, match=r"sub/numbers\.csv: not found in .*root"):
        datasets.find_data_set("toy", "sub/numbers.csv", root=places[0])
    (targets[0] / "numbers.csv").write_bytes(b"root")
    assert datasets.find_data_set("toy", "sub/numbers.csv", root=places[0]) == targets[0] / "numbers.csv"
