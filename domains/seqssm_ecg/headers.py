"""WFDB headers (`.hea`), with the spellings that real folders hold: a record line, a line a signal, comments."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from seqssm.errors import InputError

LARGEST = 1 << 20  # bytes; a header has a few kilobytes, anything larger is another kind of file
FORMATS = {"16": 2, "61": 2, "160": 2, "212": 1.5, "24": 3, "32": 4, "80": 1}  # bytes a sample
RATES = (50.0, 10_000.0)  # Hz; outside, a header is taken for damaged
UNITS = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "v": 1e3, "nv": 1e-6}  # millivolts a unit
_FORMAT = re.compile(r"(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?$")
_GAIN = re.compile(r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)(?:\(([-+]?\d+)\))?(?:/(\S+))?$")
_COMMENT = re.compile(r"#\s*([A-Za-z]+)\s*:(.*)$")


@dataclass(frozen=True)
class Signal:
    """A signal line.

    Attributes:
        file: name of its signal file, in the header's folder.
        format: a key of `FORMATS`.
        offset: bytes before the first sample of the file.
        gain: ADC units a physical unit, or None where the line gives none.
        baseline: ADC value of 0.
        unit: as written; "mV" where none is.
        checksum: 16-bit sum of the samples, or None.
        name: of the lead, as written; "" where none is.
        line: number of the line, from 1.
    """

    file: str
    format: str
    offset: int
    gain: float | None
    baseline: int
    unit: str
    checksum: int | None
    name: str
    line: int


@dataclass(frozen=True)
class Header:
    """A parsed header.

    Attributes:
        path: of the `.hea` file.
        rate_hz: sampling rate.
        samples: samples a signal, or None where the header gives none.
        signals: in the order of the file.
        age: years, or None.
        sex: "male", "female" or None.
        codes: of the Dx line, without blanks, empty entries and repetitions; None where there is no such line.
    """

    path: Path
    rate_hz: float
    samples: int | None
    signals: list[Signal]
    age: float | None = None
    sex: str | None = None
    codes: list[str] | None = None
    comments: dict[str, str] = field(default_factory=dict)


def read_header(path: Path) -> Header:
    """Reads a `.hea` file.

    Read as well: a record name with `.mat` behind it (early Georgia), the date before the time, `# Dx:` with a space,
    gains as `1000/mV`, `1000.0(0)/mV`, `2000`.

    Raises:
        InputError: it is no header, or a field in it cannot be right.
    """
    text = _text(path)
    lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1)]
    body = [(n, line) for n, line in lines if line and not line.startswith("#")]
    if not body:
        raise InputError("is empty", file=path)
    count, rate, samples = _record_line(path, *body[0])
    if len(body) - 1 < count:
        raise InputError(f"announces {count} signals and describes {len(body) - 1}", file=path, place="line 1")
    if len(body) - 1 > count:
        number = body[count + 1][0]
        raise InputError(f"announces {count} signals, and describes more", file=path, place=f"line {number}")
    signals = [_signal_line(path, n, line) for n, line in body[1:]]
    comments: dict[str, str] = {}
    for _, line in lines:
        match = _COMMENT.match(line)
        if match:
            comments.setdefault(match[1].casefold(), match[2].strip())
    return Header(
        path,
        rate,
        samples,
        signals,
        parse_age(comments.get("age", "")),
        parse_sex(comments.get("sex", "")),
        split_codes(comments["dx"]) if "dx" in comments else None,
        comments,
    )


def split_codes(text: str) -> list[str]:
    """The codes of a Dx line: parted by commas, blanks stripped, empty entries and repetitions dropped."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def parse_age(text: str) -> float | None:
    """Years; None for NaN, Unknown or nothing. PTB-XL's 300 (older than 89) becomes 90."""
    try:
        age = float(text)
    except ValueError:
        return None
    if not math.isfinite(age) or age < 0:
        return None
    return 90.0 if age == 300 else age


