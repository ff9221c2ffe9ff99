"""Every reader of user files, with a small valid file that `make fuzz` damages and reads."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from safetensors.numpy import save as save_tensors
from scipy.io import savemat

from seqssm.prediction.table import Parts, PartWriter
from tests.ecg import hospital_files


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


def bgzf(content: bytes) -> bytes:
    """Compress in blocks, as bgzip does."""
    from Bio import bgzf as blocks

    file = io.BytesIO()
    writer = blocks.BgzfWriter(fileobj=file)
    writer.write(content)
    writer.flush()
    file.write(blocks._bgzf_eof)
    return file.getvalue()


def exhaust(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda path: list(read(path))


def recording(path: Path) -> Any:
    from seqssm_ecg.arrays import ArraySpec
    from seqssm_ecg.files import read_recording

    return read_recording(path, array=ArraySpec(rate_hz=100.0))


def header_first(path: Path) -> Any:
    return recording(path.with_suffix(".hea"))


def hospital(write: Callable[..., Any], **options: Any) -> bytes:
    """The content of a hospital's file with one second of 12 leads."""
    values = {lead: np.sin(np.arange(hospital_files.RATE) / (5 + k)) for k, lead in enumerate(hospital_files.LEADS)}
    with tempfile.TemporaryDirectory() as folder:
        return write(Path(folder, "file"), values, **options).read_bytes()


def bases(path: Path) -> Any:
    """Read every letter of a genome, by its index where the file has one."""
    from seqssm_dna.genomes import open_genome

    genome = open_genome(path)
    return [genome.fetch(record, 0, length) for record, length in enumerate(genome.lengths)]


def class_files(path: Path) -> Any:
    from seqssm_dna.labelled import read_labelled

    return read_labelled({"a": path, "b": path.with_name("other.fa")})


def labelled_bed(path: Path) -> Any:
    from seqssm_dna.genomes import open_genome
    from seqssm_dna.intervals import read_bed
    from seqssm_dna.labelled import labelled_intervals

    genome = open_genome(path.with_name("g.gb"))
    return labelled_intervals(read_bed(path, genome), genome, path)


def array_bag(path: Path) -> Any:
    from seqssm_pathology.files import read_header

    read_header(path)
    return READ_BAG(path)


def images(path: Path) -> Any:
    """The worked domain of `examples/`."""
    from examples.seqssm_images import data

    pixels, _ = data.read_images(path)
    return data.split_of(path, len(pixels))


def ecg_manifest(path: Path) -> Any:
    from seqssm_ecg.arrays import ArraySpec
    from seqssm_ecg.sources import read_manifest

    return read_manifest(path, ArraySpec())


def slides(target: str) -> Callable[[Path], Any]:
    return lambda path: later("seqssm_pathology.manifest", "read_manifest")(path, target)


def folds(path: Path) -> Any:
    from seqssm_pathology.splits import read_split

    return read_split(path, slides("classification")(path.with_name("m.csv")), quiet=True)


def static_features(path: Path) -> Any:
    return later("seqssm_forecasting.statics", "read_static_features")(path, ["a", "b"])


def holidays(path: Path) -> Any:
    return later("seqssm_forecasting.holidays", "learn")(str(path))


def challenge_output(path: Path) -> Any:
    return later("seqssm_ecg.outputs", "read_output")(path, [("1", "2"), ("3",)], 2020)


def preset(path: Path) -> Any:
    from seqssm.domain import find_domain
    from seqssm.training.presets import Source, read_preset

    return read_preset(Source(path, "mine"), find_domain("forecasting"))


def run_file(read: str) -> Callable[[Path], Any]:
    """A reader of a file in a run folder."""

    def call(path: Path) -> Any:
        from seqssm.tools import report
        from seqssm.training import external
        from seqssm.training.run_folder import RunFolder

        if read == "split":
            return external.read_split(RunFolder(path.parent))
        return report.read_yaml(path) if read == "config" else RunFolder(path.parent).read_json(path.name)

    return call


def archive(path: Path) -> Any:
    """Extract the member of a downloaded archive; `seqssm data get` reports the damage."""
    from seqssm.domain import DataSet
    from seqssm.errors import InputError
    from seqssm.files.datasets import DamagedError, unpack

    data = DataSet("series", "a series", "series.csv", None, "CC0", "made", member="data/series.csv")
    try:
        return unpack(path, path.with_name("series.csv"), data) or True
    except DamagedError as error:
        raise InputError(str(error), file=path) from None


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


def h5_values(file: Any) -> None:
    with h5py.File(file, "w") as opened:
        opened["case_id"] = np.array([b"x", b"y"])
        opened["rna"], opened["rna_genes"] = np.ones((2, 2), dtype=np.float32), np.array([b"A", b"B"])


def zipped(file: Any) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("data/series.csv", WIDE)


def part_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        writer = PartWriter(path := Path(folder, "0.part"))
        writer.write(0, pa.table({"id": ["a", "b"]}))
        writer.write(1, pa.table({"id": ["c"]}))
        writer.close()
        return path.read_bytes()


