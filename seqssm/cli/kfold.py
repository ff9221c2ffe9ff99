"""``seqssm <domain> kfold``: the flags of `seqssm.training.kfold`."""

from __future__ import annotations

import shlex
from dataclasses import replace

from seqssm.cli.fit import split
from seqssm.cli.options import Parser
from seqssm.cli.options import add as add_option
from seqssm.domain import Domain


def kfold(domain: Domain, argv: list[str]) -> int:
    """``seqssm <domain> kfold``."""
    from seqssm.training.kfold import Study
    from seqssm.training.kfold import kfold as run

    parser = kfold_parser(domain)
    own, overrides = split(argv, parser)
    options = parser.parse(own)
    study = Study(
        configs=options.config,
        overrides=overrides,
        folds=options.folds,
        windows=getattr(options, "windows", None),
        seeds=options.seeds,
        models=options.models,
        output=options.output,
        resume=options.resume,
        overwrite=options.overwrite,
    )
    try:
        run(domain, study)
    except KeyboardInterrupt:
        if not (study.begun.is_set() or study.resume):
            raise KeyboardInterrupt from None
        words = [word for word in argv if word not in ("--resume", "--overwrite")]
        raise KeyboardInterrupt(f"seqssm {domain.name} kfold {shlex.join(words)} --resume") from None
    return 0


def kfold_parser(domain: Domain) -> Parser:
    parser = Parser(
        f"seqssm {domain.name} kfold",
        "Fit and test every combination of fold, seed and model in its own subfolder, then print one table. Every "
        "option of the preset can be overridden as in fit.",
        f"seqssm {domain.name} kfold --config {domain.example_preset} --seeds 1,2,3 --output study",
    )
    from seqssm.training.kfold import MODELS, SEEDS

    names = ", ".join([*domain.models, *(baseline.name for baseline in domain.baselines)]) or "none"
    add = parser.add_argument
    add("--config", action="append", default=[], metavar="PRESET|FILE", help="preset or YAML; repeatable")
    add("--output", metavar="PATH", help=f"folder of all runs (default runs/{domain.name}/PRESET-kfold)")
    add("--folds", metavar="K|DIR", help="number of folds, or a folder of split files *_0.csv, *_1.csv, ...")
    if domain.windows:
        add(
            "--windows",
            metavar="K",
            help="rolling origin: test the last K horizons, each after a fit on the rows before",
        )
    add_option(parser, SEEDS)
    add_option(parser, replace(MODELS, help=f"{MODELS.help}: {names}"))
    add("--resume", action="store_true", help="continue without repeating finished runs")
    add("--overwrite", action="store_true", help="replace the runs in the folder")
    return parser
