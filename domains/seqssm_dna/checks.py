"""Options of a prediction that do not fit the model, the inputs or each other: found before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from seqssm.errors import InputError, unknown_output
from seqssm.files.disk import require_writable
from seqssm_dna.further import ids_beside, require_embeddings
from seqssm_dna.sources import Kind
from seqssm_dna.vcf import require_scorable

FILES = ("track", "embeddings", "write_vcf", "summary")
"""Options that name a file which a prediction writes beside its table."""


def flag(name: str) -> str:
    """An option as the user types it.

    Args:
        name: of the option.
    """
    return "--" + name.replace("_", "-")


def require_one_model(inputs: Sequence[Any], usage: str) -> None:
    """Check that a command was given one model and nothing else.

    Args:
        inputs: its arguments.
        usage: the command, for the message.

    Raises:
        InputError: more than one argument.
    """
    if len(inputs) != 1:
        found = ", ".join(map(str, inputs[:4]))
        raise InputError(f"expected one model, found {len(inputs)}: {found}; usage: seqssm dna {usage}")


def require_for_model(options: Mapping[str, Any], names: Sequence[str], causal: bool, limit: int | None) -> None:
    """Check options against the model.

    Args:
        options: of the prediction, by name.
        names: outputs of a classifier; none of a language model.
        causal: whether a language model is causal.
        limit: letters that attention without a window was trained on; None: any number.

    Raises:
        InputError: an option is for another kind of model, or a window is too long.
    """
    if names or not causal:
        require_window(options["window"], limit)
    if options["class"] is not None and options["class"] not in names:
        known = names or ["no classes, because it is a language model"]
        raise unknown_output("--class", options["class"], known)
    if options["per_window"] and not names and options["window"] is None:
        raise InputError("--per-window requires --window LETTERS with a language model")
    if options["embeddings"]:
        require_embeddings(options["embeddings"])


def require_window(window: int | None, limit: int | None) -> None:
    """Check that attention was trained on windows of this length.

    Args:
        window: the option; None where not given.
        limit: letters that attention without a window was trained on; None: any number.

    Raises:
        InputError: the window is longer.
    """
    if window is not None and limit is not None and window > limit:
        raise InputError(f"--window {window}: the model's attention has no window and was trained on {limit} letters")


def require_for_inputs(
    options: Mapping[str, Any], kind: Kind, inputs: Sequence[Path], reads_any: bool, limit: int | None
) -> None:
    """Check options against the inputs.

    Args:
        options: of the prediction, by name.
        kind: of the inputs.
        inputs: files.
        reads_any: whether the model is a causal language model.
        limit: letters that attention without a window was trained on; None: any number.

    Raises:
        InputError: a reference is missing or not needed, or an option is for another kind of inputs.
    """
    first = inputs[0]
    if kind in ("vcf", "bed") and options["reference"] is None:
        raise InputError("requires --reference FILE, the sequences that its positions refer to", file=first)
    if kind not in ("vcf", "bed") and options["reference"] is not None:
        message = "--reference applies to VCF and BED inputs only; this file has neither their suffix nor a VCF header"
        raise InputError(message, file=first)
    if options["write_vcf"] and (kind != "vcf" or len(inputs) > 1):
        raise InputError("--write-vcf requires a single VCF file as input")
    if kind == "vcf":
        for name in ("track", "embeddings", "per_window", "step"):
            if options[name]:
                raise InputError(f"{flag(name)} requires sequences or intervals, not variants", file=first)
        require_window(options["window"], limit)
    elif options["class"] is not None:
        raise InputError("--class has no effect on sequences: it compares the alleles of a VCF file", file=first)
    elif reads_any and options["window"] is not None and not options["per_window"]:
        raise InputError("--window requires --per-window: a causal language model reads whole records", file=first)


def require_files(options: Mapping[str, Any], inputs: Sequence[Path], output: Path | None) -> None:
    """Check that the further files can be written and replace neither an input nor each other.

    Args:
        options: of the prediction, by name.
        inputs: files.
        output: the table; None where there is none.

    Raises:
        InputError: a file is an input or named twice, is a folder, or cannot be written.
    """
    given = {flag(name): Path(options[name]) for name in FILES if options[name]}
    if options["embeddings"] and given["--embeddings"].suffix == ".npy":
        given["--embeddings (its ids)"] = ids_beside(given["--embeddings"])
    read = [*inputs, *([Path(options["reference"])] if options["reference"] else [])]
    for name, path in given.items():
        if any(path.resolve() == one.resolve() for one in read):
            raise InputError(f"is also an input; choose a different {name}", file=path)
        if path.is_dir():
            raise InputError(f"{name} is a folder; give a file", file=path)
        require_writable(path.absolute().parent)
    for (one, path), (two, other) in combinations([("--output", output), *given.items()], 2):
        if path is not None and other is not None and path.resolve() == other.resolve():
            raise InputError(f"{one} and {two} name the same file", file=other)
    if options["write_vcf"]:
        require_scorable(inputs[0], given["--write-vcf"], options["vcf_field"])
