"""The data module of language models: windows of genomes for training, segments for validation and test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from seqssm.bounds import COUNT, RATE, Bounds
from seqssm.errors import InputError
from seqssm.files.datasets import find_data_set
from seqssm.files.fingerprint import of_parts, spread
from seqssm.training.data import DataModule, whole_batch
from seqssm_dna.catalogue import GENOMES, NAME, registered
from seqssm_dna.genome import MEMORY, Genome
from seqssm_dna.genomes import open_genome
from seqssm_dna.intervals import Interval, of_split, read_bed, require_apart, require_splits, whole_contigs
from seqssm_dna.splits import by_block, by_contig
from seqssm_dna.tokens import Lower, encode, is_base, is_lower, padded, reverse_complement_ids
from seqssm_dna.windows import starts_of

STRETCH = 1 << 17  # maximum length of a segment evaluated in one pass, letters
SHORTEST = 16  # minimum length of a training window, letters
LETTERS = Bounds(SHORTEST, COUNT.most)
DIGESTED = 1 << 26  # a split of more letters is compared by samples
SAMPLE = 1 << 16  # length of one of the samples, letters
NO_SOURCE = "give --data.fasta FILE, or --data.dataset NAME"


class Contig:
    """Token ids and case of the letters of contigs, cached if they fit into memory.

    Args:
        genome: the genome.
        lower: policy for lower-case letters.
        case: whether to keep the case of the letters.
    """

    def __init__(self, genome: Genome, lower: Lower, case: bool) -> None:
        self.genome, self.lower, self.case = genome, lower, case
        self.keep = sum(genome.lengths) * (1 + case) <= MEMORY
        self.held: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}

    def fetch(self, contig: int, start: int, end: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return token ids, (L,) uint8, and a mask of lower-case letters, (L,) bool or None.

        Args:
            contig: index of the contig.
            start: first position.
            end: position after the last letter.
        """
        if not self.keep:
            return self._read(contig, start, end)
        if contig not in self.held:
            self.held[contig] = self._read(contig, 0, self.genome.lengths[contig])
        ids, case = self.held[contig]
        return ids[start:end], None if case is None else case[start:end]

    def _read(self, contig: int, start: int, end: int) -> tuple[np.ndarray, np.ndarray | None]:
        letters = self.genome.fetch(contig, start, end)
        ids = encode(letters, self.lower, place=f"{self.genome.path}: {self.genome.names[contig]}")
        return ids, is_lower(letters) if self.case else None


