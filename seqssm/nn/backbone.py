"""Stack of layers defined by a pattern with one symbol per layer, e.g. ``"M-M-M*-"``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from seqssm_kernels import dropout
from torch import Tensor, nn

from seqssm.nn.attention import Attention
from seqssm.nn.mamba import Mamba
from seqssm.nn.mamba2 import Mamba2
from seqssm.nn.mamba3 import Mamba3
from seqssm.nn.memory import Memory, Pool
from seqssm.nn.mlp import MLP
from seqssm.nn.pattern import check_pattern
from seqssm.nn.routed import RoutedMixer
from seqssm.nn.state import State
from seqssm.orders import GeometryOrMany

MIXERS: dict[str, type[nn.Module]] = {"M": Mamba2, "m": Mamba, "3": Mamba3, "*": Attention, "N": Memory, "-": MLP}
ARGUMENTS = {"M": "mamba2", "m": "mamba", "3": "mamba3", "*": "attention", "N": "memory", "-": "mlp"}
Options = Mapping[str, Any] | None


class Block(nn.Module):
    """x + mixer(norm(x)).

    Args:
        d_model: width of the sequence, D.
        mixer: the layer.
        norm_eps: epsilon of the RMS normalisation.
        dropout: dropout probability on the output of the mixer, in training.
    """

    def __init__(self, d_model: int, mixer: nn.Module, norm_eps: float = 1e-5, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d_model, eps=norm_eps)
        self.mixer: Any = mixer
        self.dropout = dropout

    def normed(self, residual: Tensor) -> Tensor:
        """Return the mixer's input: the normalised residual in the dtype of the weights."""
        return self.norm(residual.to(self.norm.weight.dtype))

    def add(self, residual: Tensor, y: Tensor) -> Tensor:
        """Add the mixer's output to the residual, in the dtype of the residual."""
        return residual + dropout(y, self.dropout, self.training).to(residual.dtype)


