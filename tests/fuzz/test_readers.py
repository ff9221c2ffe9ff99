"""A damaged file is read or gives an `InputError`, nothing else. `make fuzz` runs 10,000 cases per reader."""

from __future__ import annotations

import os
import signal
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqssm.errors import InputError

from .readers import READERS

CASES = int(os.environ.get("SEQSSM_FUZZ", "20"))
SECONDS = 20  # for one file of a few hundred bytes


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """A valid file after a few edits: cut, overwritten, inserted, repeated or swapped pieces, or other bytes."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=400))
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 40)))
        kind = draw(st.sampled_from(("cut", "end", "flip", "insert", "twice", "word")))
        if kind == "cut":
            del data[start:end]
        elif kind == "end":
            del data[start:]
        elif kind == "flip" and start < len(data):
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            data[start:start] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "twice":
            data[start:start] = data[start:end]
        else:
            data[start:end] = draw(st.sampled_from(WORDS))
    return bytes(data)


WORDS = (
    b"nan", b"-inf", b"1e400", b"99999999999999999999", b"-1", b"0", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n",
    b"\r", b"\n\n", b'"', b'""', b",", b"\t", b">", b"@", b"../../x", b"%s", "\u00e4\u2028".encode(), b" ", b"=1+1",
)  # fmt: skip


def out_of_time(*_: object) -> None:
    raise TimeoutError(f"no answer within {SECONDS} s")


@pytest.mark.parametrize("name", READERS)
def test_the_valid_file_is_read(name, tmp_path):
    reader = READERS[name]
    for other, content in (*reader.beside, (reader.name, reader.content)):
        (tmp_path / other).write_bytes(content)
    if name == "checkpoint":  # names a class that does not exist, which is detected later
        assert "seqssm" in reader.read(tmp_path / reader.name)
    else:
        assert reader.read(tmp_path / reader.name) is not None


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused(name, tmp_path):
    reader = READERS[name]
    for other, content in reader.beside:
        (tmp_path / other).write_bytes(content)
    path = tmp_path / reader.name
    path.write_bytes(reader.content)
    reader.read(path)  # imports its packages, which may take longer than a file
    signal.signal(signal.SIGALRM, out_of_time)

    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        derandomize=CASES <= 20,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=damaged(reader.content))
    def check(data: bytes) -> None:
        message = ""
        path.write_bytes(data)
        signal.alarm(SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader.read(path)
        except InputError as error:
            message = str(error)
        finally:
            signal.alarm(0)
        assert "\n" not in message
        assert len(message) < 1000

    check()
