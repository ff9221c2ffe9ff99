"""Demo: simulated recordings with known diagnoses, a small model, its scores, and ECG pages with attribution."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from seqssm.tools.page import Section, read_test_table
from seqssm_ecg import simulate

RECORDS, SECONDS, SEED = 600, 6.0, 7
MEANING = {
    "NORM": "sinus rhythm, nothing else",
    "AF": "atrial fibrillation: irregular, no P waves",
    "STach": "sinus tachycardia: fast",
    "LBBB": "left bundle branch block: broad, notched complexes",
    "PVC": "premature ventricular complexes: early and broad",
}


def demo(folder: Path) -> list[Section]:
    """Simulate recordings, then train, test and predict through the command line; about a minute on two cores.

    Args:
        folder: output folder.
    """
    from seqssm.cli.main import run

    records = folder / "records"
    manifest = simulate.folder(records, RECORDS, SEED, SECONDS)
    fresh = folder / "new"
    simulate.folder(fresh, 3, SEED + 1, 10.0)
    run_folder, table, pages = folder / "run", folder / "predictions.csv", folder / "pages"
    fit = ["--config", "ecg_small", "--data.manifest", str(manifest), "--data.window_s", str(SECONDS)]
    fit += ["--trainer.max_epochs", "14", "--trainer.accelerator", "cpu", "--model.threads", "1"]
    fit += ["--model.warmup_steps", "20", "--model.d_model", "48"]
    run(["ecg", "fit", *fit, "--seed_everything", str(SEED), "--output", str(run_folder)])
    run(["ecg", "test", str(run_folder)])
    predict = ["predict", str(run_folder / "best.ckpt"), str(fresh), "--output", str(table), "--accelerator", "cpu"]
    run([*predict, "--figures", str(pages), "--attribution-class", "highest"])
    return [_scores(run_folder), _smaller(run_folder, folder / "small.ckpt"), _page(table, fresh, pages)]


def _smaller(run_folder: Path, output: Path) -> Section:
    """Compress the model to 8 bits and compare both on the test records."""
    from seqssm.compress.methods import METHODS
    from seqssm.compress.procedure import HEADER, Request, compress, rows_of

    done = compress(Request(run_folder, METHODS["w8a8"], output))
    assert done.comparison is not None
    score = next(one for one in done.comparison.scores if one.name == "auroc")
    times = done.before.projections / done.after.projections
    scores = f"macro AUROC {score.before:.3f} before, {score.after:.3f} after"
    text = (
        "`seqssm compress run --method w8a8 --output small.ckpt` stores the weights of all projections in 8 bits, and "
        "rounds their inputs and those of the scan to 8 bits. The scales were calibrated on validation records. Both "
        "models were tested on the same records; the interval is that of the difference. `small.ckpt` is used like any "
        "other checkpoint. A model of this size is small anyway; the factor of its projections holds for large ones."
    )
    return Section(
        "ECG: the same model in 8 bits",
        text,
        [("Before and after", pd.DataFrame(rows_of(done), columns=["quantity", *HEADER[1:]]))],
        headline=f"Projections {times:.1f} times smaller; {scores}.",
    )


def _scores(run_folder: Path) -> Section:
    """Format the tables of `test`."""
    models, classes = read_test_table(run_folder, "Test"), read_test_table(run_folder, "By class")
    meaning = "; ".join(f"{name}: {what}" for name, what in MEANING.items())
    text = (
        f"{RECORDS} simulated recordings of {SECONDS:g} s and twelve leads ({meaning}). The network, 1-D convolutions "
        "and a bidirectional Mamba encoder, was trained on 80 % of them. Another 10 % selected the epoch and were used "
        "to fit the temperature and one threshold per class; the scores are those of the remaining 10 %. The linear "
        "baseline uses 19 features per lead.\n\n"
        "Simulated recordings are easier than real ones. Scores on real recordings are in the README of the domain."
    )
    own, *others = zip(models["model"], models["auroc"])
    beside = ", ".join(f"{name} {value:.3f}" for name, value in others)
    headline = f"Macro AUROC {own[1]:.3f} on recordings that were not used for training ({beside})."
    shown = classes[["class", "positives", "auroc", "5 %", "95 %", "auprc", "f1", "threshold"]]
    return Section(
        "ECG: several diagnoses from twelve leads",
        text,
        [("Test", models[["model", "auroc", "auprc", "f1", "accuracy", "calibration_error"]]), ("By class", shown)],
        [run_folder / "figures" / "curves.png"],
        headline=headline,
    )


def _page(table: Path, fresh: Path, pages: Path) -> Section:
    """Show the predictions of new recordings with the true classes, and their pages."""
    found = pd.read_csv(table)
    truth = pd.read_csv(fresh / "manifest.csv")
    classes = list(simulate.CLASSES)
    found["truth"] = [", ".join(name for name in classes if row[name]) for _, row in truth.iterrows()]
    text = (
        "`seqssm predict` on a folder of new recordings writes one row per recording, with a probability and a "
        "prediction for each class; the table shows the probabilities beside the true classes. `--figures` draws "
        "a page per recording in the layout of an electrocardiograph (25 mm/s, 10 mm/mV).\n\n"
        "With `--attribution-class`, blue marks the samples that influence the logit of a class, here the most "
        "probable one (integrated gradients); the bars show the fraction per lead. The attribution covers the ten "
        f"seconds of the page, although the model was trained on windows of {SECONDS:g} seconds: it reads "
        "recordings of any length."
    )
    return Section(
        "ECG: new recordings",
        text,
        [("Predictions", found[["id", *(f"p_{name}" for name in classes), "truth", "status"]])],
        sorted(pages.glob("*.png"))[:2],
    )