MATLAB = saved(lambda f: savemat(f, {"val": (np.arange(24).reshape(2, 12) % 7).astype("<i2")}, format="4"))
MATLAB_HEADER = b"r 2 100 12\nr.mat 16+24 200/mV 16 0 0 0 0 I\nr.mat 16+24 200/mV 16 0 0 0 0 II\n"
PACKED = bytes(range(36))
PACKED_HEADER = b"r 2 100 12\nr.dat 212 200/mV 12 0 0 0 0 I\nr.dat 212 200/mV 12 0 0 0 0 II\n"
EMBL = b"ID   X; SV 1; linear; DNA; STD; PRO; 8 BP.\nSQ   Sequence 8 BP;\n     acgtacgt                  8\n//\n"
GENOME = b"LOCUS       chr1 40 bp DNA\nORIGIN\n        1 acgtacgtaa ccggttacgt acgtaaccgg ttacgtacgt\n//\n"
LABELLED_BED = b"chrom\tstart\tend\tlabel\nchr1\t0\t5\ta\nchr1\t3\t9\tb\nchr1\t10\t20\ta\nchr1\t20\t30\tb\n"
MANIFEST = b"case_id,slide_id,label\nc1,s1,a\nc2,s2,b\nc3,s3,a\nc4,s4,b\n"
SURVIVAL = b"case_id,slide_id,survival_months,censorship\nc1,s1,3.5,0\nc2,s2,12,1\nc3,s3,7,0\nc4,s4,9,0\n"
ECG_MANIFEST = b"path,labels,patient,fold,rate_hz\nr1,AF;SR,p1,1,\nr2,SR,p2,2,\nr3.npy,AF,p3,3,250\nr4,[],p4,4,\n"
ECG_CLASSES = b"path,AF,SR,split\nr1,1,0,train\nr2,0,1,val\nr3,,1,test\n"
PRESET = b"model: {d_model: 8, network: smamba}\ndata:\n  file: &f my.csv\n  horizon: 4\ntrainer: {max_epochs: 1}\n"
BLOCKS = bgzf(b">a x\nACGTN\nacgt\n>b\nTTTT\n")
VCF = b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\nchr1\t5\trs1\tA\tG,T\t.\tPASS\t.\n"
GENBANK = b"LOCUS       X 8 bp DNA\nORIGIN\n        1 acgtacgt\n//\n"
CONFIG = json.dumps({"d_model": 8, "n_layer": 1, "vocab_size": 16, "ssm_cfg": {"layer": "Mamba2"}}).encode()
ENTRY = {"format": 1, "version": "0", "domain": "ecg", "task": "a:B", "hparams": {}, "data": {}, "data_hparams": {}}
CHECKPOINT = saved(lambda file: torch.save({"state_dict": {"w": torch.ones(2)}, "seqssm": ENTRY}, file))

READ_TABLE = later("seqssm.files.tables", "read_table")
READ_BAG = later("seqssm_pathology.files", "read_bag")

READ_RECORDS = exhaust(later("seqssm_dna.records", "read_records"))

