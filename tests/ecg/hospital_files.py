"""Writers of hospital files for the tests: one recording of a made-up patient in each format."""

from __future__ import annotations

import base64
import datetime

import edfio
import h5py
import numpy as np
import pydicom
from seqssm_ecg import simulate
from seqssm_ecg.leads import LEADS

RATE = 250
STORED = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")


def made_values() -> dict[str, np.ndarray]:
    """Three seconds of twelve leads in whole multiples of 5 microvolts, mV."""
    made = simulate.recording(["PVC"], 3.0, RATE, seed=1)
    rounded = {lead: np.round(row * 200) / 200 for lead, row in made.items()}
    one, two = (np.round(rounded[lead] * 200).astype(int) for lead in ("I", "II"))
    limb = {"III": two - one, "aVR": -((one + two) // 2), "aVL": (2 * one - two) // 2, "aVF": (2 * two - one) // 2}
    return {lead: limb[lead] / 200 if lead in limb else rounded[lead] for lead in LEADS}


def write_edf(path, values, unit="uV", label="ECG {}", bdf=False, **more):
    factor = {"uV": 1000.0, "mV": 1.0}[unit]
    limits = (-10 * factor, 10 * factor)
    kind, file = (edfio.BdfSignal, edfio.Bdf) if bdf else (edfio.EdfSignal, edfio.Edf)
    signals = [
        kind(row * factor, RATE, label=label.format(lead), physical_dimension=unit, physical_range=limits)
        for lead, row in values.items()
    ]
    born = datetime.date(1951, 5, 2)
    patient = edfio.Patient(code="MRN-4711", sex="F", birthdate=born, name="Jane_Doe-Miller")
    recording = edfio.Recording(startdate=datetime.date(2012, 6, 1))
    file(signals, patient=patient, recording=recording, data_record_duration=1, **more).write(path)
    return path


def write_dicom(path, values, meaning="Lead {}", group=("RHYTHM",), **patient):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.sequence import Sequence
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    def of(**fields):
        made = Dataset()
        for name, value in fields.items():
            setattr(made, name, value)
        return made

    codes = dict(zip(LEADS, (1, 2, 61, 62, 63, 64, 3, 4, 5, 6, 7, 8)))
    items = []
    for label in group:
        channels = [
            of(
                ChannelSourceSequence=Sequence(
                    [of(CodeValue=f"2:{codes[lead]}", CodingSchemeDesignator="MDC", CodeMeaning=meaning.format(lead))]
                ),
                ChannelSensitivity="2.5",
                ChannelSensitivityCorrectionFactor="2",
                ChannelBaseline="50",
                ChannelSensitivityUnitsSequence=Sequence([of(CodeValue="uV", CodingSchemeDesignator="UCUM")]),
            )
            for lead in values
        ]
        raw = np.stack([np.round(row * 200) - 10 for row in values.values()], axis=1).astype("<i2")
        item = of(
            MultiplexGroupLabel=label,
            NumberOfWaveformChannels=len(values),
            NumberOfWaveformSamples=len(raw),
            SamplingFrequency=str(RATE),
            ChannelDefinitionSequence=Sequence(channels),
            WaveformBitsAllocated=16,
            WaveformSampleInterpretation="SS",
        )
        item.WaveformData = (raw * (1 if label == "RHYTHM" else 0)).tobytes()
        items.append(item)
    dataset = of(
        PatientName="Doe-Miller^Jane", PatientID="MRN-4711", PatientBirthDate="19510502", PatientSex="F", Modality="ECG"
    )
    dataset.AcquisitionDateTime = "20120601101500"
    for name, value in patient.items():
        setattr(dataset, name, value)
    dataset.WaveformSequence = Sequence(items)
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.9.1.1", generate_uid()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def write_aecg(path, values, scale=("5", "uV"), prefix=""):
    per_unit = {"uV": 1000.0, "mV": 1.0}[scale[1]]
    p = prefix
    lead = "".join(
        f'<{p}component><{p}sequence><{p}code code="MDC_ECG_LEAD_{name.upper()}"/><{p}value xsi:type="SLIST_PQ">'
        f'<{p}origin value="0" unit="{scale[1]}"/><{p}scale value="{scale[0]}" unit="{scale[1]}"/>'
        f"<{p}digits>{' '.join(str(round(v * per_unit / float(scale[0]))) for v in row)}</{p}digits>"
        f"</{p}value></{p}sequence></{p}component>"
        for name, row in values.items()
    )
    time = (
        f'<{p}component><{p}sequence><{p}code code="TIME_ABSOLUTE"/><{p}value xsi:type="GLIST_TS">'
        f'<{p}head value="20120601101500"/><{p}increment value="{1 / RATE}" unit="s"/></{p}value>'
        f"</{p}sequence></{p}component>"
    )
    sets = f"<{p}sequenceSet>{time}{lead}</{p}sequenceSet>"
    space = f"xmlns{':' + p[:-1] if p else ''}"
    path.write_text(
        f'<?xml version="1.0" encoding="UTF-8"?><!-- a comment --><{p}AnnotatedECG {space}="urn:hl7-org:v3" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
        f'<{p}effectiveTime><{p}low value="20120601101500.000"/></{p}effectiveTime>'
        f"<{p}componentOf><{p}timepointEvent><{p}componentOf><{p}subjectAssignment><{p}subject><{p}trialSubject>"
        f'<{p}id extension="MRN-4711"/><{p}subjectDemographicPerson>'
        f"<{p}name><{p}family>Doe-Miller</{p}family></{p}name>"
        f'<{p}administrativeGenderCode code="F"/><{p}birthTime value="19510502"/></{p}subjectDemographicPerson>'
        f"</{p}trialSubject></{p}subject></{p}subjectAssignment></{p}componentOf></{p}timepointEvent></{p}componentOf>"
        f"<{p}component><{p}series><{p}component>{sets}</{p}component>"
        f"<{p}derivation><{p}derivedSeries><{p}component>{sets}</{p}component></{p}derivedSeries></{p}derivation>"
        f"</{p}series></{p}component></{p}AnnotatedECG>",
        encoding="utf-8",
    )
    return path


def write_muse(path, values, leads=STORED, doctype='<!DOCTYPE RestingECG SYSTEM "restecg.dtd">', encoding="ISO-8859-1"):
    def wave(kind, factor):
        rows = "".join(
            f"<LeadData><LeadSampleCountTotal>{len(values[lead])}</LeadSampleCountTotal>"
            "<LeadAmplitudeUnitsPerBit>5</LeadAmplitudeUnitsPerBit><LeadAmplitudeUnits>MICROVOLTS</LeadAmplitudeUnits>"
            f"<LeadID>{lead}</LeadID><WaveFormData>\n"
            + base64.encodebytes(np.round(values[lead] * 200 * factor).astype("<i2").tobytes()).decode()
            + "</WaveFormData><LeadSampleSize>2</LeadSampleSize></LeadData>"
            for lead in leads
        )
        return (
            f"<Waveform><WaveformType>{kind}</WaveformType><SampleBase>{RATE}</SampleBase>"
            f"<SampleExponent>0</SampleExponent>{rows}</Waveform>"
        )

    text = (
        f'<?xml version="1.0" encoding="{encoding}"?>{doctype}<RestingECG><PatientDemographics>'
        "<PatientID>MRN-4711</PatientID><PatientAge>61</PatientAge><AgeUnits>YEARS</AgeUnits><Gender>FEMALE</Gender>"
        "<DateofBirth>05-02-1951</DateofBirth><PatientLastName>Doe-Miller</PatientLastName></PatientDemographics>"
        f"{wave('Median', 0)}{wave('Rhythm', 1)}</RestingECG>"
    )
    path.write_bytes(text.encode(encoding))
    return path


def write_philips(path, values, compression="XLI", encoding="utf-8"):
    rows = {lead: np.round(row * 200).astype(int) for lead, row in values.items()}
    if compression == "XLI":
        one, two, three = rows["I"], rows["II"], rows["III"]
        rows["III"] = two - one - three
        for lead, expected in (
            ("aVR", -((one + two) // 2)),
            ("aVL", (one - three) // 2),
            ("aVF", (two + three) // 2),
        ):
            rows[lead] = expected - rows[lead]
        raw = b"".join(xli(row) for row in rows.values())
    else:
        raw = np.stack(list(rows.values())).astype("<i2").tobytes()
    text = (
        f'<?xml version="1.0" encoding="{encoding}"?><restingecgdata xmlns="http://www3.medical.philips.com"><patient>'
        "<generalpatientdata><patientid>MRN-4711</patientid><name><lastname>Doe-Miller</lastname></name>"
        "<age><dateofbirth>1951-05-02</dateofbirth><years>61</years></age><sex>Female</sex></generalpatientdata></patient>"
        f"<dataacquisition><signalcharacteristics><samplingrate>{RATE}</samplingrate><resolution>5</resolution>"
        '</signalcharacteristics></dataacquisition><waveforms><parsedwaveforms dataencoding="Base64" '
        f'compression="{compression}" numberofleads="12" leadlabels="{" ".join(rows)}">'
        f"{base64.b64encode(raw).decode()}</parsedwaveforms></waveforms></restingecgdata>"
    )
    path.write_bytes(text.encode(encoding))
    return path


def xli(row):
    """Encode samples by the rules of `seqssm_ecg.hospital.xli`."""
    differences = 64 + 2 * row[1:-1] - row[:-2] - row[2:]
    first, stored = differences[0] - 64, np.concatenate([row[:2], differences[1:], [64]]).astype(">i2")
    raw = stored.view("u1").reshape(-1, 2).T.tobytes()
    table = {bytes([value]): value for value in range(256)}
    codes, word = [], b""
    for byte in raw:
        longer = word + bytes([byte])
        if longer in table:
            word = longer
            continue
        codes.append(table[word])
        if len(table) <= 1022:
            table[longer] = len(table)
        word = bytes([byte])
    bits = "".join(f"{code:010b}" for code in [*codes, table[word]])
    packed = int(bits + "0" * (-len(bits) % 8), 2).to_bytes((len(bits) + 7) // 8, "big")
    return len(packed).to_bytes(4, "little") + b"\x01\x00" + int(first).to_bytes(2, "little", signed=True) + packed


def write_hdf5(path, values, attributes=True, transposed=False):
    table = np.stack(list(values.values())) * 1000
    with h5py.File(path, "w") as file:
        data = file.create_dataset("ecg/signal", data=table.T if transposed else table)
        if attributes:
            data.attrs["fs"], file["ecg"].attrs["leads"], file.attrs["unit"] = RATE, list(values), "uV"
            file.attrs["age"], file.attrs["sex"] = 61, "F"
    return path


WRITERS = {
    "a.edf": write_edf,
    "b.bdf": lambda path, values: write_edf(path, values, "mV", "Lead {}", bdf=True),
    "c.dcm": write_dicom,
    "d_aecg.xml": write_aecg,
    "e_muse.xml": write_muse,
    "f_philips.xml": write_philips,
    "g.h5": write_hdf5,
}
