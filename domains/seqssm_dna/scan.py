"""``seqssm dna scan-variants``: all single-base changes of a region, as a table and a heat map."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from seqssm.errors import InputError, Status
from seqssm.files.disk import atomic, require_output, require_writable
from seqssm.given import select
from seqssm.plot.canvas import file_name
from seqssm.prediction.table import require_suffix
from seqssm_dna import figures
from seqssm_dna.checks import require_one_model, require_window
from seqssm_dna.effects import Pair, effects
from seqssm_dna.files import say
from seqssm_dna.letters import BASES
from seqssm_dna.predict import DnaPredictor
from seqssm_dna.tokens import is_base, known_ends, reverse_complement_ids
from seqssm_dna.variants import Allele

LARGEST = 20_000  # maximum length of a region, letters
AT_ONCE = 32  # positions per scoring call


def run(options: dict[str, Any]) -> int:
    """Run the command ``scan-variants``."""
    from seqssm.prediction.model import load_single

    require_one_model(options["inputs"], "scan-variants MODEL --reference FASTA --region CONTIG:START-END")
    for name in ("reference", "region"):
        if options[name] is None:
            raise InputError(f"--{name} is required")
    if options["output"]:
        require_suffix(Path(options["output"]))
        require_output(options)
    if options["figures"]:
        require_writable(Path(options["figures"]))
    model = load_single(options["inputs"][0], "scan of a region", options["accelerator"], "dna")
    names = ("reference", "window", "strands", "chunk_size", "mask_passes", "class", "label")
    predictor = model.predictor(select(options, names))
    assert isinstance(predictor, DnaPredictor)
    require_window(options["window"], predictor.limit)
    frame, picture = scan(predictor, options["region"], options["strand"])
    aliases = [
        f"contig {name} read as {other}"
        for genome in predictor.reader.opened.values()
        for name, other in genome.contigs.aliases.items()
    ]
    for note in [*predictor.reader.notes(), *aliases]:
        say(note)
    if options["figures"]:
        stem = file_name(options["region"])
        path = figures.heat_map(Path(options["figures"]) / f"{stem}_changes.png", **picture)
        print(f"written: {path}", file=sys.stdout if options["output"] else sys.stderr)  # the table may be piped
    if not options["output"]:
        print(frame.to_csv(index=False, lineterminator="\n"), end="")
        return 0
    output = Path(options["output"])
    with atomic(output, "w" if output.suffix == ".csv" else "wb") as file:
        if output.suffix == ".csv":
            frame.to_csv(file, index=False, lineterminator="\n")
        else:
            pa.parquet.write_table(pa.Table.from_pandas(frame, preserve_index=False), file)
    print(f"written: {output}")
    return 0


@torch.inference_mode()
def scan(predictor: DnaPredictor, region: str, strand: str = "+") -> tuple[pd.DataFrame, dict[str, Any]]:
    """Compute the effects of all single-base changes of a region.

    Args:
        predictor: predictor with the option ``reference``.
        region: ``chr:start-end``, 1-based, inclusive, or the name of a record.
        strand: strand read by a classifier.

    Returns:
        (table with three rows per position, arguments of `seqssm_dna.figures.heat_map` except the path).

    Raises:
        InputError: there is no such region, or it is too large.
    """
    reference = Path(predictor.options["reference"])
    genome = predictor.reader.genome(reference)
    contig, start, end = genome.region(region)
    if not 0 < end - start <= LARGEST:
        raise InputError(f"--region {region}: {end - start} letters; expected 1 to {LARGEST}")
    name, letters = genome.names[contig], genome.fetch(contig, start, end).decode().upper().replace("U", "T")
    if not is_base(predictor.reader.ids(letters.encode())).any():
        raise InputError(f"--region {region}: contains no A, C, G or T", file=reference)
    if predictor.classifier:
        column = f"{predictor.outputs.estimate(predictor.wanted)}_change"
        if predictor.options["window"] is None:
            rows = _classes(predictor, name, start, letters, strand)
        else:
            rows = _windowed(predictor, contig, name, start, letters, strand)
        label = f"change of {predictor.wanted}"
    else:
        if strand != "+":
            raise InputError("--strand applies to classifiers only; use --strands for a language model")
        rows, column = _likelihoods(predictor, contig, name, start, letters), "llr"
        label = "log-likelihood ratio, nats"
    frame = pd.DataFrame(rows)
    values = np.full((len(letters), 4), np.nan)
    bases = [BASES.index(alt) for alt in frame["alt"]]
    values[frame["pos"].to_numpy() - start - 1, bases] = frame.get(column, np.nan)
    title = f"{name}:{start + 1}-{end}, every single-base change"
    picture = {"title": title, "contig": name, "start": start + 1, "reference": letters, "values": values}
    return frame, {**picture, "label": label}


def _changes(contig: int, name: str, start: int, letters: str) -> list[Allele]:
    """Return the three changes of each position; for letters other than A, C, G, T they have a status."""
    found: list[Allele] = []
    for place, ref in enumerate(letters):
        status, reason = Status.OK, ""
        if ref not in BASES:
            status, reason = Status.INVALID_ALLELE, f"the reference has {ref}"
        for alt in BASES:
            if alt != ref:
                row = len(found)
                found.append(Allele(row, place, 0, 1, name, start + place + 1, ".", ref, alt, contig, status, reason))
    return found


def _row(one: Allele, values: dict[str, Any]) -> dict[str, Any]:
    row = {"chrom": one.chrom, "pos": one.pos, "ref": one.ref, "alt": one.alt}
    return {**row, **values, "status": str(one.status), "reason": one.reason}


def _likelihoods(predictor: DnaPredictor, contig: int, name: str, start: int, letters: str) -> list[dict[str, Any]]:
    rows, scorer, reference = [], predictor.scorer(), Path(predictor.options["reference"])
    changes = _changes(contig, name, start, letters)
    both = predictor.options["strands"] != "forward"
    for first in range(0, len(changes), 3 * AT_ONCE):
        own = changes[first : first + 3 * AT_ONCE]
        pairs = [Pair(one) for one in own if one.status == Status.OK]
        for pair in pairs:
            pair.load(predictor.reader, reference, predictor.window)
        found = dict(zip((pair.allele.index for pair in pairs), effects(scorer, pairs, both) if pairs else []))
        for one in own:
            values: dict[str, Any] = {"ref_ll": np.nan, "alt_ll": np.nan, "llr": np.nan}
            if one.index in found:
                effect = found[one.index]
                values = {"ref_ll": effect.ref.mean(), "alt_ll": effect.alt.mean(), "llr": effect.llr.mean()}
            rows.append(_row(one, values))
    return rows


def _windowed(
    predictor: DnaPredictor, contig: int, name: str, start: int, letters: str, strand: str
) -> list[dict[str, Any]]:
    """Compute the changes of a classifier's outputs in a window around each change, as for a VCF file."""
    changes = _changes(contig, name, start, letters)
    pairs = [Pair(one) for one in changes if one.status == Status.OK]
    for pair in pairs:
        pair.load(predictor.reader, Path(predictor.options["reference"]), predictor.window)
        assert pair.ref is not None
        assert pair.alt is not None
        if strand == "-":
            pair.ref, pair.alt = reverse_complement_ids(pair.ref), reverse_complement_ids(pair.alt)
    values = predictor.labeller().alleles(pairs)
    known = {pair.allele.index: predictor.change(*own) for pair, own in zip(pairs, values)}
    return [_row(one, known.get(one.index, {})) for one in changes]


def _classes(predictor: DnaPredictor, name: str, start: int, letters: str, strand: str) -> list[dict[str, Any]]:
    labeller = predictor.labeller()
    limit = predictor.summary["context"]
    if limit and len(letters) > limit:
        raise InputError(
            f"the region has {len(letters)} letters, the longest training sequence {limit}; use a smaller region"
        )
    ids = predictor.reader.ids(letters.encode())
    changes = _changes(-1, name, start, letters)
    first, last = known_ends(ids) if predictor.reader.trim_n else (0, len(ids))
    sequences = [ids[first:last]]
    for one in changes:
        changed = ids.copy()
        changed[one.record] = predictor.reader.ids(one.alt.encode())[0]
        sequences.append(changed[first:last])
    if strand == "-":
        sequences = [reverse_complement_ids(one) for one in sequences]
    values, _ = labeller.outputs(sequences)
    rows = []
    for one, alt in zip(changes, values[1:]):
        known = {} if one.status != Status.OK else predictor.change(values[0], alt)
        rows.append(_row(one, known))
    return rows