READERS = {
    "csv": Reader("t.csv", WIDE, later("seqssm_forecasting.files", "read_series")),
    "csv-long": Reader("t.csv", LONG, later("seqssm_forecasting.files", "read_series")),
    "csv-gz": Reader("t.csv.gz", gzip.compress(WIDE, mtime=0), later("seqssm_forecasting.files", "read_series")),
    "xlsx": Reader("t.xlsx", saved(lambda f: FRAME.to_excel(f, index=False)), READ_TABLE),
    "parquet": Reader("t.parquet", saved(FRAME.to_parquet), READ_TABLE),
    "static-features": Reader("s.csv", b"id,kind,size\na,x,1\nb,y,2\n", static_features),
    "holidays": Reader("h.csv", b"date\n2024-12-25\n2025-01-01\n", holidays),
    "plain-text": Reader("t.txt", b"1,2\n3,4\n", later("seqssm_forecasting.files", "read_plain_text")),
    "pems": Reader(
        "t.npz", saved(lambda f: np.savez(f, data=np.ones((3, 2, 1)))), later("seqssm_forecasting.files", "read_pems")
    ),
    "wfdb-header": Reader("r.hea", HEADER, recording, (("r.dat", SIGNAL),)),
    "wfdb-signal": Reader("r.dat", SIGNAL, header_first, (("r.hea", HEADER),)),
    "ecg-csv": Reader("e.csv", b"I,II\n" + b"0.1,0.2\n" * 12, recording),
    "ecg-npy": Reader("e.npy", saved(lambda f: np.save(f, np.ones((12, 20)))), recording),
    "wfdb-212": Reader("r.dat", PACKED, header_first, (("r.hea", PACKED_HEADER),)),
    "wfdb-matlab": Reader("r.mat", MATLAB, header_first, (("r.hea", MATLAB_HEADER),)),
    "edf": Reader("e.edf", hospital(hospital_files.write_edf), recording),
    "bdf": Reader("e.bdf", hospital(hospital_files.write_edf, bdf=True), recording),
    "dicom": Reader("e.dcm", hospital(hospital_files.write_dicom), recording),
    "aecg": Reader("e.xml", hospital(hospital_files.write_aecg), recording),
    "muse": Reader("e.xml", hospital(hospital_files.write_muse), recording),
    "philips": Reader("e.xml", hospital(hospital_files.write_philips), recording),
    "philips-plain": Reader("e.xml", hospital(hospital_files.write_philips, compression="Uncompressed"), recording),
    "ecg-hdf5": Reader("e.h5", hospital(hospital_files.write_hdf5), recording),
    "ecg-manifest": Reader("m.csv", ECG_MANIFEST, ecg_manifest),
    "ecg-classes": Reader("m.csv", ECG_CLASSES, ecg_manifest),
    "challenge-weights": Reader("w.csv", b",a|b,c\na|b,1,0.5\nc,0.5,1\n", later("seqssm_ecg.labels", "read_weights")),
    "challenge-output": Reader("r.csv", b"#r\n1,2,3\n0,1,0\n0.1,0.9,0.2\n", challenge_output),
    "fasta": Reader("s.fa", b">a x\nACGTN\nacgt\n>b\nTTTT\n", READ_RECORDS),
    "fastq": Reader("s.fq", b"@a\nACGT\n+\nIIII\n", READ_RECORDS),
    "genbank": Reader("s.gb", GENBANK, READ_RECORDS),
    "fasta-gz": Reader("s.fa.gz", gzip.compress(b">a\nACGT\n", mtime=0), READ_RECORDS),
    "embl": Reader("s.embl", EMBL, READ_RECORDS),
    "genome": Reader("g.fa", b">a x\nACGTN\nacgt\n>b\nTTTT\n", bases),
    "genome-bgzf": Reader("g.fa.gz", BLOCKS, bases),
    "class-files": Reader("one.fa", b">a\nACGT\n>b\nTTTT\n", class_files, (("other.fa", b">c\nCCCC\n>d\nGGGG\n"),)),
    "labelled-bed": Reader("l.bed", LABELLED_BED, labelled_bed, (("g.gb", GENOME),)),
    "bed": Reader("i.bed", b"chr1\t0\t5\tn\t0\t+\nchr2\t3\t9\tm\t1\t-\n", later("seqssm_dna.intervals", "read_bed")),
    "vcf": Reader("v.vcf", VCF, exhaust(later("seqssm_dna.vcf", "read_vcf"))),
    "labels": Reader(
        "l.csv", b"sequence,label\nACGT,a\nTTTT,b\nACGA,a\nCCCC,b\n", later("seqssm_dna.labelled", "read_labelled")
    ),
    "bag-h5": Reader("b.h5", BAG, array_bag),
    "bag-npy": Reader("b.npy", saved(lambda f: np.save(f, np.ones((3, 4)))), array_bag),
    "bag-pt": Reader("b.pt", saved(lambda f: torch.save(torch.ones(3, 4), f)), array_bag),
    "values": Reader("v.csv", b"case_id,a,b\nx,1,2\ny,3,4\n", later("seqssm_pathology.values", "read_values")),
    "values-h5": Reader("v.h5", saved(h5_values), later("seqssm_pathology.values", "read_values")),
    "manifest": Reader("m.csv", MANIFEST, slides("classification")),
    "survival": Reader("m.csv", SURVIVAL, slides("survival")),
    "split": Reader("s.csv", b",train,val,test\n0,c1,c3,c4\n1,c2,,\n", folds, (("m.csv", MANIFEST),)),
    "encoder": Reader(
        "w.pth",
        saved(lambda f: torch.save({"state_dict": {"conv1.weight": torch.ones(2, 3)}}, f)),
        later("seqssm_pathology.encoders", "read_weights"),
    ),
    "encoder-safetensors": Reader(
        "w.safetensors",
        save_tensors({"conv1.weight": np.ones((2, 3), dtype=np.float32)}),
        later("seqssm_pathology.encoders", "read_weights"),
    ),
    "images": Reader("i.npz", saved(lambda f: np.savez(f, images=np.ones((9, 2, 2)), labels=np.arange(9) % 2)), images),
    "preset": Reader("mine.yaml", PRESET, preset),
    "run-config": Reader("config.yaml", PRESET, run_file("config")),
    "run-metrics": Reader("metrics.json", b'{"test": {"scores": {"mse": 0.5, "n": [1, null]}}}', run_file("json")),
    "run-split": Reader("split.csv", b"split,id,patient\ntrain,a,p\nval,b,q\n", run_file("split")),
    "predicted-batches": Reader("0.part", part_file(), lambda path: list(Parts(path.parent).tables())),
    "data-archive": Reader("series.zip", saved(zipped), archive),
    "checkpoint": Reader("c.ckpt", CHECKPOINT, later("seqssm.training.checkpoint", "read_checkpoint")),
    "tensors": Reader(
        "w.safetensors",
        save_tensors({"w": np.ones((2, 3), dtype=np.float32)}),
        later("seqssm.files.tensors", "open_tensors"),
    ),
    "architecture": Reader("config.json", CONFIG, later("seqssm.files.weight_config", "read_architecture")),
}
"""Reader by name."""
