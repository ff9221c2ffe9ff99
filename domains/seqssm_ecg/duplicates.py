"""Hashes of a recording's samples, to detect duplicates."""

from __future__ import annotations

import hashlib

import numpy as np

from seqssm_ecg.formats import BLOCK
from seqssm_ecg.leads import LEADS
from seqssm_ecg.recording import Recording
from seqssm_ecg.wfdb_files import WfdbSource


def content_hash(recording: Recording) -> str:
    """Hash the samples of a recording's leads, independently of their order, format and position in the file.

    Raw integers are hashed if the file has them. This also detects a copy with a different gain.

    Raises:
        InputError: the samples cannot be read.
    """
    source = recording.source
    if isinstance(source, WfdbSource):
        blocks = (list(rows) for rows in source.reader.raw_blocks(BLOCK))
        kind = "<i8"
    else:
        blocks = (list(block) for block in recording.blocks())
        kind = "<f4"
    own = {lead: hashlib.sha256() for lead in recording.leads}
    for rows in blocks:
        for lead, row in zip(recording.leads, rows):
            own[lead].update(np.ascontiguousarray(row, dtype=kind).tobytes())
    digest = hashlib.sha256()
    for lead in LEADS:
        if lead in own:
            digest.update(lead.encode() + own[lead].digest())
    return digest.hexdigest()


def first_samples(recording: Recording) -> tuple[str, np.ndarray]:
    """Return rate, length and leads of a recording, and its first samples in mV, (leads, at most `BLOCK`) float32.

    Raises:
        InputError: the samples cannot be read.
    """
    order = sorted(range(len(recording.leads)), key=lambda k: recording.leads[k])
    block = next(iter(recording.blocks()))
    leads = " ".join(recording.leads[k] for k in order)
    return f"{recording.rate_hz:g} {recording.samples} {leads}", np.asarray(block, dtype="<f4")[order]
