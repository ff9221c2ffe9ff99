"""Another network over a preset: options of the preset that do not apply to it are dropped, the user's are refused."""

from __future__ import annotations

import copy

import pytest

from seqssm.cli.main import main
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


def test_the_users_own_option_of_another_network_is_refused():
    """From Python it was dropped with a note; as a flag it is refused."""
    task, options = task_of(domains()["pathology"], "srmamba", named={"network": "mean", "d_state": 4})
    with pytest.raises(InputError, match=r"d_state.*mean"):
        task(**options)


def test_equally_similar_names_are_all_suggested():
    """`seqssm data get etth` named one of etth1 and etth2."""
    assert nearest("etth", ["etth2", "ettm", "etth1", "splice"]) == "; did you mean etth2 or etth1?"
    assert nearest("etth", ["weather", "etth1", "etth2"]) == "; did you mean etth1 or etth2?"
    assert nearest("model.d_modle", ["model.d_model", "model"]) == "; did you mean model.d_model?"
    assert nearest("zzz", ["abc"]) == nearest("zzz", []) == ""
    assert nearest("ECG", ["dna", "ecg"]) == "; did you mean ecg?"


def without_data_set(contents, domain, given):
    """The configs after own records, given as flags, have replaced the data set."""
    flags = split_flags([word for option in given for word in (f"--data.{option}", "x")])
    arguments = Arguments(domain, copy.deepcopy(contents), flags)
    arguments.drop_data_set()
    return arguments.configs


def own_options(domain):
    """Options of the domain's data classes that name the user's own records."""
    return {"forecasting": ["file"], "ecg": ["manifest", "folder"], "pathology": ["manifest"]}.get(
        domain, ["train", "fasta"]
    )


@pytest.mark.parametrize("name", ["dna", "ecg", "forecasting", "pathology"])
def test_own_records_replace_the_data_set_of_a_preset(name, capsys):
    """Its labels, split and target stayed: `--config etth1_96 --data.file my.csv` was refused."""
    domain = domains()[name]
    for preset, source in presets.presets(domain).items():
        content = presets.read_preset(source, domain)
        before = (content.get("data") or {}).get("init_args", {})
        own = [one for one in own_options(name) if any(one in group for group in sources_of(domain, content))]
        (same,) = without_data_set([content], domain, ["batch_size"])
        assert same == content, "no own records"
        for option in own if "dataset" in before else []:
            (after,) = without_data_set([content], domain, [option])
            left = after["data"]["init_args"]
            assert "dataset" not in left, preset
            gone = {one.name for one in domain.of_data_set if option not in one.beside and not one.values} | {"dataset"}
            assert not gone & set(left), preset
            assert {key: value for key, value in before.items() if key in left} == left, preset
            assert before["dataset"], "the preset itself is not changed"
            later = {"data": {"class_path": content["data"]["class_path"], "init_args": {option: "my"}}}
            assert without_data_set([content, later], domain, []) == [after, later], "in a further config"
            assert without_data_set([later, content], domain, []) == [later, content], "the preset comes later"
        assert without_data_set([content], domain, [*own, "dataset"]) == [content], "the user's choice of both"
        if "dataset" in before and own:
            named = frozenset({"data.dataset", f"data.{own[0]}"})
            extra = {"data": {"init_args": {"dataset": None, own[0]: "my"}}}
            arguments = Arguments(domain, copy.deepcopy([content, extra]), [], named)
            arguments.drop_data_set()
            assert arguments.configs[0] == without_data_set([content], domain, [own[0]])[0], "null drops it too"
    if domain.of_data_set:
        assert "seqssm: config: " in capsys.readouterr().err


def sources_of(domain, content):
    path = (content.get("data") or {}).get("class_path", domain.data.replace(":", "."))
    return resolve(":".join(path.rsplit(".", 1))).sources


def test_labels_of_a_challenge_and_of_a_copy_of_the_set_stay():
    domain = domains()["ecg"]

    def labels(preset, option):
        content = presets.read_preset(presets.find_preset(domain, preset), domain)
        return without_data_set([content], domain, [option])[0]["data"]["init_args"].get("labels")

    assert labels("cinc2021_small", "folder") == labels("cinc2021_small", "manifest") == "cinc2021"
    assert labels("ptbxl_superclass_small", "folder") == "superclass"
    assert labels("ptbxl_superclass_small", "manifest") is None


@pytest.mark.parametrize("path", ["nope.module.X", "seqssm_forecasting.data.Nope", "Nope", "collections.OrderedDict"])
def test_a_wrong_class_of_the_data_is_one_line(path, tmp_path, capsys):
    file = tmp_path / "wrong.yaml"
    file.write_text(f"data:\n  class_path: {path}\n  init_args: {{file: a.csv}}\n")
    command = ["forecasting", "fit", "--config", "smamba", "--config", str(file), "--output", str(tmp_path / "run")]
    assert main(command) == 2
    assert path in (printed := capsys.readouterr().err) or "No module" in printed


@pytest.mark.parametrize("name", ["dna", "ecg", "forecasting", "pathology"])
def test_own_records_and_a_data_set_exclude_each_other(name):
    """Three domains read the own records without a word, and forecasting refused."""
    domain = domains()[name]
    for source in presets.presets(domain).values():
        content = presets.read_preset(source, domain)
        for option in [one for one in own_options(name) if any(one in group for group in sources_of(domain, content))]:
            words = [f"--data.{option}", "x", "--data.dataset", "y"]
            with pytest.raises(InputError, match=f"--data.dataset and --data.{option} exclude each other"):
                Arguments(domain, [content], split_flags(words)).require_one_source()
            Arguments(domain, [content], split_flags([*words, "--data.dataset", "null"])).require_one_source()
            extra = {"data": {"init_args": {"dataset": "y", option: "x"}}}
            named = frozenset({"data.dataset", f"data.{option}"})
            with pytest.raises(InputError, match="exclude each other"):
                Arguments(domain, [content, extra], [], named).require_one_source()


def test_a_preset_is_silent_about_options_of_the_networks_it_is_compared_with(capsys):
    """`--config gbmlgg` reported that heads, an option of transmil in the preset, was dropped."""
    domain = domains()["pathology"]
    content = presets.read_preset(presets.find_preset(domain, "gbmlgg"), domain)

    def report(*flags, packaged):
        Arguments(domain, copy.deepcopy([content]), split_flags(flags), packaged=packaged).drop_foreign(flags_too=False)
        return capsys.readouterr().err

    assert report(packaged=frozenset({0})) == ""
    assert report(packaged=frozenset()) == "seqssm: config: heads dropped, not used by the network srmamba\n"
    assert "dropped, not used by the network transmil" in report("--model.network", "transmil", packaged=frozenset({0}))
