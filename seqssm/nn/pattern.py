"""Layer patterns of a stack, with one symbol per layer."""

from __future__ import annotations

SYMBOLS = {
    "M": "Mamba-2",
    "m": "Mamba",
    "3": "Mamba-3",
    "*": "attention",
    "N": "memory",
    "-": "MLP",
}


def check_pattern(pattern: str) -> str:
    """Return the pattern if all of its symbols are layers.

    Raises:
        ValueError: an empty pattern, or an unknown symbol.
    """
    if not pattern:
        raise ValueError("a layer pattern needs at least one layer")
    for place, symbol in enumerate(pattern):
        if symbol not in SYMBOLS:
            known = ", ".join(f"{symbol} ({name})" for symbol, name in SYMBOLS.items())
            raise ValueError(f"layer {place + 1} of the pattern {pattern!r} is {symbol!r}; layers are {known}")
    return pattern


def hybrid_pattern(layers: int, attention: float, mlp: float, base: str = "M") -> str:
    """Pattern of Mamba-2-Hybrid (arXiv 2406.07887), with attention and MLP layers spread evenly.

    First, the other layers are divided into n_attention + 1 sections of equal length with an attention layer between
    consecutive sections: the stack begins and ends with another layer. Then the MLPs are spread over the layers that
    are not attention, each at the end of its section.

    Args:
        layers: number of layers in the stack.
        attention: fraction of attention layers; their number is rounded half to even.
        mlp: fraction of MLP layers; their number is rounded half to even.
        base: symbol of all other layers.

    Raises:
        ValueError: fractions that are negative, sum to more than 1, or leave no layer between attention layers.
    """
    if layers < 1:
        raise ValueError(f"a stack needs at least one layer, not {layers}")
    if min(attention, mlp) < 0 or attention + mlp > 1:
        raise ValueError(
            f"the fractions of attention and MLP must be at least 0 and sum to at most 1, not {attention}, {mlp}"
        )
    kinds = [base] * layers
    n_attention = round(layers * attention)
    _spread(kinds, range(layers), "*", n_attention, (layers - n_attention) / (n_attention + 1))
    others = [place for place, kind in enumerate(kinds) if kind == base]
    n_mlp = round(layers * mlp)
    if n_mlp:
        _spread(kinds, others, "-", n_mlp, (len(others) - n_mlp) / n_mlp)
    pattern = "".join(kinds)
    if pattern.count("*") != n_attention or pattern.count("-") != n_mlp:
        raise ValueError(
            f"{layers} layers have no room for {n_attention} attention and {n_mlp} MLP layers spread evenly"
        )
    return check_pattern(pattern)


def _spread(kinds: list[str], places: range | list[int], symbol: str, count: int, section: float) -> None:
    """Place up to `count` symbols between sections of this (real) length along `places`."""
    left = section
    for place in places:
        if left < 0.5 and count:
            kinds[place] = symbol
            left += section
            count -= 1
        else:
            left -= 1


def periodic_pattern(layers: int, period: int, offset: int = 0, symbol: str = "*", base: str = "M") -> str:
    """Pattern with one `symbol` layer in each `period` layers.

    Args:
        layers: number of layers in the stack.
        period: distance between consecutive `symbol` layers.
        offset: index of the first one, from 0, below `period`.
        symbol: symbol of the periodic layer.
        base: symbol of all other layers.

    Raises:
        ValueError: a size that is not positive, an offset outside the period, or an unknown symbol.
    """
    if min(layers, period) < 1 or not 0 <= offset < period:
        raise ValueError(
            f"layers and period must be at least 1, and 0 <= offset < period, not {layers}, {period}, {offset}"
        )
    return check_pattern("".join(symbol if place % period == offset else base for place in range(layers)))