class Windows:
    """Windows of intervals, as whole batches: ``index, ids (B, L), mask (B, L), weight (B, L)``.

    Args:
        contigs: the letters.
        places: windows, (n, 5) int64: contig, start, end, and first and end position of the surrounding interval.
        random: whether to shift a window by up to half its length and read it from the other strand with probability
            0.5; drawn from NumPy's generator, which the loader seeds for every batch.
        turn: whether windows may be read from the other strand.
        weight: weight of lower-case letters in the loss; None for no weights.
    """

    def __init__(
        self, contigs: Contig, places: np.ndarray, random: bool = False, turn: bool = True, weight: float | None = None
    ) -> None:
        self.contigs, self.places, self.random, self.turn, self.weight = contigs, places, random, turn, weight

    def __len__(self) -> int:
        return len(self.places)

    def __getitems__(self, batch: Sequence[int]) -> dict[str, torch.Tensor]:
        found = [self._window(number) for number in batch]
        ids, mask = padded([own for own, _ in found])
        result = {
            "index": torch.tensor(list(batch)),
            "ids": torch.from_numpy(ids),
            "mask": torch.from_numpy(mask),
        }
        if self.weight is None:
            return result
        weight = np.ones(ids.shape, dtype=np.float32)
        for row, (own, case) in enumerate(found):
            if case is not None:
                weight[row, : len(own)][case] = self.weight
        return {**result, "weight": torch.from_numpy(weight)}

    def _window(self, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        contig, start, end, low, high = self.places[number].tolist()
        if self.random:
            size = end - start
            start = int(np.clip(start + np.random.randint(-(size // 2), size - size // 2), low, high - size))
            end = start + size
        ids, case = self.contigs.fetch(contig, start, end)
        if self.random and self.turn and np.random.random() < 0.5:
            return reverse_complement_ids(ids), None if case is None else case[::-1]
        return ids, case


def places_of(intervals: Sequence[Interval], size: int, step: int | None = None, partial: bool = False) -> np.ndarray:
    """Cut intervals into windows, (n, 5) int64: contig, start, end, and first and end position of the interval.

    An interval shorter than `size`, but of at least `SHORTEST` letters, gives one window.

    Args:
        intervals: intervals; windows do not cross their ends.
        size: length of a window, letters.
        step: distance between window starts; `size` by default.
        partial: whether the last window of an interval is shorter instead of overlapping the preceding one.
    """
    rows = [np.zeros((0, 5), dtype=np.int64)]
    for one in intervals:
        if len(one) < size:
            starts = np.zeros(int(len(one) >= SHORTEST), dtype=np.int64)
        else:
            starts = starts_of(len(one), size, step or size, partial)
        starts = starts + one.start
        ends = np.minimum(starts + size, one.end)
        edges = [np.full(len(starts), value) for value in (one.contig, one.start, one.end)]
        rows.append(np.stack([edges[0], starts, ends, *edges[1:]], axis=1))
    return np.concatenate(rows)


class GenomeData(DataModule):
    """Genomes for language models: FASTA files, or a registered data set.

    In training, an epoch has one window per `context` letters; each window is shifted randomly and read from a random
    strand. Validation and test score every letter once, in segments of `eval_context`, on the forward strand.

    Args:
        fasta: the user's sequence file or files.
        dataset: registered data set: pfalciparum, human_chr20 or ecoli_536; ignored if `fasta` is given.
        bed: BED file of intervals with train, valid or test in the fourth column, or in a column split.
        val_contigs: contigs of the validation split, instead of `bed`.
        test_contigs: contigs of the test split.
        val_fraction: fraction of every contig for validation, before the test segment; if there are neither `bed` nor
            contigs.
        test_fraction: fraction of every contig for the test, at its end.
        context: length of a training window, letters.
        context_warmup: mapping from epoch to length, ``{0: 1024, 10: 8192}``: from this epoch on, windows are split
            into shorter ones of this length; the number of letters per step stays the same.
        eval_context: letters evaluated in one pass in validation and test; by default 131,072.
        eval_letters: maximum number of letters to validate on, spread over the split; by default all.
        max_n: maximum fraction of N in a training window.
        lower: policy for lower-case letters: upper (read as upper case) or mask (read as N, never targets).
        lowercase_weight: weight of lower-case letters in the training loss.
        reverse_complement: whether training windows are read from both strands.
        batch_size: windows per batch; in training, a batch is divided evenly among the processes.
        num_workers: number of loader processes.
        seed: seed of shuffling and augmentation; by default the run's seed.
        root: folder to search for data sets instead of the default ones.

    Raises:
        InputError: an option is out of range.
    """

    collate = staticmethod(whole_batch)
    paths: ClassVar = (*DataModule.paths, "fasta", "bed")
    sources: ClassVar[tuple[tuple[str, ...], ...]] = (("fasta",), ("dataset",))
    split_options: ClassVar[tuple[str, ...]] = ("bed", "val_contigs", "test_contigs", "val_fraction", "test_fraction")
    fixed: ClassVar[tuple[str, ...]] = ("lower",)
    limits: ClassVar[Mapping[str, Bounds]] = {
        "val_fraction": RATE,
        "test_fraction": RATE,
        "context": LETTERS,
        "eval_context": LETTERS,
        "eval_letters": COUNT,
        "max_n": Bounds(0, 1),
        "lowercase_weight": Bounds(0, 1),
    }
    neutral: ClassVar[tuple[str, ...]] = (
        *DataModule.neutral,
        *("context", "context_warmup", "eval_letters", "max_n", "lowercase_weight", "reverse_complement"),
    )

    def __init__(
        self,
        fasta: str | list[str] | None = None,
        dataset: str | None = None,
        bed: str | None = None,
        val_contigs: list[str] | None = None,
        test_contigs: list[str] | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        context: int = 1024,
        context_warmup: dict[int, int] | None = None,
        eval_context: int | None = None,
        eval_letters: int | None = None,
        max_n: float = 0.5,
        lower: Literal["upper", "mask"] = "upper",
        lowercase_weight: float = 1.0,
        reverse_complement: bool = True,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int | None = None,
        root: str | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, root=root)
        if fasta is not None:
            dataset = None  # the user's own file replaces a preset's data set
        if bed is not None and (val_contigs or test_contigs):
            raise InputError("--data.bed cannot be combined with --data.val_contigs or --data.test_contigs")
        if val_fraction + test_fraction >= 1:
            raise InputError(
                f"--data.val_fraction {val_fraction} and --data.test_fraction {test_fraction} leave no training data"
            )
        self.warmup = sorted((context_warmup or {}).items())
        for epoch, length in self.warmup:
            if epoch < 0 or length < SHORTEST or context % length:
                raise InputError(
                    f"--data.context_warmup {{{epoch}: {length}}}: expected lengths of at least {SHORTEST} that divide "
                    f"the context, {context}"
                )
        self.fasta = [fasta] if isinstance(fasta, str) else fasta
        self.dataset, self.context = dataset, context
        self.genome: Genome | None = None
        self.parts: dict[str, list[Interval]] = {}

    # -- reading -----------------------------------------------------------------------------------------------------

    def use_summary(self, summary: Mapping[str, Any], external: bool) -> None:
        """Use the policy for lower case of a checkpoint.

        Args:
            summary: result of `summary` in training.
            external: whether to test all contigs.
        """
        self.fitted, self.external = summary, external

    def find(self) -> tuple[list[Path], Path | None]:
        """Return (sequence files, BED file).

        Raises:
            InputError: no source is given, or the data set is unknown.
        """
        bed = self.hparams["bed"]
        if self.fasta is not None:
            return [Path(one) for one in self.fasta], None if bed is None else Path(bed)
        if self.dataset is None:
            raise InputError(NO_SOURCE)
        own = registered(GENOMES, self.dataset)
        files = [find_data_set(NAME, path, self.root) for path in own.fasta]
        return files, Path(bed) if bed is not None else find_data_set(NAME, own.bed, self.root)

    def setup(self, stage: str | None = None) -> None:
        """Open the genome and make the splits; only once."""
        if self.genome is not None:
            return
        h = self.hparams
        files, bed = self.find()
        genome = open_genome(files if len(files) > 1 else files[0])
        notes = list(genome.notes)
        intervals, how = self._split(genome, bed)
        self.parts = {split: of_split(intervals, split) for split in ("train", "val", "test")}
        weight = None if h["lowercase_weight"] == 1 else float(h["lowercase_weight"])
        self.contigs = Contig(genome, h["lower"], weight is not None)
        places = places_of(self.parts["train"], self.context)
        train = self._few_n(places, notes)
        if not self.external and not len(train):
            raise InputError(
                f"no training window of {self.context} letters ({how}); use a shorter --data.context, or other splits",
                file=genome.path,
            )
        long = h["eval_context"] or STRETCH
        self.train_set = Windows(self.contigs, train, True, h["reverse_complement"], weight)
        self.val_set = Windows(self.contigs, self._some(places_of(self.parts["val"], long, partial=True)))
        self.test_set = Windows(self.contigs, places_of(self.parts["test"], long, partial=True))
        self.genome = genome
        if stage == "fit" or self.external:
            sizes = ", ".join(f"{sum(map(len, own)):,} {split}" for split, own in self.parts.items() if own)
            epoch = f", {len(train):,} windows per epoch" if len(train) else ""
            self.print_line(f"{genome.path}: {sizes} letters ({how}){epoch}")
            aliases = [f"{asked} is read as {name}" for asked, name in genome.contigs.aliases.items()]
            for note in [*notes, *aliases]:
                self.print_line(f"  {note}")

    def _split(self, genome: Genome, bed: Path | None) -> tuple[list[Interval], str]:
        h = self.hparams
        if self.external:
            return [replace(one, split="test") for one in whole_contigs(genome)], "all contigs are tested"
        if h["val_contigs"] or h["test_contigs"]:
            found = by_contig(genome, h["val_contigs"] or [], h["test_contigs"] or [])
            return found, "split by contig"
        if bed is None:
            found, whole = by_block(genome, h["val_fraction"], h["test_fraction"], self.context)
            short = f"; {whole} contigs are too short to be split and used for training only" if whole else ""
            return found, f"split by blocks at the end of every contig{short}"
        found = read_bed(bed, genome)
        require_apart(found, bed)
        require_splits(found, bed)
        return found, f"split by {bed.name}"

    def _few_n(self, places: np.ndarray, notes: list[str]) -> np.ndarray:
        """Drop windows with too many N."""
        h = self.hparams
        known = [is_base(self.contigs.fetch(*row[:3].tolist())[0]).mean() for row in places]
        kept = np.array(known) >= 1 - h["max_n"] if len(known) else np.zeros(0, dtype=bool)
        if not kept.all():
            notes.append(f"{int((~kept).sum())} of {len(kept)} windows dropped: more than {h['max_n']:.0%} N")
        return places[kept]

    def _some(self, places: np.ndarray) -> np.ndarray:
        """Select at most `eval_letters` letters of the validation split, spread over it."""
        limit = self.hparams["eval_letters"]
        sizes = places[:, 2] - places[:, 1]
        if limit is None or sizes.sum() <= limit or not len(places):
            return places
        size = int(np.clip(limit // max(1, min(8, limit // SHORTEST)), SHORTEST, sizes.max()))
        pieces = np.concatenate([_cut(row, size) for row in places])
        wanted = max(1, limit // size)
        chosen = np.unique(np.linspace(0, len(pieces) - 1, min(wanted, len(pieces))).round().astype(int))
        return pieces[chosen]

    # -- for the task and for prediction -----------------------------------------------------------------------------

    def length_at(self, epoch: int) -> int:
        """Return the length of a training sequence in an epoch, letters.

        Args:
            epoch: index of the epoch, from 0.
        """
        return next((length for first, length in reversed(self.warmup) if epoch >= first), self.context)

    def sequences(self, split: str) -> Iterator[np.ndarray]:
        """Return the token ids of the intervals of a split, (L,) uint8 each.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
        """
        for one in self.parts[split]:
            yield self.contigs.fetch(one.contig, one.start, one.end)[0]

    def summary(self) -> dict[str, Any]:
        if self.fitted is not None:
            return dict(self.fitted)
        return {
            "lower": self.hparams["lower"],
            "target": None,
            "classes": [],
            "unit": "",
            "max_length": None,
            "trim_n": False,
            "sequence_column": None,
            "id_column": None,
        }

    def identities(self, split: str) -> list[dict[str, str]]:
        """Return one row per interval."""
        return [{"id": f"{one.chrom}:{one.start}-{one.end}"} for one in self.parts[split]]

    def inputs(self, split: str) -> str:
        """Return a digest of the letters as the network reads them; of a sample where a split is large."""
        own = sorted(self.parts[split], key=lambda one: (one.chrom, one.start, one.end))
        places = [(one, 0, len(one)) for one in own]
        if sum(map(len, own)) > DIGESTED:
            places = [(own[k], first, min(first + SAMPLE, len(own[k]))) for k, first in spread([*map(len, own)], 64)]
        pieces = (self.contigs.fetch(one.contig, one.start + first, one.start + end) for one, first, end in places)
        return of_parts(part for piece in pieces for part in piece if part is not None) if own else ""

    def use_frame(self, frame: Any) -> None:
        """Refuse a data frame, which holds labelled sequences."""
        raise InputError(
            "data: genomes are read from files (fasta); a data frame holds labelled sequences, which need another "
            'preset: preset="finetune"'
        )

    def predict_words(self) -> list[str]:
        return [str(path) for path in self.find()[0]]


def _cut(row: np.ndarray, size: int) -> np.ndarray:
    """Split a segment into pieces of at most `size` letters."""
    contig, start, end, low, high = row.tolist()
    starts = np.arange(start, end, size)
    return np.stack([(contig, first, min(first + size, end), low, high) for first in starts.tolist()])
