"""One declaration per network: flags, YAML, checkpoints, help and Python follow the signature of its class."""

from __future__ import annotations

import inspect
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import yaml

import seqssm
from seqssm.cli.main import main
from seqssm.domain import Added, Moved, Renamed
from seqssm.errors import InputError
from seqssm.training import migration
from seqssm.training.networks import complete, without_foreign


@pytest.fixture
def task(toy):
    from seqssm_toy.task import ToyTask

    return ToyTask


def test_the_signature_holds_the_arguments_of_task_bases_and_networks(task):
    found = inspect.signature(task).parameters
    assert next(iter(found)) == "network"
    assert {"inputs", "slow", "learning_rate", "threads", "d_model", "dropout", "bias"} <= set(found)
    assert found["learning_rate"].default == 1e-3
    assert found["d_model"].default is None
    assert "bias: whether the map has a constant term (line; default True)." in task.__doc__


def test_all_values_of_the_chosen_network_are_in_hparams(task):
    assert {"d_model": 8, "dropout": 0.2, "out": 1, "network": "net"}.items() <= task().hparams.items()
    assert "bias" not in task().hparams
    assert {"bias": False, "network": "line"}.items() <= task("line", bias=False).hparams.items()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"d_modle": 3}, "ToyTask has no argument d_modle; did you mean d_model?"),
        ({"network": "nett"}, "--model.network nett: unknown network; did you mean net?"),
        ({"network": "line", "d_model": 3}, "--model.d_model: not an argument of the network line, which net has"),
    ],
)
def test_wrong_names_are_refused_from_python(task, given, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        task(**given)


def test_a_new_argument_of_a_network_is_one_edit(task):
    class Wider(task.networks["net"]):
        """As Net.

        Args:
            inputs: width of a record.
            factor: multiplies the hidden width.
        """

        def __init__(self, inputs: int, factor: int = 2) -> None:
            super().__init__(inputs, 4 * factor)

    class WiderTask(task):
        networks: ClassVar = {"wider": Wider}

    assert WiderTask().hparams["factor"] == 2
    assert "factor: multiplies the hidden width (default 2)." in WiderTask.__doc__
    built = WiderTask(factor=3, inputs=3)
    built.configure_model()
    assert built.model.head.in_features == 12
    with pytest.raises(InputError, match="has no argument factr"):
        WiderTask(factr=3)


def test_a_subclass_may_add_arguments(task):
    class More(task):
        def __init__(self, extra: int = 1, **kwargs) -> None:
            super().__init__(**kwargs)

    assert {"extra": 5, "d_model": 16}.items() <= More(extra=5, d_model=16).hparams.items()


def test_arguments_of_other_networks_are_dropped_and_reported(task):
    values, dropped = without_foreign(task, {"network": "line", "d_model": 16, "dropout": 0.2, "bias": False})
    assert values == {"network": "line", "bias": False}
    assert dropped == ["d_model"], "dropout has its default: nothing is lost"
    assert complete(task, values)["bias"] is False


def test_arguments_of_other_networks_are_errors_on_the_command_line_only(toy, capsys):
    argv = ["toy", "fit", "--config", "tiny", "--model.network", "line", "--trainer.max_epochs", "1"]
    assert main([*argv, "--output", "a", "--model.d_model", "4"]) == 2
    assert "--model.d_model: not an argument of the network line" in capsys.readouterr().err
    Path("other.yaml").write_text("model: {network: line, d_model: 16}\n", encoding="utf-8")
    assert main(["toy", "fit", "--config", "tiny", "--config", "other.yaml", "--output", "a"]) == 0
    assert "seqssm: config: d_model dropped, not used by the network line" in capsys.readouterr().err
    written = yaml.safe_load(Path("a/config.yaml").read_text(encoding="utf-8"))["model"]["init_args"]
    assert (written["network"], written["bias"], written["d_model"]) == ("line", True, None)
    assert "d_model" not in torch.load("a/best.ckpt", weights_only=True)["seqssm"]["hparams"]
    assert main(["toy", "fit", "--resume", "a", "--trainer.max_epochs", "4"]) == 0


def test_a_study_of_several_networks_gives_each_its_own_arguments(toy, capsys):
    toy.models["line"] = ("--model.network", "line")
    try:
        argv = ["toy", "kfold", "--config", "tiny", "--models", "net,line", "--trainer.max_epochs", "1"]
        assert main([*argv, "--output", "k", "--model.d_model", "4"]) == 0
    finally:
        del toy.models["line"]
    assert "seqssm: study: d_model dropped, not used by the network line" in capsys.readouterr().err


def test_help_lists_every_networks_arguments(toy, capsys):
    assert main(["toy", "fit", "--help-all"]) == 0
    page = capsys.readouterr().out
    assert "--model.bias" in page
    assert "whether the map has a constant term (line; default True)" in " ".join(page.split())


MIGRATIONS = (
    Renamed("model.width", "model.d_model"),
    Renamed("model.act", "model.activation", {"published": True}),
    Added("model.bias", False),
    Added("model.taps", 2, of="Line"),
    Moved("old.module:Task", "new.module:Task"),
)


def test_one_table_migrates_flags_configs_and_checkpoints():
    domain = SimpleNamespace(migrations=MIGRATIONS)
    assert migration.option(domain, "model", "act", "published") == ("activation", True)
    assert migration.option(domain, "data", "width", 3) == ("width", 3)
    assert migration.options(domain, "model", {"width": 3}) == {"d_model": 3}
    assert migration.options(domain, "model", {"width": 3, "d_model": 4}) == {"d_model": 4}
    soft = {"teacher_weight": 1.0, "teacher_temperature": 1.0}
    shared = {"averaging": 0.0, "binary": False, "lora": 0, **soft}  # of every task
    assert migration.options(domain, "model", {"width": 3}, stored=True) == {"d_model": 3, "bias": False} | shared
    found = migration.options(domain, "model", {"width": 3}, stored=True, cls="toy.task:Line")
    assert found == {"d_model": 3, "bias": False, "taps": 2} | shared
    assert migration.class_path(domain, "old.module.Task") == "new.module.Task"
    assert migration.class_path(domain, "old.module:Task") == "new.module:Task"


def test_old_names_still_work_everywhere(toy, monkeypatch, capsys):
    import seqssm_toy

    monkeypatch.setattr(seqssm_toy, "DOMAIN", replace(toy, migrations=(Renamed("model.width", "model.d_model"),)))
    Path("old.yaml").write_text("model: {width: 4}\ntrainer: {max_epochs: 1}\n", encoding="utf-8")
    assert main(["toy", "fit", "--config", "old.yaml", "--output", "a"]) == 0
    assert main(["toy", "fit", "--config", "old.yaml", "--output", "b", "--model.width", "5"]) == 0
    content = torch.load("b/best.ckpt", weights_only=True)
    assert content["seqssm"]["hparams"]["d_model"] == 5
    content["seqssm"]["hparams"]["width"] = content["seqssm"]["hparams"].pop("d_model")
    torch.save(content, "b/best.ckpt")
    assert seqssm.load("b").network.head.in_features == 5


def test_presets_share_a_file(toy, tmp_path, monkeypatch):

    from seqssm.training import presets

    package = tmp_path / "copied"
    shutil.copytree(
        Path(toy.__class__.__module__ and __import__("seqssm_toy").__file__).parent, package / "seqssm_shared"
    )
    shared = package / "seqssm_shared" / "configs" / "shared.yaml"
    shared.write_text(
        "presets:\n  set_10: {}\n  set_2: {data: {rows: 20}}\nmodel: {d_model: 4}\ndata: {rows: 60, batch_size: 8}\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(package))
    domain = replace(toy, package="seqssm_shared")
    assert list(presets.presets(domain)) == ["set_2", "set_10", "tiny"]
    content = presets.read_preset(presets.find_preset(domain, "set_2"), domain)
    assert content["data"]["init_args"] == {"rows": 20, "batch_size": 8}
    assert content["model"]["init_args"] == {"d_model": 4}
    with pytest.raises(InputError, match="contains several presets; choose one of set_10, set_2"):
        presets.read_preset(presets.find_preset(domain, str(shared)), domain)
