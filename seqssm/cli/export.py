"""``seqssm export``: the flags of `seqssm.tools.export`."""

from __future__ import annotations

from seqssm.cli.options import Parser, add
from seqssm.domain import OVERWRITE
from seqssm.files.disk import require_new


def export(argv: list[str]) -> int:
    """``seqssm export``."""
    parser = Parser(
        "seqssm export",
        "Write a trained model as ONNX graph, PyTorch program or safetensors file, and check it against the model at "
        "three lengths. Batch and length are dynamic; classes, units and preprocessing are in the metadata.",
        "seqssm export runs/ecg/ecg_small/best.ckpt --format onnx --output ecg.onnx",
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint or run folder")
    parser.add_argument(
        "--format",
        choices=("onnx", "torch", "safetensors"),
        default="onnx",
        help="onnx (needs the extra export), torch (a program of torch.export) or safetensors (weights)",
    )
    parser.add_argument("--output", metavar="PATH", help="the file (default: beside the checkpoint)")
    parser.add_argument(
        "--streaming", action="store_true", help="one step of a streaming model, with its states as inputs and outputs"
    )
    add(parser, OVERWRITE)
    options = parser.parse(argv)
    require_new(options.output, options.overwrite, [options.model])  # before PyTorch is imported
    from seqssm.tools.export import default_output
    from seqssm.tools.export import export as write

    output = options.output or default_output(options.model, options.format)
    if options.output is None:
        require_new(output, options.overwrite, [options.model])
    done = write(options.model, options.format, output, options.streaming)
    for line in done.checks:
        print(line)
    for note in done.notes:
        print(f"note: {note}")
    print(f"written: {done.path}")
    return 0
