"""WFDB headers (`.hea`) in the variants found in public data sets: record line, signal lines, comments.

Reading a header checks its structure only. Fields that a recording needs (rate, gain, format, ...) are checked on use;
an uncalibrated respiration channel, or labels without signals, are not errors.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from seqssm.errors import InputError
from seqssm_ecg.formats import FORMATS
from seqssm_ecg.limits import RATES

LARGEST = 1 << 20  # bytes; headers have a few kilobytes, anything larger is another kind of file
UNITS = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "v": 1e3, "nv": 1e-6}  # millivolts per unit
DEFAULT_GAIN, DEFAULT_RATE_HZ = 200.0, 250.0  # WFDB's defaults, header(5); used only on request
_FORMAT = re.compile(r"(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?$")
_GAIN = re.compile(r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)(?:\(([-+]?\d+)\))?(?:/(\S+))?$")
_COMMENT = re.compile(r"#\s*([A-Za-z]+)\s*:(.*)$")


@dataclass(frozen=True)
class Signal:
    """A signal line.

    Attributes:
        file: name of the signal file, in the header's folder.
        format: format code as written, usually a key of `seqssm_ecg.formats.FORMATS`.
        per_frame: samples per frame.
        skew: lag of the signal, frames.
        offset: byte offset of the first sample in the file.
        gain: ADC units per physical unit; 0 or None if uncalibrated.
        baseline: ADC value of 0 physical units.
        unit: physical unit as written; ``"mV"`` if absent.
        first: value of the first sample, the start value of difference formats.
        checksum: 16-bit sum of the samples, or None.
        name: name of the lead as written; ``""`` if absent.
        line: line number, from 1.
        problem: description of a malformed field, or None; an error only if the signal is used.
    """

    file: str
    format: str
    per_frame: int
    skew: int
    offset: int
    gain: float | None
    baseline: int
    unit: str
    first: int
    checksum: int | None
    name: str
    line: int
    problem: str | None = None

    @property
    def place(self) -> str:
        """Location for error messages."""
        return f"line {self.line}" + (f", signal {self.name}" if self.name else "")

    def checked(self, header: Path, defaults: bool = False) -> Signal:
        """Validate the signal for use.

        Args:
            header: path of the header, for error messages.
            defaults: whether to assume WFDB's default gain for an uncalibrated signal.

        Raises:
            InputError: a field is malformed, the file is outside the folder, or the signal is not calibrated.
        """
        if self.problem:
            raise InputError(self.problem, file=header, place=self.place)
        check_file_name(self, header)
        if self.format not in FORMATS:
            raise InputError(
                f"the signal format {self.format} is not a WFDB format ({', '.join(FORMATS)})",
                file=header,
                place=self.place,
            )
        if self.unit.casefold() not in UNITS:
            raise InputError(f"unit {self.unit!r}: expected mV, uV or V", file=header, place=self.place)
        if self.gain:
            return self
        if not defaults:
            what = "no gain" if self.gain is None else "gain is 0"
            raise InputError(
                f"{what}: fix the header, or use WFDB's default of {DEFAULT_GAIN:g} per mV "
                "(predict --wfdb-defaults, fit --data.wfdb_defaults true)",
                file=header,
                place=self.place,
            )
        return replace(self, gain=DEFAULT_GAIN)


@dataclass(frozen=True)
class Header:
    """A parsed header.

    Attributes:
        path: path of the `.hea` file.
        rate: frame rate as written; ``""`` if absent.
        samples: number of frames, or None if not given.
        signals: signals in the order of the file; empty for a multi-segment record.
        segments: list of (record name, frames) of each segment; empty for a single-segment record. ``"~"`` is a gap.
        age: age in years, or None.
        sex: ``"male"``, ``"female"`` or None.
        codes: diagnosis codes of the Dx line, or None without such a line.
        comments: comment lines ``#name: text`` by lower-case name.
    """

    path: Path
    rate: str
    samples: int | None
    signals: list[Signal]
    segments: list[tuple[str, int]] = field(default_factory=list)
    age: float | None = None
    sex: str | None = None
    codes: list[str] | None = None
    comments: dict[str, str] = field(default_factory=dict)

    def rate_hz(self, defaults: bool = False) -> float:
        """Return the frame rate, hertz.

        Args:
            defaults: whether to assume WFDB's default for a missing rate.

        Raises:
            InputError: the rate is missing, not a number or implausible.
        """
        place = "line 1"
        text = re.split(r"[/(]", self.rate)[0]
        try:
            rate = float(text or 0)
        except ValueError:
            raise InputError(f"sampling rate {self.rate[:30]!r} is not a number", file=self.path, place=place) from None
        if rate == 0 and defaults:
            return DEFAULT_RATE_HZ
        if rate == 0:
            what = "sampling rate is 0" if text else "no sampling rate"
            raise InputError(
                f"{what}: fix the header, or use WFDB's default of {DEFAULT_RATE_HZ:g} Hz "
                "(predict --wfdb-defaults, fit --data.wfdb_defaults true)",
                file=self.path,
                place=place,
            )
        if not 0 < rate <= RATES[1]:
            raise InputError(
                f"sampling rate {self.rate[:30]} Hz is not between {RATES[0]:g} and {RATES[1]:g} Hz",
                file=self.path,
                place=place,
            )
        return rate


def read_header(path: Path) -> Header:
    """Read a `.hea` file.

    Also accepted: a byte-order mark, a record name ending in `.mat` (early Georgia), the date before the time, ``#
    Dx:`` with a space, and gains written as ``1000/mV``, ``1000.0(0)/mV`` or ``2000``.

    Raises:
        InputError: the file is not a header, or its structure is invalid.
    """
    lines = _lines(path)
    body = [(n, line) for n, line in lines if line and not line.startswith("#")]
    if not body:
        raise InputError("is empty", file=path)
    comments = _comments(lines)
    segments, count, rate, samples = _record_line(path, *body[0])
    if len(body) - 1 < count:
        raise InputError(f"declares {count} signals but describes {len(body) - 1}", file=path, place="line 1")
    if len(body) - 1 > count:
        number = body[count + 1][0]
        raise InputError(f"declares {count} signals but describes more", file=path, place=f"line {number}")
    return Header(
        path,
        rate,
        samples,
        [] if segments else [_signal_line(path, n, line) for n, line in body[1:]],
        [_segment_line(path, n, line) for n, line in body[1:]] if segments else [],
        parse_age(comments.get("age", "")),
        parse_sex(comments.get("sex", "")),
        split_codes(comments["dx"]) if "dx" in comments else None,
        comments,
    )


def read_codes(path: Path) -> list[str] | None:
    """Read the diagnosis codes of a header, even if its signal lines are malformed; None without a Dx line.

    Raises:
        InputError: the file is not a header.
    """
    comments = _comments(_lines(path))
    return split_codes(comments["dx"]) if "dx" in comments else None


def split_codes(text: str) -> list[str]:
    """Split a Dx line at commas and semicolons, dropping blanks, empty entries and duplicates."""
    return list(dict.fromkeys(part.strip() for part in re.split("[,;]", text) if part.strip()))


def parse_age(text: str) -> float | None:
    """Parse an age in years; None for NaN, Unknown or an empty string. PTB-XL's 300 (older than 89) becomes 90."""
    try:
        age = float(text)
    except ValueError:
        return None
    if not math.isfinite(age) or age < 0:
        return None
    return 90.0 if age == 300 else age


