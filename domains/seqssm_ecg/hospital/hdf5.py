"""HDF5: one recording per table (leads x samples or transposed), per group of leads, or per row of a 3-D array.

| layout | recordings |
| --- | --- |
| a table of numbers with one axis of leads | one, named by its path in the file |
| a group with one series per lead, named by the leads | one, named by the path of the group |
| an array (records, samples, leads) or (records, leads, samples) | one per record, named by an array of ids in its \
group (as in CODE-15%) or by its index |

Sampling rate, lead names and unit are attributes of the array, of its group or of the file, or datasets in its group:
one value, or one per lead; otherwise the options for arrays apply. Integers are converted as in WFDB, (x - baseline) /
adc_gain, or as in netCDF, x * scale_factor + add_offset. Attributes whose meaning no convention defines (``gain``,
``scale``, ``offset``, ...) are errors, unless they change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from seqssm.errors import InputError
from seqssm_ecg.arrays import Layout
from seqssm_ecg.formats import BLOCK
from seqssm_ecg.headers import parse_age, parse_sex
from seqssm_ecg.hospital.common import factor_of, known, number, readable, required
from seqssm_ecg.leads import canonical
from seqssm_ecg.recording import Reading, Recording

SUFFIXES = (".h5", ".hdf5")
IDS = ("exam_id", "ecg_id", "record_id", "id", "ids", "record")
RATES = ("rate_hz", "sampling_rate", "sampling_rate_hz", "sampling_frequency", "sample_rate", "frequency", "fs")
NAMES = ("leads", "lead_names", "sig_name", "channels", "channel_names", "lead_order")
UNIT = ("unit", "units")
ADC_GAIN, ADC_ZERO = ("adc_gain",), ("baseline", "adc_zero")  # of WFDB
FACTOR, OFFSET = ("scale_factor",), ("add_offset",)  # of netCDF and CF
GAINS = ("gain", "gains", "scale", "scaling", "resolution", "lsb")  # multiplied by some programs, divided by others
ZEROS = ("offset", "offsets", "baseline", "baselines", "adc_zero", "zero")
MOST_LEADS = 64  # maximum length of the shorter axis of a table of signals
MOST_DATASETS = 100_000


@dataclass(frozen=True)
class Entry:
    """A recording in a file.

    Attributes:
        name: name within the file; ``""`` if it is the only one.
        dataset: path of the array, or of the group of leads.
        row: index of the record in a 3-D array, or None.
    """

    name: str
    dataset: str
    row: int | None = None


@dataclass(frozen=True)
class Hdf5Source:
    """Samples of a recording, read in blocks.

    Attributes:
        path: the file.
        entry: the recording.
        layout: rows, orientation and factor of its leads.
        keys: names of the series in a group of leads, in the order of `layout.rows`; empty for an array.
        scale: factor and summand of each stored lead, (leads, 2), before the unit's factor; None for none.
        span: first and last sample without the zeros that pad a record of a 3-D array.
    """

    path: Path
    entry: Entry
    layout: Layout
    keys: tuple[str, ...]
    span: tuple[int, int]
    scale: np.ndarray | None = None

    def blocks(self, size: int = BLOCK) -> Iterator[np.ndarray]:
        """Yield (leads, n) float32 in mV; non-finite values become NaN."""
        h5py = required("h5py", self.path)
        for start in range(*self.span, size):
            part = slice(start, min(start + size, self.span[1]))
            with readable(self.path, "HDF5"), h5py.File(self.path, "r") as file:
                block = self._read(file[self.entry.dataset], part)
            yield block

    def _read(self, node: Any, part: slice) -> np.ndarray:
        rows = list(self.layout.rows)
        if self.keys:
            table = np.stack([node[self.keys[row]][part] for row in rows])
        else:
            index = () if self.entry.row is None else (self.entry.row,)
            table = node[(*index, part, slice(None))].T if self.layout.turned else node[(*index, slice(None), part)]
            table = table[rows]
        block = known(np.asarray(table))
        if self.scale is not None:
            factors, summands = self.scale[rows].T
            block = block * factors[:, None] + summands[:, None]
        with np.errstate(over="ignore"):
            block = (block * self.layout.factor).astype(np.float32)
        return np.where(np.isfinite(block), block, np.float32(np.nan))


def entries(path: Path) -> list[str]:
    """List the names of the recordings in a file, ``[""]`` for a single one.

    Raises:
        InputError: the file is corrupt, or contains no recording.
    """
    h5py = required("h5py", path)
    with readable(path, "HDF5"), h5py.File(path, "r") as file:
        return [entry.name for entry in _entries(file, path)]


def open_hdf5(path: Path, reading: Reading) -> Recording:
    """Open a recording of an HDF5 file.

    Args:
        path: the file, or a recording in it: ``exams.hdf5/17``.
        reading: options; `lead_map` and, for values that the file does not specify, `array` are used.

    Raises:
        InputError: the file is corrupt, has no such recording, or rate, leads or unit are missing.
    """
    h5py = required("h5py", path)
    file_path = next((one for one in (path, *path.parents) if one.suffix.lower() in SUFFIXES and one.is_file()), path)
    wanted = path.relative_to(file_path).as_posix() if file_path != path else ""
    with readable(file_path, "HDF5"), h5py.File(file_path, "r") as file:
        entry = _find(file, wanted, path)
        node = file[entry.dataset]
        keys = () if hasattr(node, "shape") else tuple(name for name in node if canonical(name, reading.lead_map))
        lengths = sorted({len(node[key]) for key in keys})
        if len(lengths) > 1:
            raise InputError(f"leads differ in length ({lengths[0]} to {lengths[-1]} samples)", file=path)
        shape = (len(keys), lengths[0]) if keys else node.shape[-2:]
        nodes = [node[key] for key in keys] or [node]
        spec, scale = reading.array, _scale(nodes, shape, path)
        rate, unit = _common(nodes, RATES, shape, path), _common(nodes, UNIT, shape, path)
        if rate is not None:
            spec = replace(
                spec, rate_hz=number(re.sub(r"\s*hz$", "", rate, flags=re.IGNORECASE), path, "sampling rate")
            )
        if unit is None and scale is not None and any(_described(one, ADC_GAIN, shape) is not None for one in nodes):
            unit = "mV"  # the default of WFDB
        if unit is not None:
            factor_of(unit, path, "unit")
            spec = replace(spec, unit=unit)
        names = keys or _lead_names(node, shape)
        spec = spec if names is None else replace(spec, leads=None)
        layout = Layout.of(shape, names, reading.lead_map, spec, path)
        span = (0, layout.samples) if entry.row is None else _unpadded(node, entry.row, layout)
        age, sex = _described(node, ("age",)), _described(node, ("sex", "gender"))
    notes = list(layout.notes)
    if span != (0, layout.samples):
        notes.append(f"zero padding removed: {(layout.samples - span[1] + span[0]) / layout.rate_hz:.3g} s")
    source = Hdf5Source(file_path, entry, layout, keys, span, scale)
    return Recording(
        path,
        layout.rate_hz,
        span[1] - span[0],
        layout.leads,
        source,
        age=None if age is None else parse_age(_text(age)),
        sex=None if sex is None else parse_sex(_text(sex)),
        notes=notes,
    )


def _entries(file: Any, path: Path) -> list[Entry]:
    found: list[Entry] = []
    groups: dict[str, int] = {}

    def visit(name: str, node: Any) -> None:
        if not hasattr(node, "shape") or node.dtype.kind not in "fiu":
            return
        if len(groups) + len(found) > MOST_DATASETS:
            raise InputError("has too many arrays", file=path)
        sides = sorted(node.shape[-2:])
        if node.ndim == 1 and canonical(name.rpartition("/")[2]) is not None:
            group = name.rpartition("/")[0] or "/"
            groups[group] = groups.get(group, 0) + 1
        elif node.ndim == 2 and 0 < sides[0] <= MOST_LEADS < sides[1]:
            found.append(Entry(name, name))
        elif node.ndim == 3 and 0 < sides[0] <= MOST_LEADS < sides[1]:
            found.extend(Entry(own, name, row) for row, own in enumerate(_ids(node)))

    file.visititems(visit)
    found += [Entry(name.strip("/"), name) for name in groups]
    if not found:
        raise InputError("contains no recording: no array of leads x samples", file=path)
    return [replace(found[0], name="")] if len(found) == 1 else found


def _ids(node: Any) -> list[str]:
    """Return the names of the records of a 3-D array."""
    count = node.shape[0]
    if count > MOST_DATASETS * 10:
        raise ValueError("too many records")
    beside = next((node.parent[name] for name in IDS if name in node.parent), None)
    if beside is None or not hasattr(beside, "shape") or beside.shape != (count,):
        return [str(row) for row in range(count)]
    names = [_text(value) for value in beside[:]]
    plain = len(set(names)) == count and not any("/" in name or name in ("", ".", "..") for name in names)
    return names if plain else [str(row) for row in range(count)]


def _find(file: Any, wanted: str, path: Path) -> Entry:
    found = _entries(file, path)
    if not wanted and len(found) > 1:
        raise InputError(f"has {len(found)} recordings; name one, e.g. {path.name}/{found[0].name}", file=path)
    entry = next((entry for entry in found if entry.name == wanted), None)
    if entry is None:
        raise InputError("no such recording in the file", file=path)
    return entry


def _described(node: Any, names: tuple[str, ...], counts: tuple[int, ...] = ()) -> Any:
    """Return the first attribute of these names of the array, its group or the file, or a dataset in its group; None.

    Args:
        node: the array, or a group of leads.
        names: names of the attribute, in lower case.
        counts: numbers of values of a dataset that describes the leads; a dataset with one value is always returned.
    """
    group = node.parent if hasattr(node, "shape") else node
    for attributes in (node.attrs, group.attrs, node.file.attrs):
        own = {str(key).casefold(): key for key in attributes}
        for name in names:
            if name in own:
                return attributes[own[name]]
    for name in names:
        beside = group.get(name)
        if hasattr(beside, "shape") and (beside.shape in ((), (1,)) or beside.shape in [(count,) for count in counts]):
            return beside[()]
    return None


def _common(nodes: Sequence[Any], names: tuple[str, ...], shape: tuple[int, ...], path: Path) -> str | None:
    """Return the value, as text, that all arrays and all their leads have; None if they have none.

    Raises:
        InputError: leads differ, or only some have one.
    """
    written = [_described(node, names, shape) for node in nodes]
    values = {None if value is None else _text(one) for value in written for one in _listed(value)}
    if len(values) > 1:
        shown = ", ".join(sorted(str(value)[:20] for value in values))
        raise InputError(f"leads differ in {names[0]} ({shown}), which is not supported", file=path)
    return values.pop()


def _scale(nodes: Sequence[Any], shape: tuple[int, ...], path: Path) -> np.ndarray | None:
    """Return factor and summand of each stored lead, (leads, 2), that convert integers to the unit; None for none.

    Args:
        nodes: the array, or the series of the leads.
        shape: shape of the table.
        path: path for error messages.

    Raises:
        InputError: the conversion is not defined by a convention, or not by finite numbers, one per lead.
    """
    if nodes[0].dtype.kind not in "iu":
        return None
    count = len(nodes) if len(nodes) > 1 else min(shape)
    gain, factor = (_per_lead(nodes, names, count, path) for names in (ADC_GAIN, FACTOR))
    if gain is not None:
        zero = _per_lead(nodes, ADC_ZERO, count, path)
        if (gain == 0).any():
            raise InputError("adc_gain is 0", file=path)
        return np.stack([1 / gain, -(np.zeros(count) if zero is None else zero) / gain], 1)
    summand = _per_lead(nodes, OFFSET, count, path)
    if factor is None and summand is None:
        for names, neutral in ((GAINS, 1), (ZEROS, 0)):
            for name in names:
                value = _per_lead(nodes, (name,), count, path)
                if value is not None and (value != neutral).any():
                    raise InputError(
                        f"integer samples with {name} {value[0]:g}, which no convention defines: give adc_gain and "
                        "baseline as in WFDB, or scale_factor and add_offset, or store millivolts",
                        file=path,
                    )
        return None
    return np.stack([np.ones(count) if factor is None else factor, np.zeros(count) if summand is None else summand], 1)


def _per_lead(nodes: Sequence[Any], names: tuple[str, ...], count: int, path: Path) -> np.ndarray | None:
    """Return the numbers of the leads, (count,), in an attribute or dataset; None if there is none.

    Raises:
        InputError: they are not one finite number, or one per lead.
    """
    found = []
    for node in nodes:
        value = _described(node, names, (count,))
        group = node.parent
        beside = next((name for name in names if name in group and hasattr(group[name], "shape")), None)
        if value is None and beside is None:
            found.append(None)
            continue
        numbers = np.ravel(np.asarray(group[beside].shape if value is None else value))
        if value is None or numbers.dtype.kind not in "iuf" or len(numbers) not in (1, count if len(nodes) == 1 else 1):
            raise InputError(f"{names[0]} is not a number, or one per lead", file=path)
        found.append(numbers.astype(np.float64))
    if all(one is None for one in found):
        return None
    if any(one is None for one in found) or not all(np.isfinite(one).all() for one in found if one is not None):
        raise InputError(f"{names[0]} is missing or not finite for some leads", file=path)
    values = np.concatenate([one for one in found if one is not None])
    return np.broadcast_to(values, count) if len(values) == 1 else values


def _listed(value: Any) -> list[Any]:
    return [value] if value is None or isinstance(value, str | bytes) else list(np.ravel(value))


def _lead_names(node: Any, shape: tuple[int, ...]) -> tuple[str, ...] | None:
    value = _described(node, NAMES, shape)
    if value is None or np.asarray(value).dtype.kind in "iufb":  # a number of channels
        return None
    if isinstance(value, str | bytes):
        return tuple(_text(value).replace(",", " ").split())
    return tuple(_text(one) for one in np.ravel(value))


def _text(value: Any) -> str:
    value = np.ravel(value)[0] if isinstance(value, np.ndarray) and value.size else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _unpadded(node: Any, row: int, layout: Layout) -> tuple[int, int]:
    """Return first and last sample of a record without leading and trailing samples that are 0 in all leads."""
    table = node[row]
    used = np.flatnonzero((table != 0).any(axis=1 if layout.turned else 0))
    return (int(used[0]), int(used[-1]) + 1) if len(used) else (0, layout.samples)
