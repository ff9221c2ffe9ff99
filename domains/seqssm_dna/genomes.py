"""Several sequence files as one genome, for splits in different files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from seqssm.errors import InputError
from seqssm_dna.contigs import Contigs
from seqssm_dna.genome import MEMORY, Genome
from seqssm_dna.letters import Findings


class Genomes(Genome):
    """The contigs of several files, with consecutive indices.

    Args:
        paths: paths of the files, each opened as a `Genome`.
        memory: maximum number of letters held in memory, over all files.
        say: called once with each message for the user.

    Raises:
        InputError: no file is given, a file is given twice, or a file is unusable.
    """

    def __init__(
        self, paths: Sequence[str | Path], memory: int = MEMORY, say: Callable[[str], None] | None = None
    ) -> None:
        if not paths:
            raise InputError("no sequence file given")
        resolved = [Path(path).resolve() for path in paths]
        double = next((path for path in resolved if resolved.count(path) > 1), None)
        if double is not None:
            raise InputError("duplicate sequence file", file=double)
        self.parts: list[Genome] = []
        for path in paths:
            held = sum(sum(part.lengths) for part in self.parts if part.held)
            self.parts.append(Genome(path, memory - held, say))
        self.path = self.parts[0].path if len(paths) == 1 else Path(", ".join(Path(path).name for path in paths))
        self.notes = [f"{part.path.name}: {note}" for part in self.parts for note in part.notes]
        self.findings = Findings()
        for part in self.parts:
            self.findings.records += part.findings.records
            self.findings.counts += part.findings.counts
            self.findings.repeated |= part.findings.repeated
        self.lengths = [length for part in self.parts for length in part.lengths]
        self.contigs = Contigs(
            [name for part in self.parts for name in part.contigs.names],
            [text for part in self.parts for text in part.contigs.descriptions],
        )
        self._first = np.cumsum([0, *(len(part) for part in self.parts)])

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__

    @property
    def held(self) -> bool:
        """Whether all files are held in memory."""
        return all(part.held for part in self.parts)

    def _read(self, record: int, start: int, end: int) -> bytes:
        part = int(np.searchsorted(self._first, record, side="right")) - 1
        return self.parts[part]._read(record - int(self._first[part]), start, end)


def open_genome(
    paths: str | Path | Sequence[str | Path], memory: int = MEMORY, say: Callable[[str], None] | None = None
) -> Genome:
    """Open one sequence file or several as one genome.

    Args:
        paths: path of the file, or paths of several files.
        memory: maximum number of letters held in memory for files that cannot be indexed.
        say: called once with each message for the user.

    Raises:
        InputError: a file is unusable.
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    return Genome(listed[0], memory, say) if len(listed) == 1 else Genomes(listed, memory, say)
