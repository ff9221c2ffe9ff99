"""``seqssm <domain> kfold``: the flags of `seqssm.training.kfold`."""

from __future__ import annotations

def kfold(domain: Domain, argv: list[str]) -> int:
    """``seqssm <domain> kfold``."""
    parser = kfold_parser(domain)
    own, overrides = training.split(argv, parser)
    options = parser.parse(own)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("kfold is started once, not by torchrun; --trainer.devices N gives each fit N processes")
    if not options.config:
        raise InputError(f"--config PRESET_OR_FILE is needed (seqssm {domain.name} --help lists the presets)")
    if options.resume and options.overwrite:
        raise InputError("--resume continues and --overwrite starts anew: give one of them")
    files = [configs.locate(domain, name) for name in options.config]
    texts = [configs.as_text(configs.read(file, domain)) for file in files]
    cells = plan(domain, options, texts)
    folder = RunFolder(options.output or Path("runs", domain.name, f"{files[-1].stem}-kfold"))
    if not options.resume and not options.overwrite:
        folder.require_free(f"seqssm {domain.name} kfold")
    with folder.lock():
        prepare(folder, {"config": texts, "overrides": overrides, "folds": options.folds}, options.resume)
        rows: list[dict[str, Any]] = []
        for number, cell in enumerate(cells, 1):
            print(f"kfold {number} of {len(cells)}: {cell.place()}", flush=True)
            try:
                figures = run_cell(domain, folder, cell, options, overrides)
            except KeyboardInterrupt:
                words = [word for word in argv if word not in ("--resume", "--overwrite")]
                raise KeyboardInterrupt(f"seqssm {domain.name} kfold {shlex.join(words)} --resume") from None
            rows.append({"fold": cell.fold, "seed": cell.seed, "model": cell.model, **figures})
            folder.write_text(FOLDS, as_csv(rows))
        conclude(domain, folder, rows)
    return 0


def kfold_parser(domain: Domain) -> Parser:
    parser = Parser(
        f"seqssm {domain.name} kfold",
        "Fits and tests every fold, seed and model in a sub-folder of its own, then prints one table. Every option of "
        "the preset can be overridden as in fit.",
        f"seqssm {domain.name} kfold --config {domain.example_preset} --seeds 1,2,3 --output study",
    )
    names = ", ".join(domain.models) or "none"
    add = parser.add_argument
    add("--config", action="append", default=[], metavar="PRESET|FILE", help="preset or YAML; repeatable")
    add("--output", metavar="DIR", help=f"folder of all runs (default runs/{domain.name}/PRESET-kfold)")
    add("--folds", metavar="K|DIR", help="number of folds, or a folder of split files *_0.csv, *_1.csv, ...")
    add("--seeds", metavar="1,2,3", help="seeds of the runs (default: the config's)")
    add("--models", metavar="A,B,C", help=f"models to compare, the first is what others are compared with: {names}")
    add("--resume", action="store_true", help="continue: what is finished is not run again")
    add("--overwrite", action="store_true", help="replace the runs that lie in the folder")
    return parser


