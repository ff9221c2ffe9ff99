"""``seqssm <domain> fit``, ``validate`` and ``test``: the flags of `seqssm.training.run`."""

from __future__ import annotations

def fit_parser(domain: Domain) -> Parser:
    parser = Parser(
        f"seqssm {domain.name} fit",
        "Trains a model. Every option of the preset can be overridden: --model.x, --data.x, --trainer.x, "
        "--early_stopping.x, --seed_everything (all of them: --help-all).",
        f"seqssm {domain.name} fit --config {domain.example_preset} --trainer.max_epochs 5",
    )
    parser.add_argument(
        "--config", action="append", default=[], metavar="PRESET|FILE", help="preset or YAML; repeatable"
    )
    parser.add_argument("--output", metavar="DIR", help=f"the run's folder (default runs/{domain.name}/PRESET)")
    parser.add_argument("--resume", metavar="RUN", help="continue the run in this folder as if it had not stopped")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that lies in the folder")
    parser.add_argument("--help-all", action="store_true", help="every option of model, data and trainer")
    return parser


def split(argv: list[str], parser: Parser) -> tuple[list[str], list[str]]:
    """(our flags, LightningCLI's).

    Raises:
        InputError: a flag of neither, with the nearest one.
    """
    own: list[str] = []
    rest: list[str] = []
    target = own
    for word in argv:
        flag = word.split("=")[0]
        if flag.startswith("--") and len(flag) > 2:
            if flag == "--trainer.default_root_dir":
                raise InputError(f"--trainer.default_root_dir is not used: {configs.HOME}")
            ours, theirs = flag in parser.flags(), flag.split(".")[0] in GROUPS
            if not ours and not theirs:
                raise InputError(f"unknown option {flag}{nearest(flag, [*parser.flags(), *GROUPS])}")
            target = own if ours else rest
        elif word == "-h":
            target = own
        target.append(word)
    return own, rest


def fit(domain: Domain, argv: list[str]) -> int:
    """``seqssm <domain> fit``."""
    parser = fit_parser(domain)
    own, overrides = split(argv, parser)
    options = parser.parse(own)
    if options.help_all:
        return help_all(domain)
    if options.resume is not None:
        if options.config or options.overwrite or options.output:
            raise InputError("--resume RUN takes config and folder of the run: drop --config, --output and --overwrite")
        return _resume(domain, RunFolder(options.resume), overrides)
    if not options.config:
        raise InputError(f"--config PRESET_OR_FILE is needed (seqssm {domain.name} --help lists the presets)")
    if options.output == "":
        raise InputError("--output: the name of the folder is empty")
    files = [configs.locate(domain, name) for name in options.config]
    texts = [configs.as_text(configs.read(file, domain)) for file in files]
    folder = RunFolder(options.output or Path("runs", domain.name, files[-1].stem))
    if process_rank() == 0 and not options.overwrite:
        folder.require_free(f"seqssm {domain.name} fit")
    return _train(domain, folder, texts, overrides, resume=False, files=files)


def evaluate(domain: Domain, verb: str, argv: list[str]) -> int:
    """``seqssm <domain> test`` and ``validate``."""
    parser = Parser(
        f"seqssm {domain.name} {verb}",
        f"Runs a trained model on the {'test' if verb == 'test' else 'validation'} data. Config and checkpoint come "
        "from the run; --data.x and --trainer.x override.",
        f"seqssm {domain.name} {verb} runs/{domain.name}/{domain.example_preset}",
    )
    parser.add_argument("run", metavar="RUN_OR_CKPT", help="a run's folder (its best.ckpt is taken) or a checkpoint")
    own, overrides = split(argv, parser)
    path = Path(parser.parse(own).run)
    from seqssm.training import checkpoint

    path = checkpoint.locate(path)
    content = checkpoint.read(path)
    entry = content["seqssm"]
    if entry["domain"] != domain.name:
        raise InputError(f"is of the domain {entry['domain']}: seqssm {entry['domain']} {verb} {path}", file=path)
    if not entry["data_class"]:
        raise InputError("was saved without a data module; only predict can use it", file=path)
    checkpoint.build_task(content, path)  # says in one line what does not fit
    checkpoint.resolve_class(entry["data_class"], domain.name, path)
    beside = path.parent / CONFIG
    kept = configs.read(beside, domain) if beside.is_file() else {}
    trainer = {
        name: value for name, value in (kept.get("trainer") or {}).items() if name not in ("callbacks", "logger")
    }
    text = {
        **({"seed_everything": kept["seed_everything"]} if "seed_everything" in kept else {}),
        "trainer": {name: value for name, value in trainer.items() if name != "default_root_dir"},
        "model": {"class_path": entry["task"].replace(":", "."), "init_args": entry["hparams"]},
        "data": {"class_path": entry["data_class"].replace(":", "."), "init_args": entry["data_hparams"]},
    }
    folder = RunFolder(path.parent)
    lock = folder.lock() if process_rank() == 0 else None
    try:
        cli = build(domain, folder.path, [yaml.safe_dump(text)], overrides)
        _require_same(cli, entry, path, given=True)
        _run_evaluate(cli, verb, path, folder)
    finally:
        if lock is not None:
            lock.release()
    return 0


def help_all(domain: Domain) -> int:
    """``fit --help-all``: everything that LightningCLI takes, for the domain's default classes."""
    from jsonargparse import ArgumentParser
    from lightning.pytorch import Trainer

    from seqssm.domain import resolve
    from seqssm.training.lightning_cli import EarlyStopping

    parser = ArgumentParser(prog=f"seqssm {domain.name} fit")
    parser.add_argument("--seed_everything", type=int, default=1, help="seed of everything random in the run")
    parser.add_class_arguments(resolve(domain.task), "model", fail_untyped=False)
    parser.add_class_arguments(resolve(domain.data), "data", fail_untyped=False)
    parser.add_class_arguments(EarlyStopping, "early_stopping")
    parser.add_class_arguments(Trainer, "trainer", fail_untyped=False, skip={"default_root_dir"})
    parser.print_help()
    return 0
