"""Another network over a preset: options of the preset that do not apply to it are dropped, the user's are refused."""

from __future__ import annotations

import copy

import pytest

from seqssm.domain import domains, resolve
from seqssm.errors import InputError, nearest
from seqssm.training import presets
from seqssm.training.arguments import Arguments, split_flags


def task_of(domain, name, *flags, named=()):
    """The class of a preset's task, and its options with these flags."""
    content = presets.read_preset(presets.find_preset(domain, name), domain)
    path = content["model"]["class_path"]
    extra = {"model": {"class_path": path, "init_args": dict(named)}}
    given = frozenset(f"model.{one}" for one in dict(named))
    arguments = Arguments(domain, copy.deepcopy([content, extra]), split_flags(flags), given)
    arguments.drop_foreign(flags_too=False)
    options = {}
    for config in arguments.configs:
        options |= config["model"]["init_args"]
    return resolve(":".join(path.rsplit(".", 1))), options


@pytest.mark.parametrize(
    ("domain", "preset"),
    [
        ("dna", "finetune"),
        ("dna", "pretrain"),
        ("ecg", "ecg_small"),
        ("forecasting", "smamba"),
        ("pathology", "srmamba"),
    ],
)
def test_every_network_can_be_chosen_over_a_preset(domain, preset, capsys):
    """finetune stopped on its own option echo, which the user had not given."""
    one = domains()[domain]
    task, _ = task_of(one, preset)
    for network in task.networks:
        _, options = task_of(one, preset, "--model.network", network)
        task(**{**options, "network": network})
    assert ("config: echo dropped, not used by the network encoder" in capsys.readouterr().err) == (
        preset == "finetune"
    )


def test_the_users_own_option_is_refused():
    task, options = task_of(domains()["dna"], "finetune", named={"network": "encoder", "echo": "same"})
    with pytest.raises(InputError, match=r"--model.echo same: only for the causal network hybrid"):
        task(**options)


def test_equally_similar_names_are_all_suggested():
    """`seqssm data get etth` named one of etth1 and etth2."""
    assert nearest("etth", ["etth2", "ettm", "etth1", "splice"]) == "; did you mean etth2 or etth1?"
    assert nearest("etth", ["weather", "etth1", "etth2"]) == "; did you mean etth1 or etth2?"
    assert nearest("model.d_modle", ["model.d_model", "model"]) == "; did you mean model.d_model?"
    assert nearest("zzz", ["abc"]) == nearest("zzz", []) == ""
    assert nearest("ECG", ["dna", "ecg"]) == "; did you mean ecg?"