def parse_sex(text: str) -> str | None:
    """ "male", "female" or None, from Male, Female, M, F, Unknown in any case."""
    return {"m": "male", "male": "male", "f": "female", "female": "female"}.get(text.strip().casefold())


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise InputError(f"is no WFDB header: it has {size} bytes", file=path)
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError("no such header", file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
    if b"\0" in content:
        raise InputError("is no WFDB header: it holds binary data", file=path)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _record_line(path: Path, number: int, line: str) -> tuple[int, float, int | None]:
    """(signals, sampling rate in Hz, samples or None). Time and date follow, in either order; they are not read."""
    place = f"line {number}"
    words = line.split()
    if len(words) < 2:
        raise InputError("is no WFDB header: `name signals rate samples` was expected", file=path, place=place)
    if "/" in words[0]:
        raise InputError("is a record of several segments, which is not read", file=path, place=place)
    count = _whole(words[1], path, place, "number of signals")
    if count < 1:
        raise InputError("has no signals", file=path, place=place)
    if len(words) < 3:
        raise InputError("gives no sampling rate", file=path, place=place)
    try:
        rate = float(re.split(r"[/(]", words[2])[0])
    except ValueError:
        raise InputError(f"the sampling rate {words[2][:30]!r} is not a number", file=path, place=place) from None
    if not RATES[0] <= rate <= RATES[1]:
        raise InputError(
            f"the sampling rate {words[2][:30]} is not between {RATES[0]:g} and {RATES[1]:g} Hz", file=path, place=place
        )
    samples = None
    if len(words) > 3 and ":" not in words[3]:
        samples = _whole(words[3], path, place, "number of samples") or None
    return count, rate, samples


def _signal_line(path: Path, number: int, line: str) -> Signal:
    place = f"line {number}"
    words = line.split(None, 8)
    if len(words) < 2:
        raise InputError("a signal line has at least a file and a format", file=path, place=place)
    name = words[0]
    if Path(name).name != name or name in (".", "..") or "\\" in name:
        raise InputError(f"the signal file {name[:60]!r} is not in the header's folder", file=path, place=place)
    match = _FORMAT.match(words[1])
    if match is None:
        raise InputError(f"the format {words[1][:30]!r} is not one of WFDB", file=path, place=place)
    kind, per_frame, skew, offset = match.groups()
    if kind not in FORMATS:
        raise InputError(f"the signal format {kind} is not read (only {', '.join(FORMATS)})", file=path, place=place)
    if int(per_frame or 1) != 1 or int(skew or 0) != 0:
        raise InputError("several samples a frame, or a skew, are not read", file=path, place=place)
    gain, baseline, unit = None, None, "mV"
    if len(words) > 2:
        gain, baseline, unit = _gain(words[2], path, place)
    adc_zero = _whole(words[4], path, place, "ADC zero") if len(words) > 4 else 0
    checksum = _whole(words[6], path, place, "checksum") & 0xFFFF if len(words) > 6 else None
    return Signal(
        name,
        kind,
        int(offset or 0),
        gain,
        adc_zero if baseline is None else baseline,
        unit,
        checksum,
        words[8].strip() if len(words) > 8 else "",
        number,
    )


def _gain(word: str, path: Path, place: str) -> tuple[float, int | None, str]:
    """(ADC units a unit, baseline in brackets or None, unit)."""
    match = _GAIN.match(word)
    try:
        gain = float(match[1]) if match else math.nan
    except ValueError:
        gain = math.nan
    if match is None or not math.isfinite(gain):
        raise InputError(f"the gain {word[:30]!r} is not a number, as in 1000/mV", file=path, place=place)
    if gain == 0:
        raise InputError("the gain is 0: this signal is not calibrated", file=path, place=place)
    return gain, None if match[2] is None else int(match[2]), match[3] or "mV"


def _whole(word: str, path: Path, place: str, what: str) -> int:
    if not re.fullmatch(r"[-+]?\d{1,18}", word, re.ASCII):
        raise InputError(f"the {what} {word[:30]!r} is not a whole number", file=path, place=place)
    return int(word)
