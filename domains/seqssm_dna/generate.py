"""``seqssm dna generate``: sequences designed by a causal language model, restricted to A, C, G and T."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqssm.errors import InputError, nearest
from seqssm.nn.beam import beam_search
from seqssm.nn.generation import generate
from seqssm_dna.distances import Nearest
from seqssm_dna.files import read_labelled, say, stream_pieces, write_fasta
from seqssm_dna.records import suffix_of
from seqssm_dna.sources import TABLES
from seqssm_dna.tokens import BASE_COUNT, BOS, FIRST_BASE, Vocabulary, decode, encode, is_base

WORDS = {"lowest": 0.0, "low": 0.25, "middle": 0.5, "high": 0.75, "highest": 1.0}
"""Words for the bins of a property -> place between the first and the last one."""
LENGTH = 200  # bases, where the checkpoint does not say
LINE = 60  # letters per line of FASTA


@dataclass(frozen=True)
class Design:
    """A generated sequence.

    Attributes:
        letters: A, C, G, T.
        log_likelihood: of the letters behind the prompt, nats, among A, C, G and T.
        seed: of its random numbers; None for a beam search.
        distance: smallest edit distance to a training sequence; None where none was given.
        nearest: name of that sequence.
    """

    letters: str
    log_likelihood: float
    seed: int | None
    distance: int | None = None
    nearest: str = ""


def design(
    network: Any,
    prefix: Sequence[int],
    length: int,
    count: int,
    prompt: str = "",
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    beams: int = 1,
    seed: int = 0,
    batch_size: int = 64,
) -> list[Design]:
    """Generate sequences of one length.

    Sequence k depends on the prompt and on seed + k alone, not on the others.

    Args:
        network: a causal genome network.
        prefix: tokens in front of the bases: ``[BOS]`` and labels.
        length: bases per sequence, the prompt included.
        count: number of sequences.
        prompt: bases that every sequence begins with.
        temperature: of sampling; above 0.
        top_k: most probable bases that are drawn from.
        top_p: probability that the drawn-from bases reach together.
        beams: above 1: the best sequences of a beam search of this width.
        seed: of the first sequence.
        batch_size: sequences side by side.

    Raises:
        InputError: lengths or counts out of range.
    """
    given = encode(prompt, place="--prompt")
    if not is_base(given).all():
        raise InputError(f"--prompt {prompt}: expected A, C, G and T only")
    if length <= len(given):
        raise InputError(f"--length {length}: must be above that of the prompt ({len(given)})")
    start = [*prefix, *given.tolist()]
    common: dict[str, Any] = {"max_new_tokens": length - len(given)}
    common["allowed"] = range(FIRST_BASE, FIRST_BASE + BASE_COUNT)
    if beams > 1:
        found = beam_search(network, [start], beams=beams, **common)[0][:count]
        seeds: list[int | None] = [None] * len(found)
    else:
        found, seeds = [], list(range(seed, seed + count))
        sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        for first in range(0, count, batch_size):
            own = seeds[first : first + batch_size]
            found += generate(network, [start] * len(own), seeds=own, **sampling, **common)
    letters = [prompt.upper().replace("U", "T") + decode(one.ids.numpy()) for one in found]
    return [Design(text, one.log_prob, number) for text, one, number in zip(letters, found, seeds)]


def prefix_tokens(summary: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[list[int], dict[str, str]]:
    """Tokens in front of the bases, and the wanted labels by property.

    Args:
        summary: of the checkpoint.
        options: ``label``, ``bin``, ``expression``, ``class`` as on the command line.

    Raises:
        InputError: no such label, one that is missing, or a model without labels.
    """
    vocabulary = Vocabulary.from_dict(summary["vocabulary"])
    properties = list(summary["properties"])
    wanted: dict[str, str] = {}
    for text in options.get("label") or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--label {text}: expected PROPERTY=VALUE, e.g. {_example(vocabulary)}")
        wanted[name] = _value(name, value, summary, f"--label {text}", True)
    for flag, name, value in (
        ("--bin", properties[0] if properties else "", options.get("bin")),
        ("--expression", "expression", options.get("expression")),
        ("--class", "class", options.get("class")),
    ):
        if value is None:
            continue
        if flag == "--bin" and len(properties) > 1:
            raise InputError(f"--bin {value}: the model has several properties ({', '.join(properties)}); use --label")
        wanted[name] = str(value) if flag == "--bin" else _value(name, str(value), summary, f"{flag} {value}", False)
    if wanted and not properties:
        raise InputError("the model was trained without labels: leave --label, --bin, --expression and --class out")
    unknown = next((name for name in wanted if name not in properties), None)
    if unknown is not None:
        raise InputError(f"property {unknown!r}: the model has {', '.join(properties)}{nearest(unknown, properties)}")
    missing = [name for name in properties if name not in wanted]
    if missing:
        raise InputError(f"the model needs a label for {', '.join(missing)}: e.g. --label {_example(vocabulary)}")
    tokens = [BOS]
    for name in properties:
        try:
            tokens.append(vocabulary.prefix(f"{name}={wanted[name]}"))
        except InputError:
            known = ", ".join(one for one in vocabulary.prefixes if one.startswith(f"{name}="))
            raise InputError(f"{name}={wanted[name]}: the model has {known}") from None
    return tokens, wanted


def _value(name: str, value: str, summary: Mapping[str, Any], flag: str, bins_only: bool) -> str:
    """The value of a label as the vocabulary writes it: words and numbers in the user's unit become bins.

    Args:
        name: property.
        value: as given.
        summary: of the checkpoint.
        flag: for messages.
        bins_only: whether whole numbers are bins, and not values.
    """
    bins, properties = summary["bins"], list(summary["properties"])
    if bins is None or name not in properties or (value.isdigit() and bins_only):
        return value
    if value in WORDS:
        return str(round(WORDS[value] * (bins - 1)))
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value):
        what = f"a bin from 0 to {bins - 1}, a value with decimals" if bins_only else "a value in the data's unit"
        raise InputError(f"{flag}: expected {what} or one of {', '.join(WORDS)}")
    return str(int((float(value) >= np.array(summary["edges"][properties.index(name)])).sum()))


def _example(vocabulary: Vocabulary) -> str:
    return vocabulary.prefixes[-1] if vocabulary.prefixes else "expression=4"


def read_training(names: Sequence[str]) -> tuple[list[str], list[np.ndarray]]:
    """(names, ids) of training sequences.

    Args:
        names: FASTA, FASTQ, GenBank or table files.
    """
    titles, sequences = [], []
    for name in names:
        path = Path(name)
        if suffix_of(path) in TABLES:
            table = read_labelled(path, target=None)
            titles += table.ids
            sequences += [encode(letters) for letters in table.sequences]
            continue
        parts: list[bytes] = []
        for piece in stream_pieces(path):
            parts.append(piece.sequence)
            if piece.last:
                titles.append(piece.name)
                sequences.append(encode(b"".join(parts)))
                parts = []
    return titles, sequences


def compared(designs: Sequence[Design], titles: Sequence[str], sequences: Sequence[np.ndarray]) -> list[Design]:
    """The designs with their distance to the nearest training sequence, on either strand.

    Args:
        designs: the designs.
        titles: names of the training sequences.
        sequences: (L,) uint8 ids of each.
    """
    known, found = Nearest(sequences), []
    for one in designs:
        distance, place = known.of(encode(one.letters))
        found.append(Design(one.letters, one.log_likelihood, one.seed, distance, titles[place]))
    return found


def header(number: int, one: Design, wanted: Mapping[str, str]) -> str:
    """The FASTA header of a design.

    Args:
        number: from 1.
        one: the design.
        wanted: labels by property.
    """
    fields = [f"{name}={value}" for name, value in wanted.items()]
    fields += [f"log_likelihood={one.log_likelihood:.4f}", f"length={len(one.letters)}"]
    if one.seed is not None:
        fields.append(f"seed={one.seed}")
    if one.distance is not None:
        fields.append(f"training_distance={one.distance} nearest={one.nearest or '-'}")
    return " ".join([f"design{number}", *fields])


def run(options: dict[str, Any]) -> int:
    """Run the command ``generate``."""
    if len(options["inputs"]) != 1:
        raise InputError("expected one model: seqssm dna generate MODEL")
    _require(options)
    model, network = load_language_model(options["inputs"][0], options["accelerator"])
    prefix, wanted = prefix_tokens(model.summary, options)
    trained = model.summary["context"] if model.summary["properties"] else None
    length = options["length"] or trained or LENGTH
    limit = model.summary["context"]
    everything = network.has_attention and network.attn_window is None
    if everything and limit and length > limit:
        raise InputError(f"--length {length}: attention without attn_window was trained on {limit} bases at most")
    names = ("count", "prompt", "temperature", "top_k", "top_p", "beams", "seed", "batch_size")
    with torch.inference_mode():
        designs = design(network, prefix, length, **{name: options[name] for name in names})
    if options["training"]:
        titles, sequences = read_training(options["training"])
        designs = compared(designs, titles, sequences)
    records = [(header(number, one, wanted), one.letters) for number, one in enumerate(designs, 1)]
    report(designs)
    if options["output"]:
        write_fasta(options["output"], records, LINE)
        print(f"written: {options['output']}")
    else:
        for title, letters in records:
            print(f">{title}\n" + "\n".join(letters[k : k + LINE] for k in range(0, len(letters), LINE)))
    return 0


def load_language_model(path: str, accelerator: str) -> tuple[Any, Any]:
    """(model, causal network) of a checkpoint.

    Args:
        path: checkpoint or run folder.
        accelerator: device type.

    Raises:
        InputError: another domain, or a model that does not generate.
    """
    from seqssm.prediction.model import load

    model = load(path, accelerator)
    if model.domain.name != "dna":
        raise InputError(f"belongs to the domain {model.domain.name}", file=model.path)
    network: Any = model.network
    if not getattr(network, "causal", False):
        kind = "a masked language model" if hasattr(network, "causal") else "a classifier"
        raise InputError(f"is {kind}; sequences are generated by causal language models", file=model.path)
    return model, network


def report(designs: Sequence[Design]) -> None:
    """Print what should be known of designs on stderr.

    Args:
        designs: the designs.
    """
    distinct = len({one.letters for one in designs})
    strong = np.mean([(one.letters.count("G") + one.letters.count("C")) / len(one.letters) for one in designs])
    say(f"{len(designs)} sequences, {distinct} distinct, {100 * strong:.1f} % G+C")
    distances = [one.distance for one in designs if one.distance is not None]
    if distances:
        copies = sum(distance == 0 for distance in distances)
        say(
            f"edit distance to the nearest training sequence: {min(distances)} to {max(distances)}, "
            f"mean {np.mean(distances):.1f}; {copies} copies"
        )


def _require(options: Mapping[str, Any]) -> None:
    """Checks of the flags that need no model."""
    for name in ("count", "beams", "batch_size"):
        if options[name] < 1:
            raise InputError(f"--{name.replace('_', '-')} {options[name]}: must be at least 1")
    if options["length"] is not None and options["length"] < 1:
        raise InputError(f"--length {options['length']}: must be at least 1")
    if not 0 < options["temperature"] < float("inf"):
        raise InputError(f"--temperature {options['temperature']}: must be above 0")
    if options["top_k"] is not None and not 1 <= options["top_k"] <= BASE_COUNT:
        raise InputError(f"--top-k {options['top_k']}: expected 1 to {BASE_COUNT}")
    if options["top_p"] is not None and not 0 < options["top_p"] <= 1:
        raise InputError(f"--top-p {options['top_p']}: expected above 0 and at most 1")
    sampling = options["top_k"] is not None or options["top_p"] is not None or options["temperature"] != 1
    if options["beams"] > 1 and sampling:
        raise InputError("--beams searches and draws nothing: leave --temperature, --top-k and --top-p out")
    if 1 < options["beams"] < options["count"]:
        raise InputError(f"--count {options['count']}: a search of --beams {options['beams']} finds no more sequences")
    require_new(options["output"], options["overwrite"])
    if options["seed"] < 0:
        raise InputError(f"--seed {options['seed']}: must be at least 0")


def require_new(name: str | None, overwrite: bool) -> None:
    """Check that an output does not exist.

    Args:
        name: of the file; None: printed.
        overwrite: whether it may.

    Raises:
        InputError: it does.
    """
    if name is not None and Path(name).exists() and not overwrite:
        raise InputError("already exists; choose another --output or pass --overwrite", file=name)
