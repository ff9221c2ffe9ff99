"""Single-label classification of image arrays: a worked example of a domain outside the package."""

from seqssm.domain import Baseline, Domain

DOMAIN = Domain(
    name="images",
    title="Image arrays: one label per image (a worked example of a domain)",
    task="seqssm_images.task:ImageTask",
    data="seqssm_images.data:ImageData",
    predictor="seqssm_images.predict:ImagePredictor",
    package="seqssm_images",
    example_preset="images",
    example_input="images.npy",
    demo="seqssm_images.predict:demo",
    models={"mamba": (), "hilbert": ("--model.order", "hilbert")},
    baselines=(Baseline("commonest", "seqssm_images.task:commonest_class"),),
    metrics="seqssm_images.task:METRICS",
    data_argument="file",
    extends=True,
)