def parse_sex(text: str) -> str | None:
    """Map Male, Female, M, F or Unknown, in any case, to ``"male"``, ``"female"`` or None."""
    return {"m": "male", "male": "male", "f": "female", "female": "female"}.get(text.strip().casefold())


def check_file_name(signal: Signal, header: Path) -> None:
    """Raise InputError unless the signal file is a plain name in the header's folder: no path, no URL, no pipe."""
    name = signal.file
    if not is_plain_name(name):
        raise InputError(
            f"signal file {name[:60]!r} is not in the folder of the header; paths and URLs are not followed",
            file=header,
            place=signal.place,
        )


def is_plain_name(name: str) -> bool:
    """Return whether a name refers to a file in the header's own folder."""
    return (
        Path(name).name == name
        and name not in (".", "..", "-", "~")
        and not any(part in name for part in ("\\", "\0", "::"))
    )


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return (number, stripped text) of each line."""
    return [(n, line.strip()) for n, line in enumerate(_text(path).splitlines(), 1)]


def _comments(lines: list[tuple[int, str]]) -> dict[str, str]:
    comments: dict[str, str] = {}
    for _, line in lines:
        match = _COMMENT.match(line)
        if match:
            comments.setdefault(match[1].casefold(), match[2].strip())
    return comments


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise InputError(f"is not a WFDB header: size is {size} bytes", file=path)
        content = path.read_bytes()
    except FileNotFoundError:
        named = path.with_suffix("")
        if named.suffix and named.is_file():
            words = f"its suffix is of no known format, and there is no {path.name}; a table of samples is named .csv"
            raise InputError(words, file=named) from None
        raise InputError("no such header", file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    if b"\0" in content:
        raise InputError("is not a WFDB header: contains binary data", file=path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _record_line(path: Path, number: int, line: str) -> tuple[int, int, str, int | None]:
    """Parse the record line into (segments or 0, number of following lines, sampling rate as written, frames or None).

    Time and date may follow in either order and are ignored.
    """
    place = f"line {number}"
    words = line.split()
    if len(words) < 2:
        raise InputError("is not a WFDB header: expected `name signals rate samples`", file=path, place=place)
    _, slash, several = words[0].partition("/")
    segments = _whole(several, path, place, "number of segments") if slash else 0
    count = _whole(words[1], path, place, "number of signals")
    if count < 1 or (slash and segments < 1):
        raise InputError("has no signals", file=path, place=place)
    samples = None
    if len(words) > 3 and ":" not in words[3] and "/" not in words[3]:
        samples = _whole(words[3], path, place, "number of samples") or None
    return segments, segments or count, words[2] if len(words) > 2 else "", samples


def _segment_line(path: Path, number: int, line: str) -> tuple[str, int]:
    place = f"line {number}"
    words = line.split()
    if len(words) < 2:
        raise InputError("segment line: expected a record name and a number of samples", file=path, place=place)
    name, frames = words[0], _whole(words[1], path, place, "number of samples")
    if name != "~" and not is_plain_name(name):
        raise InputError(
            f"segment {name[:60]!r} is not in the folder of the header; paths and URLs are not followed",
            file=path,
            place=place,
        )
    if frames < 0:
        raise InputError(f"number of samples {frames} is negative", file=path, place=place)
    return name, frames


def _signal_line(path: Path, number: int, line: str) -> Signal:
    """Parse a signal line; a malformed field is recorded in `Signal.problem`."""
    words = line.split(None, 8)
    name = words[8].strip() if len(words) > 8 else ""
    layout = ("", 1, 0, 0)  # format, samples per frame, skew, offset
    try:
        layout = _layout(path, number, words)  # unused signals need it too: they are interleaved in the same file
        gain, baseline, unit, first, checksum = _scale(path, number, words)
    except InputError as error:
        return Signal(words[0], *layout, None, 0, "mV", 0, None, name, number, error.message)
    return Signal(words[0], *layout, gain, baseline, unit, first, checksum, name, number)


def _layout(path: Path, number: int, words: list[str]) -> tuple[str, int, int, int]:
    """Parse (format, samples per frame, skew, offset)."""
    place = f"line {number}"
    if len(words) < 2:
        raise InputError("signal line: expected at least a file and a format", file=path, place=place)
    match = _FORMAT.match(words[1])
    if match is None:
        raise InputError(f"unknown WFDB format {words[1][:30]!r}", file=path, place=place)
    kind, per_frame, skew, offset = match.groups()
    return kind, max(1, int(per_frame or 1)), int(skew or 0), int(offset or 0)


def _scale(path: Path, number: int, words: list[str]) -> tuple[float | None, int, str, int, int | None]:
    """Parse (gain, baseline, unit, first value, checksum)."""
    place = f"line {number}"
    gain, baseline, unit = _gain(words[2], path, place) if len(words) > 2 else (None, None, "mV")
    adc_zero = _whole(words[4], path, place, "ADC zero") if len(words) > 4 else 0
    first = _whole(words[5], path, place, "initial value") if len(words) > 5 else adc_zero
    checksum = _whole(words[6], path, place, "checksum") & 0xFFFF if len(words) > 6 else None
    return gain, adc_zero if baseline is None else baseline, unit, first, checksum


def _gain(word: str, path: Path, place: str) -> tuple[float, int | None, str]:
    """Parse (ADC units per physical unit, baseline in parentheses or None, unit)."""
    match = _GAIN.match(word)
    try:
        gain = float(match[1]) if match else math.nan
    except ValueError:
        gain = math.nan
    if match is None or not math.isfinite(gain):
        raise InputError(f"gain {word[:30]!r} is not a number; expected e.g. 1000/mV", file=path, place=place)
    return gain, None if match[2] is None else int(match[2]), match[3] or "mV"


def _whole(word: str, path: Path, place: str, what: str) -> int:
    if not re.fullmatch(r"[-+]?\d{1,18}", word, re.ASCII):
        raise InputError(f"{what} {word[:30]!r} is not an integer", file=path, place=place)
    return int(word)
