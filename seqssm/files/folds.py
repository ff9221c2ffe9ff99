"""Columns of folds of the users' tables: found by their names, with numbers or names of folds in their cells."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from seqssm.errors import InputError
from seqssm.files.notation import is_number
from seqssm.files.splits import FLAGS, SPLIT_NAMES

_NAME = re.compile(
    r"(?:(?:strat|cv|k|inner|outer|test|val)_?)*folds?_?(?:id|no|nr|num|number|index|split|group)?_?\d*"
    r"|(?:cv|x_?val|cross_?val(?:idation)?)(?:_?(?:id|split|group|part|partition|set))?"
    r"|splits?|partitions?|subset"
)
_SET = re.compile(r"(?:data_?|split_?)?sets?(?:_?(?:id|no|nr|num|number|index))?|data_?(?:split|partition|subset)s?")
LISTED = 5  # maximum number of merged folds in a message
MOST_NAMES = 50  # maximum number of folds with names, and in columns whose name does not say that they hold folds
MOST_FOLDS = 20  # maximum number of folds that leave no doubt
OTHER = "or pass --data.split_column none for random folds"
_CELL = re.compile(r"(?:([^\W\d_]+)[\s_.:#-]*)?(\d{1,9})(?:\.0+)?")


@dataclass(frozen=True)
class FoldColumn:
    """A column of folds.

    Attributes:
        name: name of the column.
        numbers: fold of each row; None where the cell is empty or damaged.
        cells: names of the folds as in the table, by number.
        texts: cell of each row.
        damaged: first row whose cell is not a fold, and the cell; None if all are.
        others: further columns of folds, none of which was chosen.
        decides: whether the user chose the column, or its name says that it determines the split.
    """

    name: str
    numbers: list[int | None]
    cells: dict[int, str]
    texts: list[str]
    damaged: tuple[int, str] | None = None
    others: tuple[str, ...] = ()
    decides: bool = False

    def rows(self, which: Iterable[int]) -> FoldColumn:
        """Select rows.

        Args:
            which: indices of the rows.
        """
        chosen = list(which)
        damaged = None
        if self.damaged is not None and self.damaged[0] in chosen:
            damaged = (chosen.index(self.damaged[0]), self.damaged[1])
        numbers, texts = [self.numbers[row] for row in chosen], [self.texts[row] for row in chosen]
        return replace(self, numbers=numbers, texts=texts, damaged=damaged)

    @property
    def count(self) -> int:
        """Number of folds."""
        return len(self.cells)

    @property
    def divides(self) -> bool:
        """Whether the cells convince as folds: 2 to 20 consecutive numbers from 0 or 1, each of several rows."""
        rows = Counter(number for number in self.numbers if number is not None)
        if not 2 <= len(rows) <= MOST_FOLDS or min(rows.values()) == 1 or min(rows) > 1:
            return False
        numbered = all(_fold_of(cell) is not None for cell in self.cells.values())
        return numbered and max(rows) - min(rows) + 1 == len(rows)

    @property
    def numbers_splits(self) -> bool:
        """Whether the column may number train, val and test: its name says splits or sets, and it has three numbers."""
        numbers = [re.sub(r"\.0+$", "", self.cells[number]) for number in sorted(self.cells)]
        return re.search("fold|cv|val", _plain(self.name)) is None and numbers in (list("012"), list("123"))

    def for_folds(self, advice: str) -> str:
        """Return advice on using the column for folds, after that on numbered splits if it may hold those.

        Args:
            advice: what to do if the cells are folds.
        """
        if not self.numbers_splits:
            return advice
        return f"if {self.span()} are splits, write train, val and test; if they are folds, {advice}"

    def span(self) -> str:
        """Describe the folds: ``0 to 4``."""
        ordered = [self.cells[number] for number in sorted(self.cells)]
        return f"{ordered[0]} to {ordered[-1]}"

    def require(self, place: Callable[[int], str], file: str | Path) -> list[int]:
        """Return the fold of each row.

        Args:
            place: place of a row, for messages.
            file: the table.

        Raises:
            InputError: several columns hold folds, the column may number splits, or a row has no fold.
        """
        if self.others:
            raise InputError(several_columns([self.name, *self.others], self.cells.values()), file=file)
        if self.numbers_splits and not self.decides:
            advice = self.for_folds(f"pass --data.split_column {shlex.quote(self.name)}, {OTHER}")
            raise InputError(f"column {self.name} holds {self.span()}: {advice}", file=file)
        if self.damaged is not None:
            row, cell = self.damaged
            first = self.cells[min(self.cells)]
            message = f"column {self.name}: {cell!r} is not a fold such as {first}; correct it, {OTHER}{held_out(cell)}"
            raise InputError(message, file=file, place=place(row))
        found = [number for number in self.numbers if number is not None]
        if len(found) < len(self.numbers):
            row = self.numbers.index(None)
            cell = f" ({self.texts[row]!r})" if self.texts[row] else ""
            message = f"column {self.name}: no fold{cell}, as other rows have; fill it in, {OTHER}{held_out('')}"
            raise InputError(message, file=file, place=place(row))
        return found

    def merged(self, count: int, file: str | Path, least: int = 2) -> dict[int, int]:
        """Number the folds 0, 1, ..., `count` - 1 in their order; every `count`-th of more folds is one of them.

        Args:
            count: number of folds of a cross-validation.
            file: the table.
            least: minimum number of folds of the domain.

        Raises:
            InputError: the number of the table's folds is not a multiple of `count`.
        """
        if self.count % count:
            way_out = f"use --data.folds {self.count}, {OTHER}"
            if self.count < least:
                way_out = f"at least {least} are needed; {OTHER.removeprefix('or ')}"
            message = f"column {self.name} has {self.count} folds, not {count}: {self.for_folds(way_out)}"
            raise InputError(message, file=file)
        return {number: rank % count for rank, number in enumerate(sorted(self.cells))}

    def names_of(self, rank: int, count: int) -> str:
        """Name the folds of the table that are one of `count` folds: ``1 and 6``.

        Args:
            rank: the fold, from 0.
            count: number of folds.
        """
        names = [self.cells[number] for number in sorted(self.cells)[rank::count]]
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        return " and ".join(names) if not more else ", ".join(names[:LISTED]) + more


def held_out(cell: str) -> str:
    """Advice on a row that may be held out of the folds: ``test``, ``-1`` or nothing in their column; else ``""``.

    Args:
        cell: its cell in the column of folds.
    """
    if cell and cell.strip().lower() not in SPLIT_NAMES and not re.fullmatch(r"-\d+(\.0+)?", cell.strip()):
        return ""
    return "; move rows that are held out of the folds to another file, and give it to `test`"


def several_columns(names: Iterable[str], cells: Iterable[str]) -> str:
    """Message on several columns of folds, of which none was chosen.

    Args:
        names: the columns.
        cells: names of the folds of one of them.
    """
    advice = f"choose one with --data.split_column, {OTHER}"
    if set(cells) <= FLAGS:
        advice = f"if each marks one fold, merge them into one column of fold numbers; otherwise {advice}"
    return f"the columns {' and '.join(names)} hold folds: {advice}"


def is_fold_column(column: str) -> bool:
    """Whether the name of a column says that it may hold folds: ``kfold``, ``strat_fold``, ``CV fold``, ``cv``.

    Args:
        column: name of the column.
    """
    return _NAME.fullmatch(_plain(column)) is not None


def is_set_column(column: str) -> bool:
    """Whether a column is called ``set``, which may number train, val and test, or anything else.

    Args:
        column: name of the column.
    """
    return _SET.fullmatch(_plain(column)) is not None


def _plain(column: str) -> str:
    return re.sub(r"[\s_.-]+", "_", column.strip().casefold())


def read_folds(name: str, cells: Iterable[object], words: bool = True) -> FoldColumn | None:
    """Read a column of folds: numbers, numbered words (``fold1``) or letters, or names such as sites.

    Args:
        name: name of the column.
        cells: its cells.
        words: whether folds may have other names, in alphabetical order, of at least two rows each.

    Returns:
        The folds; None if the cells are splits or flags, measurements, or all different.
    """
    from seqssm.files.numbers import MISSING

    texts = [str(cell).strip() for cell in cells]
    known = {text: _fold_of(text) for text in set(texts) if text.lower() not in MISSING}
    counts = Counter(text for text in texts if text in known)
    before: Counter[str] = Counter()
    for text, fold in known.items():
        if fold is not None:
            before[fold[0]] += counts[text]
    if not before or 2 * max(before.values()) <= counts.total():
        return _named_folds(name, texts, counts) if words else None
    word = before.most_common(1)[0][0]
    folds = {text: fold[1] for text, fold in known.items() if fold is not None and fold[0] == word}
    shown: dict[int, str] = {}
    for text in sorted(folds, key=lambda text: (len(text), text)):
        shown.setdefault(folds[text], text)
    if len(shown) < 2:
        return None
    damaged = next(((row, text) for row, text in enumerate(texts) if text in known and text not in folds), None)
    return FoldColumn(name, [folds.get(text) for text in texts], shown, texts, damaged)


def _named_folds(name: str, texts: list[str], counts: Counter[str]) -> FoldColumn | None:
    """Folds whose names are neither numbers nor splits, and occur twice; None if the cells are something else.

    Case and the number of spaces do not matter. A tenth of the rows may have names that occur once, which are damaged.
    """
    plain = {text: " ".join(text.split()).casefold() for text in counts}
    total: Counter[str] = Counter()
    for text, count in counts.items():
        total[plain[text]] += count
    shown = {plain[text]: text for text, _ in reversed(counts.most_common())}
    names = sorted((one for one, count in total.items() if count > 1), key=shown.__getitem__)
    single = len(total) - len(names)
    if not 2 <= len(names) <= MOST_NAMES or 10 * single > counts.total():
        return None
    if any(is_number(one) or one in (*SPLIT_NAMES, *FLAGS) for one in names):
        return None
    numbers = {text: names.index(plain[text]) for text in counts if total[plain[text]] > 1}
    damaged = next(((row, text) for row, text in enumerate(texts) if text in counts and text not in numbers), None)
    cells = {number: shown[one] for number, one in enumerate(names)}
    return FoldColumn(name, [numbers.get(text) for text in texts], cells, texts, damaged)


def _fold_of(text: str) -> tuple[str, int] | None:
    """Return the word before the number of a fold and the number; those of a single letter are its place in a-z."""
    if re.fullmatch("[A-Za-z]", text):
        return "a letter", ord(text.lower()) - ord("a")
    found = _CELL.fullmatch(text)
    return ((found[1] or "").casefold(), int(found[2])) if found else None


def fold_columns(columns: Mapping[str, Iterable[object]]) -> dict[str, FoldColumn]:
    """Return the columns that hold folds by their names and cells, without copies of others.

    Columns without "fold" in the name hold 3 to 50; one such as ``set`` three, which may be splits.

    Args:
        columns: cells of columns, by column.
    """
    found: dict[str, FoldColumn] = {}
    for name in columns:
        is_set, named = is_set_column(name), "fold" in name.casefold()
        if not is_set and not is_fold_column(name):
            continue
        folds = read_folds(name, columns[name], named)
        if folds is None or (is_set and not folds.numbers_splits):
            continue
        if folds.count >= 2 if named else 3 <= folds.count <= MOST_NAMES:
            equal = any((one.numbers, one.damaged) == (folds.numbers, folds.damaged) for one in found.values())
            found |= {} if equal else {name: folds}
    return found


def chosen_folds(columns: Mapping[str, Iterable[object]], name: str | None) -> FoldColumn | None:
    """Return the column of folds: the chosen one, or the only one; None if there is none.

    Of several, the first one that convinces is returned with the names of the `others`.

    Args:
        columns: cells of columns, by column.
        name: column that the user chose; None searches.
    """
    if name is not None:
        found = read_folds(name, columns[name])
        return None if found is None else replace(found, decides=True)
    several = list(fold_columns(columns).values())
    if not several:
        return None
    split = next((one for one in several if one.name.strip().casefold() == "split"), None)
    first = split or next((one for one in several if one.divides), several[0])
    first = replace(first, decides=split is not None)
    return replace(first, others=tuple(one.name for one in several if one.name != first.name))


def unused_folds(found: Iterable[FoldColumn], advice: str) -> list[str]:
    """Describe columns of folds that do not determine the split, one sentence per column.

    Args:
        found: the columns.
        advice: how the folds can be used; ``{column}`` stands for the column in a command, ``{count}`` for the
            number of its folds.
    """
    said = []
    for one in found:
        what = f"column {one.name} holds folds ({one.span()}) and is not used for the split"
        if one.others:
            what = f"the columns {' and '.join((one.name, *one.others))} hold folds and are not used for the split"
        said.append(f"{what}; {one.for_folds(advice.format(column=shlex.quote(one.name), count=one.count))}")
    return said
