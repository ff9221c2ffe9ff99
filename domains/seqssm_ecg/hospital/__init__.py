"""Readers of the formats that hospitals and recorders export: EDF, DICOM, HL7 aECG, GE MUSE, Philips, HDF5.

Each reader is one function ``open_x(path, reading) -> Recording``, named by a row of `seqssm_ecg.formats.FILES`. Age
and sex land where those of a WFDB header do. Patient ids, names and birth dates go to `Recording.identity` only, and
never into a message: errors of the libraries, which may quote a field, are replaced
(`seqssm_ecg.hospital.common.readable`).
"""
