"""Additional output files of a prediction: tracks, embeddings, scored copies of VCF files, summaries."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seqssm.errors import Status
from seqssm.files.disk import atomic, require_suffix
from seqssm_dna.files import write_scores
from seqssm_dna.profile import Parts

SUFFIXES = (".parquet", ".npy")
BLOCK = 1 << 20  # bytes per copied block
TRACK = 'track type=bedGraph name="{name}" description="-log2 p of every base"\n'


def write_track(path: Path, parts: Parts) -> Path:
    """Write a bedGraph file from the parts of the batches.

    Args:
        path: path of the file.
        parts: files of the batches, in order.
    """
    with atomic(path) as out:
        out.write(TRACK.format(name=path.stem.replace('"', "")).encode("utf-8", "backslashreplace"))
        for part in parts.paths():
            with open(part, "rb") as file:
                while block := file.read(BLOCK):
                    out.write(block)
    return path


class TrackCheck:
    """Finds what other programs reject in a bedGraph file: overlapping lines, and names that are not contigs."""

    def __init__(self) -> None:
        self.spans: dict[str, list[tuple[int, int]]] = {}

    def add(self, table: pa.Table) -> None:
        """Add the rows of a batch.

        Args:
            table: rows of the batch; those without a value have no line in the track.
        """
        columns = (table[name].to_pylist() for name in ("record", "start", "end", "status"))
        for record, start, end, status in zip(*columns):
            if status == Status.OK:
                self.spans.setdefault(record or "", []).append((start, end))

    def notes(self) -> list[str]:
        """Return warnings, one line each."""
        apart = {
            name: len(own) == 1 or all(a[1] <= b[0] for a, b in pairwise(sorted(own)))
            for name, own in self.spans.items()
        }
        twice = [name for name, own in apart.items() if not own]
        bad = [name for name in self.spans if not name or name in ("track", "browser") or name.startswith("#")]
        found = []
        if twice:
            what = f"{len(twice)} contigs have overlapping intervals or several records (first: {twice[0]!r})"
            found.append(f"warning: --track: {what}; bedGraph requires one value per position")
        if bad:
            found.append(f"warning: --track: records named {', '.join(map(repr, bad[:5]))} are not valid in bedGraph")
        return found


# -- embeddings --------------------------------------------------------------------------------------------------------


def require_embeddings(name: str) -> None:
    """Check the name of an embeddings file.

    Args:
        name: name of the file.

    Raises:
        InputError: the suffix is not one of `SUFFIXES`.
    """
    require_suffix(name, SUFFIXES, "--embeddings")


def ids_beside(path: Path) -> Path:
    """The table of ids that belongs to an array of embeddings.

    Args:
        path: of the array.
    """
    return path.with_name(f"{path.stem}.ids.csv")


def write_vectors(parts: Parts, first: int, vectors: Mapping[int, np.ndarray]) -> None:
    """Write the vectors of a batch.

    Args:
        parts: parts of the embeddings file.
        first: index of the first record of the batch.
        vectors: vectors, (D,), by index of the record.
    """
    out = io.BytesIO()
    if vectors:
        np.save(out, np.array(list(vectors), dtype=np.int64))
        np.save(out, np.stack(list(vectors.values())).astype(np.float32))
    parts.write(first, iter([out.getvalue()]))


def read_vectors(path: Path) -> dict[int, np.ndarray]:
    """Read the vectors of a batch, (D,) by index of the record.

    Args:
        path: path of the part.
    """
    with open(path, "rb") as file:
        if not path.stat().st_size:
            return {}
        return dict(zip(np.load(file).tolist(), np.load(file)))


class Embeddings:
    """An embeddings file with one row per record in input order; records without an embedding have an empty one.

    ``.parquet``: columns ``index, id, embedding, status``; the pooling is in the metadata. ``.npy``: (n, D) float32
    with NaN rows, and beside it ``NAME.ids.csv`` with ``index, id, status``.

    Args:
        name: name of the file.
        parts: vectors of the batches.
    """

    def __init__(self, name: str, parts: Parts) -> None:
        self.path, self.parts = Path(name), parts
        self.rows: list[tuple[int, str, str]] = []

    def add(self, table: pa.Table) -> None:
        """Add the records of a batch.

        Args:
            table: rows of the batch; only the first row of a record is used.
        """
        columns = (table[name].to_pylist() for name in ("index", "id", "status"))
        for index, name, status in zip(*columns):
            if not self.rows or self.rows[-1][0] != index:
                self.rows.append((index, name, status))

    def close(self, pooling: str) -> list[Path]:
        """Write the file.

        Args:
            pooling: description of the pooling.

        Returns:
            Paths of the written files.
        """
        indices = pa.array([row[0] for row in self.rows], pa.int64())
        frame = {"index": indices, "id": [row[1] for row in self.rows]}
        status = [row[2] for row in self.rows]
        if self.path.suffix == ".parquet":
            vectors = self._vectors()
            listed = pa.array([vectors.get(row[0]) for row in self.rows], pa.list_(pa.float32()))
            table = pa.table({**frame, "embedding": listed, "status": status})
            with atomic(self.path) as out:
                pq.write_table(table.replace_schema_metadata({"pooling": pooling}), out)
            return [self.path]
        ids = ids_beside(self.path)
        with atomic(self.path) as out:
            np.save(out, self._array())
        with atomic(ids, "w") as file:
            pa.table({**frame, "status": status}).to_pandas().to_csv(file, index=False, lineterminator="\n")
        return [self.path, ids]

    def _vectors(self) -> dict[int, np.ndarray]:
        return {index: one for part in self.parts.paths() for index, one in read_vectors(part).items()}

    def _array(self) -> np.ndarray:
        vectors = self._vectors()
        width = max((len(one) for one in vectors.values()), default=0)
        table = np.full((len(self.rows), width), np.nan, dtype=np.float32)
        for place, (index, _, _) in enumerate(self.rows):
            if index in vectors:
                table[place] = vectors[index]
        return table


# -- variants ----------------------------------------------------------------------------------------------------------


class VcfScores:
    """Collects the scores of the lines of a VCF file, for a scored copy.

    Args:
        wanted: classifier output whose change is written, its name and its column; None for a language model.
    """

    def __init__(self, wanted: tuple[str, str] | None) -> None:
        self.column = "llr" if wanted is None else f"{wanted[1]}_change"
        self.of = None if wanted is None else f"{wanted[0]} with the ALT allele minus that with REF"
        self.values: list[float | None] = []

    def add(self, table: pa.Table) -> None:
        """Add the alleles of a batch.

        Args:
            table: rows of the batch.
        """
        self.values += table[self.column].to_pylist()

    def write(self, source: Path, target: Path, field: str) -> Path:
        """Write the copy.

        Args:
            source: path of the VCF file.
            target: path of the copy.
            field: name of the INFO field.
        """
        extra = {} if self.of is None else {"description": self.of.replace('"', "'")}
        write_scores(source, target, self._lines(source), field, **extra)
        return target

    def _lines(self, source: Path) -> Iterator[list[float | None]]:
        """Yield the values of each line, one per allele; a line without alleles has one row and no value."""
        from seqssm_dna.vcf import read_vcf

        place = 0
        for line in read_vcf(source):
            yield self.values[place : place + len(line.alts)]
            place += max(len(line.alts), 1)


# -- all -----------------------------------------------------------------------------------------------------------


def write_all(
    options: Mapping[str, Any],
    work: Path,
    tables: Iterator[pa.Table],
    inputs: Sequence[Path],
    wanted: tuple[str, str] | None,
    pooling: str,
    about: Mapping[str, Any],
) -> tuple[list[Path], Counter[str], list[str]]:
    """Write the requested additional files.

    Args:
        options: options ``track``, ``embeddings``, ``write_vcf``, ``vcf_field``, ``summary``.
        work: folder of the parts.
        tables: rows of all batches, in order.
        inputs: input files.
        wanted: classifier output whose change is written into a VCF file: name, column; None for a language model.
        pooling: description of the pooling of embeddings.
        about: information on the inputs, for the summary.

    Returns:
        (Paths of the written files, number of rows by status, notes of `about` and on the track).
    """
    counts: Counter[str] = Counter()
    vectors = Embeddings(options["embeddings"], Parts(work, "vectors")) if options["embeddings"] else None
    copy = VcfScores(wanted) if options["write_vcf"] else None
    check = TrackCheck() if options["track"] else None
    for table in tables:
        counts.update(table["status"].to_pylist())
        for one in (vectors, copy, check):
            if one is not None:
                one.add(table)
    written, notes = [], list(about["notes"])
    if check is not None:
        notes += check.notes()
        written.append(write_track(Path(options["track"]), Parts(work, "track")))
    if vectors is not None:
        written += vectors.close(pooling)
    if copy is not None:
        written.append(copy.write(inputs[0], Path(options["write_vcf"]), options["vcf_field"]))
    if options["summary"]:
        path = Path(options["summary"])
        with atomic(path, "w") as file:
            json.dump({**about, "notes": notes, "rows": dict(counts)}, file, indent=1)
            file.write("\n")
        written.append(path)
    return written, counts, notes
