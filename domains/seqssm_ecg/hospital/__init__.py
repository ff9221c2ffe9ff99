"""Readers of the formats that hospitals and recorders export: EDF, DICOM, HL7 aECG, GE MUSE, Philips, HDF5.

Each reader is one function ``open_x(path, reading) -> Recording``, named by a row of `seqssm_ecg.formats.FILES`. Age
and sex are stored as for WFDB headers. Patient ids, names and birth dates are stored in `Recording.identity` only and
never appear in messages: errors of the libraries, which may quote a field, are replaced
(`seqssm_ecg.hospital.common.readable`).
"""
