"""Every reader of user files, with a small valid file that `make fuzz` damages and reads."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save as save_tensors


@dataclass(frozen=True)
class Reader:
    """A reader of one kind of file.

    Attributes:
        name: name of the file.
        content: content of a valid file.
        read: function that reads the whole file.
        beside: further files of the folder, which are not damaged.
    """

    name: str
    content: bytes
    read: Callable[[Path], Any]
    beside: tuple[tuple[str, bytes], ...] = ()


def saved(write: Callable[[Any], Any]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def later(module: str, name: str) -> Callable[..., Any]:
    """Return a function by name that is imported on its first call."""

    def call(*arguments: Any, **options: Any) -> Any:
        from importlib import import_module

        return getattr(import_module(module), name)(*arguments, **options)

    return call


def exhaust(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda path: list(read(path))


def recording(path: Path) -> Any:
    from seqssm_ecg.arrays import ArraySpec
    from seqssm_ecg.files import read_recording

    return read_recording(path, array=ArraySpec(rate_hz=100.0))


def header_first(path: Path) -> Any:
    return recording(path.with_suffix(".hea"))


WIDE = b"date,a,b\n2024-01-01 00:00,1,2.5\n2024-01-01 01:00,2,3.5\n2024-01-01 02:00,4,1e3\n"
LONG = "unique_id;ds;y\nä;2024-01-31;1,5\nä;2024-02-01;2,5\nb;2024-01-31;-3\nb;2024-02-01;4\n".encode()
FRAME = pd.DataFrame({"date": ["2024-01-01", "2024-01-02"], "a": [1.0, 2.0]})
SIGNAL = (np.arange(24, dtype="<i2") % 7).tobytes()
HEADER = b"r 2 100 12\nr.dat 16 200/mV 16 0 0 0 0 I\nr.dat 16 200/mV 16 0 0 0 0 II\n#Dx: 426783006\n"


def h5_bag(file: Any) -> None:
    with h5py.File(file, "w") as opened:
        opened["features"] = np.ones((3, 4), dtype=np.float32)
        opened["coords"] = np.arange(6).reshape(3, 2) * 256
        opened["coords"].attrs["patch_size_level0"] = 256


BAG = saved(h5_bag)
VCF = b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\nchr1\t5\trs1\tA\tG,T\t.\tPASS\t.\n"
GENBANK = b"LOCUS       X 8 bp DNA\nORIGIN\n        1 acgtacgt\n//\n"
CONFIG = json.dumps({"d_model": 8, "n_layer": 1, "vocab_size": 16, "ssm_cfg": {"layer": "Mamba2"}}).encode()
ENTRY = {"format": 1, "version": "0", "domain": "ecg", "task": "a:B", "hparams": {}, "data": {}, "data_hparams": {}}
CHECKPOINT = saved(lambda file: torch.save({"state_dict": {"w": torch.ones(2)}, "seqssm": ENTRY}, file))

READ_TABLE = later("seqssm.files.tables", "read_table")
READ_BAG = later("seqssm_pathology.files", "read_bag")

READERS = {
    "csv": Reader("t.csv", WIDE, later("seqssm_forecasting.files", "read_series")),
    "csv-long": Reader("t.csv", LONG, later("seqssm_forecasting.files", "read_series")),
    "csv-gz": Reader("t.csv.gz", gzip.compress(WIDE, mtime=0), later("seqssm_forecasting.files", "read_series")),
    "xlsx": Reader("t.xlsx", saved(lambda f: FRAME.to_excel(f, index=False)), READ_TABLE),
    "parquet": Reader("t.parquet", saved(FRAME.to_parquet), READ_TABLE),
    "plain-text": Reader("t.txt", b"1,2\n3,4\n", later("seqssm_forecasting.files", "read_plain_text")),
    "pems": Reader(
        "t.npz", saved(lambda f: np.savez(f, data=np.ones((3, 2, 1)))), later("seqssm_forecasting.files", "read_pems")
    ),
    "wfdb-header": Reader("r.hea", HEADER, recording, (("r.dat", SIGNAL),)),
    "wfdb-signal": Reader("r.dat", SIGNAL, header_first, (("r.hea", HEADER),)),
    "ecg-csv": Reader("e.csv", b"I,II\n" + b"0.1,0.2\n" * 12, recording),
    "ecg-npy": Reader("e.npy", saved(lambda f: np.save(f, np.ones((12, 20)))), recording),
    "fasta": Reader("s.fa", b">a x\nACGTN\nacgt\n>b\nTTTT\n", exhaust(later("seqssm_dna.records", "read_records"))),
    "fastq": Reader("s.fq", b"@a\nACGT\n+\nIIII\n", exhaust(later("seqssm_dna.records", "read_records"))),
    "genbank": Reader("s.gb", GENBANK, exhaust(later("seqssm_dna.records", "read_records"))),
    "fasta-gz": Reader(
        "s.fa.gz", gzip.compress(b">a\nACGT\n", mtime=0), exhaust(later("seqssm_dna.records", "read_records"))
    ),
    "bed": Reader("i.bed", b"chr1\t0\t5\tn\t0\t+\nchr2\t3\t9\tm\t1\t-\n", later("seqssm_dna.intervals", "read_bed")),
    "vcf": Reader("v.vcf", VCF, exhaust(later("seqssm_dna.vcf", "read_vcf"))),
    "labels": Reader(
        "l.csv", b"sequence,label\nACGT,a\nTTTT,b\nACGA,a\nCCCC,b\n", later("seqssm_dna.labelled", "read_labelled")
    ),
    "bag-h5": Reader("b.h5", BAG, READ_BAG),
    "bag-npy": Reader("b.npy", saved(lambda f: np.save(f, np.ones((3, 4)))), READ_BAG),
    "bag-pt": Reader("b.pt", saved(lambda f: torch.save(torch.ones(3, 4), f)), READ_BAG),
    "values": Reader("v.csv", b"case_id,a,b\nx,1,2\ny,3,4\n", later("seqssm_pathology.values", "read_values")),
    "checkpoint": Reader("c.ckpt", CHECKPOINT, later("seqssm.training.checkpoint", "read_checkpoint")),
    "tensors": Reader(
        "w.safetensors",
        save_tensors({"w": np.ones((2, 3), dtype=np.float32)}),
        later("seqssm.files.tensors", "open_tensors"),
    ),
    "architecture": Reader("config.json", CONFIG, later("seqssm.files.weight_config", "read_architecture")),
}
"""Reader by name."""
