"""A minimal domain for tests: three numbers in, one out. `TIN` is a second one without optional features."""

from seqssm.domain import Baseline, Command, DataSet, Domain, Option

DOMAIN = Domain(
    name="toy",
    title="three numbers in, one out",
    task="seqssm_toy.task:ToyTask",
    data="seqssm_toy.data:ToyData",
    predictor="seqssm_toy.predict:ToyPredictor",
    package="seqssm_toy",
    example_preset="tiny",
    example_input="numbers.txt",
    demo="seqssm_toy.demo:demo",
    summary={"offset": "tensor"},
    models={
        "net": (),
        "wide": ("--model.d_model", "16"),
    },
    baselines=(Baseline("mean", "seqssm_toy.task:predict_mean"),),
    metrics="seqssm_toy.task:METRICS",
    commands=(
        Command(
            "count",
            "counts its inputs",
            "seqssm_toy.demo:count",
            "seqssm toy count a.txt b.txt",
            (Option("--times", "how often", int, 1),),
            inputs="FILE",
        ),
    ),
    predict_options=(
        Option("--scale", "factor of the output", float, 1.0),
        Option("--delay", "seconds a batch takes", float, 0.0),
        Option("--unit", "of the output", str, "m", ("m", "km")),
    ),
    data_sets=(DataSet("numbers", "Three numbers", "numbers.csv", None, "CC0", "in no place"),),
    folds=True,
)

TIN = Domain(
    name="tin",
    title="another science",
    task="seqssm_toy.task:TinTask",
    data="seqssm_toy.data:ToyData",
    predictor="seqssm_toy.predict:ToyPredictor",
    package="seqssm_toy",
    example_preset="tiny",
    example_input="numbers.txt",
    demo="seqssm_toy.demo:no_demo",
    predict_options=(Option("--temper", "of the metal", float, 1.0),),
)