class Backbone(nn.Module):
    """Stack of pre-norm residual layers with one mixer each, and a final norm.

    Args:
        d_model: width of the sequence, D.
        pattern: layers, one symbol each: ``M`` Mamba-2, ``m`` Mamba, ``3`` Mamba-3, ``*`` attention, ``N`` memory,
            ``-`` MLP. See `seqssm.nn.pattern` for patterns from fractions or a period.
        mamba2: further arguments of all `Mamba2` layers.
        mamba: further arguments of all `Mamba` layers.
        mamba3: further arguments of all `Mamba3` layers.
        attention: further arguments of all `Attention` layers.
        mlp: further arguments of all `MLP` layers.
        memory: further arguments of all `Memory` layers.
        residual_in_fp32: whether to keep the residual in float32 if the weights have a narrower dtype.
        rescale: whether to divide the initial weights of each layer's last projection by the square root of the number
            of layers, which keeps the residual from growing with depth (GPT-2, section 2.3).
        dropout: dropout probability on the output of each mixer, in training.
        norm_eps: epsilon of the RMS normalisations.

    Raises:
        ValueError: an unknown symbol, arguments for a layer that is not in the pattern, or an error of a layer.
    """

    def __init__(
        self,
        d_model: int,
        pattern: str,
        *,
        mamba2: Options = None,
        mamba: Options = None,
        mamba3: Options = None,
        attention: Options = None,
        mlp: Options = None,
        memory: Options = None,
        residual_in_fp32: bool = True,
        rescale: bool = True,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.d_model, self.pattern = d_model, check_pattern(pattern)
        self.residual_in_fp32, self.rescale = residual_in_fp32, rescale
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {dropout}")
        options = {"mamba2": mamba2, "mamba": mamba, "mamba3": mamba3, "attention": attention}
        options |= {"mlp": mlp, "memory": memory}
        for symbol, name in ARGUMENTS.items():
            if options[name] and symbol not in pattern:
                raise ValueError(f"arguments of {name}, but the pattern {pattern!r} has no {symbol!r}")
        self.layers = nn.ModuleList()
        for place, symbol in enumerate(pattern):
            own = dict(options[ARGUMENTS[symbol]] or {})
            if symbol == "N":
                own["index"] = pattern[: place + 1].count("N")
            self.layers.append(Block(d_model, MIXERS[symbol](d_model, **own), norm_eps, dropout))
        self.norm_f = nn.RMSNorm(d_model, eps=norm_eps)
        self._rescale()

    @property
    def blocks(self) -> list[Block]:
        """List the blocks."""
        return list(self.layers)  # type: ignore[arg-type]

    @torch.no_grad()
    def _rescale(self) -> None:
        if self.rescale:
            for layer in self.blocks:
                last = layer.mixer.fc2 if isinstance(layer.mixer, MLP) else layer.mixer.out_proj
                last.weight.div_(len(self.layers) ** 0.5)

    def reset_parameters(self) -> None:
        """Initialise all weights, e.g. after ``to_empty`` of a stack built on the meta device."""
        for layer in self.blocks:
            layer.norm.reset_parameters()
            layer.mixer.reset_parameters()
        self.norm_f.reset_parameters()
        self._rescale()

    @property
    def only_forward(self) -> bool:
        """Whether all layers, and therefore the stack, can continue from a state."""
        return all(layer.mixer.only_forward for layer in self.blocks)

    def require_forward(self, what: str) -> None:
        """Raise ValueError if a layer cannot continue from a state."""
        for layer in self.blocks:
            layer.mixer.require_forward(what)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        geometry: GeometryOrMany = None,
        return_state: bool = False,
    ) -> Any:
        """Apply all layers to a sequence.

        Args:
            x: input, (B, L, D).
            state: state returned for an earlier chunk of the same sequences; forward layers only.
            mask: valid positions, (B, L) bool; padding does not affect valid positions or the state. The output at
                padded positions is undefined.
            cu_seqlens: start offsets of packed sequences (B = 1) and the total length, (n + 1,) int32.
            geometry: geometry of the positions, for layers whose orders need one.
            return_state: whether to return the state after the last position as well.

        Returns:
            y (B, L, D), or (y, state) with one sub-state per layer, named ``"0"``, ``"1"``, ...

        Raises:
            ValueError: an error of a layer.
        """
        residual = x.float() if self.residual_in_fp32 and x.dtype in (torch.bfloat16, torch.float16) else x
        states = State()
        pools: list[Pool] = []
        shared = {"mask": mask, "cu_seqlens": cu_seqlens}
        for number, layer in enumerate(self.blocks):
            own = None if state is None else state[str(number)]
            keywords: dict[str, Any] = {} if isinstance(layer.mixer, MLP) else dict(shared)
            if isinstance(layer.mixer, RoutedMixer):
                keywords["geometry"] = geometry
            if isinstance(layer.mixer, Memory):
                keywords["pools"] = pools
            y = layer.mixer(layer.normed(residual), own, return_state=return_state, **keywords)
            if return_state:
                y, states[str(number)] = y
            residual = layer.add(residual, y)
        y = self.norm_f(residual.to(self.norm_f.weight.dtype))
        return (y, states) if return_state else y

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Process one more position.

        Args:
            x: input, (B, D).
            state: state returned by `forward` or `step` for the preceding positions, or by `new_state` at the start.

        Returns:
            (y (B, D), state after this position).

        Raises:
            ValueError: a layer that is not forward, or no state.
        """
        if state is None:
            raise ValueError("step requires the state before this position, returned by forward or new_state")
        residual = x.float() if self.residual_in_fp32 and x.dtype in (torch.bfloat16, torch.float16) else x
        states = State()
        pools: list[Pool] = []
        for number, layer in enumerate(self.blocks):
            keywords = {"pools": pools} if isinstance(layer.mixer, Memory) else {}
            y, states[str(number)] = layer.mixer.step(layer.normed(residual), state[str(number)], **keywords)
            residual = layer.add(residual, y)
        return self.norm_f(residual.to(self.norm_f.weight.dtype)), states

    def new_state(self, batch_size: int) -> State:
        """Return the state before the first position.

        Args:
            batch_size: number of samples, or of packed sequences with `cu_seqlens`.
        """
        return State({str(number): layer.mixer.new_state(batch_size) for number, layer in enumerate(self.blocks)})
