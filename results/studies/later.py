"""Study of classes that are learned later: Omniglot sessions.

Every model is trained once per seed, and extended by `seqssm.incremental`; finished runs and arms are kept in
`runs/real` and not repeated. `SEQSSM_STUDY_SEEDS` sets the seeds (1,2,3).
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.common import RUNS, Study, install_images, markdown, seeds, seqssm

SESSIONS = 8
EPOCHS = 15
ARMS = ("base branch only", "dual", "dual, suppression", "dual, suppression, separation")
METHODS = ("model", "nearest mean", "linear probe")


def recipe(arm: str, seed: int) -> Any:
    """How an arm learns."""
    from seqssm.incremental.learn import RECIPE, Recipe

    return Recipe(
        seed=seed,
        branch="base" if arm == ARMS[0] else "new",
        on_base=RECIPE.on_base if "suppression" in arm else 0.0,
        on_novel=RECIPE.on_novel if "suppression" in arm else 0.0,
        separate=RECIPE.separate if "separation" in arm else 0.0,
    )


# -- Omniglot ----------------------------------------------------------------------------------------------------------


def omniglot(folder: Path) -> None:
    """Write the files of the sessions: base characters with their split, shots and test images of each session."""
    import numpy as np

    from seqssm.files.datasets import find_data_set

    content = np.load(find_data_set("fewshot", "omniglot.npz"))
    session, role, label = content["session"], content["role"], content["label"]
    names = np.array([f"{number:03d}" for number in np.maximum(label, 0)])
    folder.mkdir(parents=True, exist_ok=True)
    base = session == 0
    split = np.where(role[base] == 0, "train", "test")
    np.savez(folder / "base.npz", images=content["images"][base], labels=names[base], split=split)
    for number in range(1, SESSIONS + 1):
        for title, own in (("shots", 0), ("test", 1)):
            rows = (session == number) & (role == own)
            np.savez(folder / f"{title}_{number}.npz", images=content["images"][rows], labels=names[rows])


FIT = ("--model.d_model", "100", "--model.stem", "3", "--model.layers", "1", "--model.order", "bidirectional")
FIT += ("--model.head", "etf", "--model.max_classes", "100", "--model.projector", "base", "--model.schedule", "cosine")
FIT += ("--model.warmup_steps", "50", "--model.threads", "1", "--data.jitter", "0.06", "--trainer.accelerator", "cpu")
FIT += ("--trainer.max_epochs", str(EPOCHS), "--trainer.gradient_clip_val", "1.0", "--overwrite")


def omniglot_sessions() -> dict[str, Any]:
    """60 base characters, then 8 sessions of 5 characters with 5 shots each: four arms and the controls."""
    install_images()
    folder = RUNS / "omniglot_sessions"
    if not (folder / f"test_{SESSIONS}.npz").is_file():
        omniglot(folder)
    rows = []
    for seed in seeds():
        run = folder / f"seed-{seed}"
        if not (run / "best.ckpt").is_file():
            data = ("--data.file", str(folder / "base.npz"), "--output", str(run))
            seqssm("images", "fit", "--config", "images", *data, *FIT, "--seed_everything", str(seed))
        sessions = None
        for arm in (*ARMS, *METHODS[1:]):
            kept = run / f"{arm.replace(' ', '_').replace(',', '')}.json"
            if not kept.is_file():
                sessions = sessions or read_sessions(folder, run)
                kept.write_text(json.dumps(of_arm(sessions, arm, seed)), encoding="utf-8")
            rows += json.loads(kept.read_text(encoding="utf-8"))
            print(rows[-1], flush=True)
    return {"epochs": EPOCHS, "rows": rows}


@dataclass
class Sessions:
    """A fitted model, and what its projector and head read of every session.

    Attributes:
        path: the checkpoint.
        names: names of all classes in the order of their arrival.
        shots: support records of the sessions 1 to 8.
        augmented: the same with the augmentation of the training.
        tests: test records of the sessions 0 to 8.
    """

    path: Path
    names: list[str]
    shots: dict[int, Any]
    augmented: dict[int, Any]
    tests: list[Any]


def read_sessions(folder: Path, run: Path) -> Sessions:
    """Read all images once through the frozen network: no session changes what its projector reads."""
    from seqssm.domain import domains
    from seqssm.incremental.learn import RECIPE
    from seqssm.incremental.records import Reader, inputs_of
    from seqssm.training import checkpoint

    assert "images" in domains()
    path = checkpoint.find_checkpoint(run)
    content = checkpoint.read_checkpoint(path)
    task = checkpoint.build_task(content, path)
    reader = Reader(path, content["seqssm"], {})
    names = list(content["seqssm"]["data"]["classes"])
    names += [name for number in range(1, SESSIONS + 1) for name in reader.class_names(folder / f"shots_{number}.npz")]

    def read(file: Path | None) -> Any:
        return inputs_of(task, [reader.read(file, names)], "cpu")

    shots, augmented = {}, {}
    for number in range(1, SESSIONS + 1):
        shots[number] = read(folder / f"shots_{number}.npz")
        augmented[number] = inputs_of(task, reader.augmented(RECIPE.copies, number), "cpu")
    tests = [read(None), *(read(folder / f"test_{one}.npz") for one in shots)]
    return Sessions(path, names, shots, augmented, tests)


def of_arm(sessions: Sessions, arm: str, seed: int) -> list[dict[str, Any]]:
    """Learn the sessions one after the other, as repeated calls of `extend` do, and test after each.

    The controls have the features of the fit, whatever the arm, and the records without augmentation, with which they
    are better.
    """
    import torch
    from seqssm_images.data import ImageData

    from seqssm.incremental.growth import SESSIONS as LEARNED
    from seqssm.incremental.growth import grown
    from seqssm.incremental.learn import learn
    from seqssm.incremental.procedure import Controls
    from seqssm.training import checkpoint
    from seqssm.training.class_means import ENTRY, ClassInputs, ClassMeans, base_features, means_of

    torch.set_num_threads(1)
    content = checkpoint.read_checkpoint(sessions.path)
    first = task = checkpoint.build_task(content, sessions.path).eval()
    base = list(content["seqssm"]["data"]["classes"])
    means = own = ClassMeans.from_dict(content["seqssm"][ENTRY]).select(base)
    rows = []
    for number in range(SESSIONS + 1):
        count = len(base) + number * (len(sessions.names) - len(base)) // SESSIONS
        names, tests = sessions.names[:count], ClassInputs.joined(sessions.tests[: number + 1])
        shots = sessions.shots.get(number, tests.rows(torch.zeros(0, dtype=torch.int64)))
        if number and arm in ARMS:
            state = content.get("state_dict") or task.state_dict()
            content, bigger = grown({**content, "state_dict": state}, sessions.path, ImageData, names)
            augmented = sessions.augmented[number]
            learn(bigger.model, own, shots, len(base), len(own), recipe(arm, seed), augmented)
            content["seqssm"][LEARNED] = [*content["seqssm"][LEARNED], names[len(own) :]]
            own, task = own.merged(means_of(task.model, [shots], sessions.names)), bigger
        if arm in ARMS:
            with torch.no_grad():
                decided = task.model.classify(tests.pooled, tests.tokens).argmax(1)
        else:
            decided = Controls(first, means, shots, count).decide(base_features(first.model, tests), True)[arm]
            means = means.merged(means_of(first.model, [shots], sessions.names)) if number else means
        rows.append({"arm": arm, "seed": seed, "session": number, **judged(tests.y, decided, len(base), count)})
    return rows


def judged(truth: Any, decided: Any, base: int, count: int) -> dict[str, float]:
    """Accuracy averaged over all, base and novel classes, and the standard error over all."""
    from seqssm.incremental.accuracy import of_classes

    value, error = of_classes(truth, decided, range(count))
    found = {"all": value, "error": error, "base": of_classes(truth, decided, range(base))[0]}
    return found | ({"novel": of_classes(truth, decided, range(base, count))[0]} if count > base else {})


def omniglot_sessions_table(study: dict[str, Any]) -> str:
    """Mean over the sessions, first and last session, base and novel classes, and the drop on base classes, by arm."""
    head = ["arm", "mean of sessions 0-8, %", "session 0", "session 8", "standard error", "base at 8", "novel at 8"]
    lines = [[*head, "base drop"]]
    seen = list(dict.fromkeys(row["seed"] for row in study["rows"]))
    means, drops = {}, {}
    for arm in (*ARMS, *METHODS[1:]):
        own = [row for row in study["rows"] if row["arm"] == arm]
        first, last = ([row for row in own if row["session"] == number] for number in (0, SESSIONS))
        means[arm] = [statistics.fmean(row["all"] for row in own if row["seed"] == seed) for seed in seen]
        drops[arm] = [a["base"] - b["base"] for a, b in zip(first, last, strict=True)]
        cells = [percent(means[arm]), *(percent([row["all"] for row in part]) for part in (first, last))]
        cells += [percent([row[name] for row in last]) for name in ("error", "base", "novel")]
        title = "nearest class mean" if arm == METHODS[1] else arm
        lines.append([title, *cells, percent(drops[arm])])
    control = METHODS[1]
    best = max(ARMS[1:], key=lambda arm: statistics.fmean(means[arm]))
    ahead = [a - b for a, b in zip(means[best], means[control], strict=True)]
    lost = 100 * (statistics.fmean(drops[best]) - statistics.fmean(drops[control]))
    count = f"{len(seen)} seed" + ("s" if len(seen) > 1 else "")
    note = f"Accuracy averaged over classes, {count}; standard error from the number of test images after session 8. "
    note += f"Best dual arm: {best}; its mean over sessions minus that of the nearest class mean, by seed: "
    note += ", ".join(f"{100 * one:+.1f}" for one in ahead)
    note += f" points; its base drop minus that of the nearest class mean: {lost:+.1f}."
    return f"{markdown(lines)}\n\n{note}"


def percent(values: list[float]) -> str:
    """Mean in percent, with the standard deviation over several seeds."""
    mean = 100 * statistics.fmean(values)
    return f"{mean:.1f}" if len(values) < 2 else f"{mean:.1f} ± {100 * statistics.stdev(values):.1f}"


STUDIES: dict[str, Study] = {
    "omniglot_sessions": (omniglot_sessions, omniglot_sessions_table),
}
