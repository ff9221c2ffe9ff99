"""Studies of smaller models: weights of one bit in a character model, and a set of students on MNIST."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studies.common import ROOT, RUNS, Study, install_images, markdown, relative, seeds, seqssm, spread

# -- weights of one bit ------------------------------------------------------------------------------------------------

SEEDS = (1, 2, 3)
STEPS = 600


def data_file(path: str) -> Path:
    """A file of the data folders (`SEQSSM_DATA`)."""
    for folder in os.environ.get("SEQSSM_DATA", "").split(os.pathsep):
        if folder and (Path(folder) / path).is_file():
            return Path(folder) / path
    raise SystemExit(f"{path} is in no folder of the environment variable SEQSSM_DATA")


def char_lm() -> dict[str, Any]:
    """`examples/char_lm.py` on tinyshakespeare: float, signs after training, one bit from scratch and distilled."""
    spec = importlib.util.spec_from_file_location("char_lm", ROOT / "examples" / "char_lm.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = example  # dataclasses look their module up
    spec.loader.exec_module(example)
    text = example.read(data_file("language/tinyshakespeare.txt.gz"))
    folder = RUNS / "char_lm"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in SEEDS:
        kept = folder / f"seed-{seed}-{STEPS}.json"
        if not kept.is_file():
            found, sizes = example.compare(text, example.Settings(steps=STEPS), seed)
            kept.write_text(json.dumps({"seed": seed, "bits": found, "sizes": sizes}), encoding="utf-8")
        rows.append(json.loads(kept.read_text(encoding="utf-8")))
        print(rows[-1], flush=True)
    seeds = ",".join(map(str, SEEDS))
    command = f"python examples/char_lm.py --text tinyshakespeare.txt.gz --steps {STEPS} --seeds {seeds}"
    return {"command": command, "rows": rows}


def char_lm_table(study: dict[str, Any]) -> str:
    """Bits per character, mean and standard deviation over the seeds, and the ratio to the float model."""
    rows = study["rows"]
    base = sum(row["bits"]["float"] for row in rows)
    lines = [["model", "bits per character", "over float", "each seed"]]
    for name in rows[0]["bits"]:
        values = [row["bits"][name] for row in rows]
        each = ", ".join(f"{value:.3f}" for value in values)
        lines.append([name, spread(values), f"{sum(values) / base:.2f}", each])
    sizes = rows[0]["sizes"]
    ratio = sizes["float32"] / sizes["packed"]
    return (
        f"{markdown(lines)}\n\n{100 * sizes['binary']:.1f} % of the parameters are binary. The projections have "
        f"{sizes['float32']:,} bytes in float32 and {sizes['packed']:,} packed, {ratio:.1f} times less.\n\n"
        f"`{study['command']}`"
    )


# -- a set of students -------------------------------------------------------------------------------------------------

TEACHER = {"d_model": "32", "layers": "2", "stem": "3", "order": "cross"}
EPOCHS, STUDENT_EPOCHS, STUDENTS, BUDGET, ALONE = 6, 12, 2, 0.6, 0.5


def mnist_file(folder: Path) -> Path:
    """MNIST as the worked domain of image arrays reads it, with its own split."""
    import numpy as np

    target = folder / "mnist.npz"
    if not target.is_file():
        with np.load(data_file("images/mnist.npz")) as archive:
            split = np.where(archive["train_split"] == 0, "train", "val")
            arrays = {
                "images": np.concatenate([archive["train_images"], archive["test_images"]]),
                "labels": np.concatenate([archive["train_labels"], archive["test_labels"]]),
                "split": np.concatenate([split, np.full(len(archive["test_labels"]), "test")]),
            }
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(target, **arrays)
    return target


def mnist_distill() -> dict[str, Any]:
    """A teacher on MNIST and students that together have 60 % of its operations, with one student of as many."""
    install_images()
    folder = RUNS / "mnist_distill"
    teacher, output = folder / "teacher", folder / "set.ckpt"
    words = ["images", "fit", "--config", "images", "--data.file", str(mnist_file(folder).relative_to(ROOT))]
    words += [word for name, value in TEACHER.items() for word in (f"--model.{name}", value)]
    words += ["--model.schedule", "cosine", "--model.warmup_steps", "100", "--data.batch_size", "64"]
    words += ["--trainer.max_epochs", str(EPOCHS), "--trainer.accelerator", "cpu", "--model.threads", "1"]
    words += ["--seed_everything", "1"]
    if not (teacher / "metrics.json").is_file():
        seqssm(*words, "--output", relative(teacher), "--overwrite")
        seqssm("images", "test", relative(teacher))
    os.chdir(ROOT)
    longer = ("--trainer.max_epochs", str(STUDENT_EPOCHS))
    done = distilled(teacher, output, STUDENTS, BUDGET, longer, ALONE)
    command = f"seqssm distill runs/real/mnist_distill/teacher --students {STUDENTS} --budget {BUDGET} --alone {ALONE}"
    command = " ".join((command, *longer))
    return {"command": "seqssm " + " ".join(words), "distill": command, **done}


def distilled(
    teacher: Path, output: Path, students: int, budget: float, overrides: Sequence[str] = (), alone: float = 0.0
) -> dict[str, Any]:
    """Distil a trained model; return the operations of the teacher and the rows of the table."""
    from seqssm.compress.distil import Request, distil, text

    request = Request(
        teacher, output, students=students, budget=budget, alone=alone, overwrite=True, overrides=overrides
    )
    done = distil(request)
    print(text(done), flush=True)
    rows = [{"model": row.name, "size": [row.width, row.depth], "flops": row.flops, **row.scores} for row in done.rows]
    return {"flops": done.flops, "rows": rows}


ECG_STUDENTS, ECG_BUDGET = 2, 0.9  # the smallest student has 34 % of the operations, most of them in the stem


def ecg_distill() -> dict[str, Any]:
    """Students of the bidirectional Mamba models of the study `ecg_ptbxl_small`, which is run first."""
    os.chdir(ROOT)
    folder = RUNS / "ecg_distill"
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in seeds():
        kept = folder / f"seed-{seed}.json"
        if not kept.is_file():
            run = RUNS / "ecg_ptbxl_small" / "mamba" / f"seed-{seed}"
            done = distilled(run, folder / f"seed-{seed}.ckpt", ECG_STUDENTS, ECG_BUDGET)
            kept.write_text(json.dumps(done), encoding="utf-8")
        found.append(json.loads(kept.read_text(encoding="utf-8")))
    command = f"seqssm distill runs/real/ecg_ptbxl_small/mamba/seed-1 --students {ECG_STUDENTS} --budget {ECG_BUDGET}"
    return {"distill": command, "seeds": found}


def ecg_distill_table(study: dict[str, Any]) -> str:
    """Macro AUROC over operations, mean and standard deviation over the seeds."""
    lines = [["model", "width x layers", "operations", "test AUROC", "each seed", "mean difference to the teacher"]]
    for rows in zip(*(seed["rows"] for seed in study["seeds"])):
        values = [row["auroc"] for row in rows]
        difference = sum(values) - sum(seed["rows"][0]["auroc"] for seed in study["seeds"])
        width, depth = rows[0]["size"]
        each = ", ".join(f"{value:.4f}" for value in values)
        last = f"{difference / len(values):+.4f}" if rows[0]["model"] != "teacher" else ""
        lines.append(
            [rows[0]["model"], f"{width} x {depth}", f"{100 * rows[0]['flops']:.1f} %", spread(values), each, last]
        )
    return (
        f"{markdown(lines)}\n\nThe teacher has {study['seeds'][0]['flops']:,} operations per record; the size of a sum "
        f"is that of its last student.\n\n`{study['distill']}`, and so on for each seed"
    )


def distill_table(study: dict[str, Any]) -> str:
    """Accuracy over operations: the teacher, the sums of the first students, and one student of the same budget."""
    teacher = study["rows"][0]["accuracy"]
    lines = [["model", "width x layers", "operations", "test accuracy", "difference to the teacher, points"]]
    for row in study["rows"]:
        width, depth = row["size"]
        difference = 100 * (row["accuracy"] - teacher)
        lines.append(
            [
                row["model"],
                f"{width} x {depth}",
                f"{100 * row['flops']:.1f} %",
                f"{row['accuracy']:.4f}",
                f"{difference:+.2f}" if row is not study["rows"][0] else "",
            ]
        )
    return (
        f"{markdown(lines)}\n\nThe teacher has {study['flops']:,} operations per image; the size of a sum is that of "
        f"its last student. One seed.\n\n`{study['command']}`, then `{study['distill']}`"
    )


STUDIES: dict[str, Study] = {
    "char_lm": (char_lm, char_lm_table),
    "mnist_distill": (mnist_distill, distill_table),
    "ecg_distill": (ecg_distill, ecg_distill_table),
}
