"""A network's class signature is its configuration: task arguments, flags, YAML keys and checkpoint entries follow it.

A task lists its networks (`Task.networks`) without repeating their arguments. `declare` gives the task class a joint
signature of its own arguments, those of its bases and those of every network, so that LightningCLI sees all of them.
Arguments of networks have the default None there, which stands for the network's own default.

A task whose own argument applies to some of its networks only declares this in ``Task.only_with``, the name of the
argument and a function of the network's class.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection, Iterable, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring

from seqssm.bounds import Bounds
from seqssm.errors import InputError, nearest
from seqssm.training.sizes import require_depth, require_fits

LARGEST = Bounds(most=2**31 - 1)  # of any number that configures a network; its constructor knows narrower bounds
CHOICE = "network"  # the argument that chooses the network
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a callable, with evaluated annotations, without ``self``, ``*args`` and ``**kwargs``."""
    function = function.__init__ if inspect.isclass(function) else function
    hints = get_type_hints(function)
    found = list(inspect.signature(function).parameters.values())[1:]
    return {p.name: p.replace(annotation=hints.get(p.name, Any)) for p in found if p.kind in _NAMED}


def matches(value: Any, kind: Any) -> bool:
    """Whether a stored value has the type of an annotation; True for annotations other than plain types and literals.

    Args:
        value: plain Python, as a checkpoint stores it. An integer is also a float, and a tuple also a list.
        kind: the annotation.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(matches(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if kind in (None, type(None)):
        return value is None
    if origin in (list, tuple) or kind in (list, tuple):
        items = inner[0] if origin is list else Any
        return isinstance(value, list | tuple) and all(matches(one, items) for one in value)
    if origin is dict or kind is dict:
        return isinstance(value, dict)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind) if kind in (str, bool) else True


def declare(task: type) -> None:
    """Return `task` the joint signature, a constructor that checks names, and the networks' help texts.

    Sets ``task.own_arguments``, the parameters of the task and its bases, and ``task.network_arguments``, the remaining
    parameters of the networks, with default None.
    """
    raw: Any = vars(task).get("__init__") or task.__init__  # type: ignore[misc]
    raw = getattr(raw, "raw_init", raw)
    own: dict[str, inspect.Parameter] = {}
    for base in task.__mro__:
        if "__init__" in vars(base) and hasattr(base, "networks"):
            function = vars(base)["__init__"]
            for name, parameter in parameters(getattr(function, "raw_init", function)).items():
                own.setdefault(name, parameter)
    networks: Mapping[str, type] = task.networks  # type: ignore[attr-defined]
    if networks:
        first = next(iter(networks))
        choice = inspect.Parameter(
            CHOICE,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=first,
            annotation=Literal[tuple(networks)],
        )
        own = {CHOICE: choice, **own}
    task.own_arguments = own  # type: ignore[attr-defined]
    task.network_arguments = _of_networks(task, own)  # type: ignore[attr-defined]

    def __init__(self: Any, *args: Any, **given: Any) -> None:  # noqa: N807
        if type(self) is task:
            bound = signature.bind(self, *args, **given).arguments if args else given
            values = complete(task, {name: value for name, value in bound.items() if name != "self"})
            self.__dict__["arguments"] = values
            given = {name: value for name, value in values.items() if name in own and not (name == CHOICE and networks)}
        elif networks:
            given.pop(CHOICE, None)
        raw(self, **given)

    ordered = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for n, p in own.items() if not (n == CHOICE and networks)]
    head = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    head += [own[CHOICE]] if networks else []
    signature = inspect.Signature([*head, *ordered, *task.network_arguments.values()])  # type: ignore[attr-defined]
    __init__.raw_init = raw  # type: ignore[attr-defined]
    __init__.__signature__ = signature  # type: ignore[attr-defined]
    __init__.__qualname__ = f"{task.__qualname__}.__init__"
    __init__.__module__ = task.__module__
    task.__init__ = __init__  # type: ignore[misc]
    if networks:
        task.__doc__ = _documented(task)


def _of_networks(task: Any, own: Mapping[str, Any]) -> dict[str, inspect.Parameter]:
    found: dict[str, inspect.Parameter] = {}
    for network in task.networks.values():
        for name, parameter in parameters(network).items():
            if name in own or name in task.derived:
                continue
            before = found.get(name)
            kinds = [parameter.annotation] + ([before.annotation] if before else [])
            annotation: Any = Union[(*kinds, None)]
            found[name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
    return found


def owners(task: Any, name: str) -> list[str]:
    """List the networks of `task` that have the argument `name`."""
    return [network for network, cls in task.networks.items() if name in parameters(cls)]


def complete(task: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all arguments of a task and its chosen network.

    Args:
        task: the class.
        given: values given by the caller.

    Returns:
        Every argument of the task and of the chosen network, with the network's defaults filled in.

    Raises:
        InputError: an unknown argument, an unknown network, or an argument of another network.
    """
    own, of_networks = task.own_arguments, task.network_arguments
    for name in given:
        if name not in own and name not in of_networks:
            raise InputError(f"{task.__name__} has no argument {name}{nearest(name, [*own, *of_networks])}")
    values = {}
    for name, parameter in own.items():
        if name not in given and parameter.default is inspect.Parameter.empty:
            raise InputError(f"{task.__name__} needs the argument {name}")
        values[name] = given.get(name, parameter.default)
    if not task.networks:
        return values
    chosen = require_network(task, values[CHOICE])
    mine = parameters(task.networks[chosen])
    for name in of_networks:
        value = given.get(name)
        if name in mine:
            values[name] = mine[name].default if value is None else value
            if values[name] is inspect.Parameter.empty:
                raise InputError(f"--model.{name} is required by the network {chosen}")
        elif value is not None:
            raise InputError(f"--model.{name}: not an argument of the network {chosen}{_has(task, name)}")
    return values


def require_network(task: Any, name: Any) -> str:
    """Check that `name` is a network of `task`.

    Raises:
        InputError: it is not; the message suggests the most similar name.
    """
    if name not in task.networks:
        known = ", ".join(task.networks)
        raise InputError(
            f"--model.{CHOICE} {name}: unknown network{nearest(str(name), task.networks)} (known: {known})"
        )
    return name


def _has(task: Any, name: str) -> str:
    return f", which {', '.join(owners(task, name))} has" if len(owners(task, name)) == 1 else ""


def without_foreign(
    task: Any, given: Mapping[str, Any], network: str | None = None, keep: Collection[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Drop the arguments of networks that are not chosen, in values from a preset, `config.yaml` or old checkpoint.

    So are arguments of the task that do not apply to the chosen network.

    Args:
        task: the class.
        given: the values.
        network: the chosen network; by default that in `given`.
        keep: arguments that the user gave; the task refuses them itself.

    Returns:
        (remaining values, names of the dropped arguments whose value was not the default).
    """
    if not getattr(task, "networks", None):
        return dict(given), []
    chosen = network or given.get(CHOICE) or task.own_arguments[CHOICE].default
    if chosen not in task.networks:
        return dict(given), []  # `complete` raises the error
    mine = parameters(task.networks[chosen])
    foreign = [name for name in given if name in task.network_arguments and name not in mine and name not in keep]
    for name, applies in getattr(task, "only_with", {}).items():
        default = task.own_arguments[name].default
        if given.get(name, default) != default and name not in keep and not applies(task.networks[chosen]):
            foreign.append(name)
    told = [name for name in foreign if given[name] is not None and not _is_default(task, name, given[name])]
    return {name: value for name, value in given.items() if name not in foreign}, told


def _is_default(task: Any, name: str, value: Any) -> bool:
    return any(parameters(task.networks[network])[name].default == value for network in owners(task, name))


def report_dropped(task: Any, network: str, names: Iterable[str], where: str) -> None:
    """Report dropped arguments of other networks in one line on stderr."""
    names = list(dict.fromkeys(names))
    if names:
        print(f"seqssm: {where}: {', '.join(names)} dropped, not used by the network {network}", file=sys.stderr)


def build(task: Any, values: Mapping[str, Any], derived: Mapping[str, Any]) -> Any:
    """Build the chosen network from the task's arguments and the derived ones.

    Raises:
        InputError: the network rejects a value.
    """
    network = task.networks[require_network(task, values[CHOICE])]
    names = parameters(network)
    arguments = {
        name: derived[name] if name in derived else values[name] for name in names if name in {**derived, **values}
    }
    try:
        return network(**arguments)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"--model: {error}") from None


def check(task: Any, values: Mapping[str, Any], assumed: Mapping[str, Any]) -> None:
    """Build the chosen network without memory, so that arguments out of range are found before any data are read.

    Does nothing if an argument without default is not known yet.

    Args:
        task: the class.
        values: the task's arguments.
        assumed: values of arguments that come from the data, used where `values` has None.

    Raises:
        InputError: the network rejects a value.
    """
    if not task.networks:
        return
    require_depth(values)
    for name in task.network_arguments:
        LARGEST.require(f"--model.{name}", values.get(name))
    found = {name: values[name] for name in (CHOICE, *task.network_arguments) if name in values}
    found |= {name: value if values.get(name) is None else values[name] for name, value in assumed.items()}
    mine = parameters(task.networks[values[CHOICE]])
    if all(p.default is not inspect.Parameter.empty or found.get(name) is not None for name, p in mine.items()):
        require_fits(lambda: build(task, found, {}), None, "")


def linked(task: Any, model: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of `Task.linked_args`: those of the model if given, else those of the data.

    Args:
        task: the task class.
        model: arguments of the task.
        data: arguments of the data module.

    Raises:
        InputError: both are given and different, or the value of the data is out of the task's bounds.
    """
    values = {}
    for name in task.linked_args:
        given, known = model.get(name), data.get(name)
        if given is not None and known is not None and given != known:
            raise InputError(f"--data.{name} {known} and --model.{name} {given} must be the same")
        if given is None and name in task.limits:
            task.limits[name].require(f"--data.{name}", known)
        values[name] = known if given is None else given
    return values


def _documented(task: Any) -> str:
    """Extend the task's docstring by one Args entry per argument of its networks."""
    text = inspect.getdoc(task) or ""
    entries = [f"    {CHOICE}: network to train."]
    if any(p.arg_name == CHOICE for p in parse_docstring(text).params):
        entries = []
    for name in task.network_arguments:
        mine = owners(task, name)
        described = [p for n in mine for p in parse_docstring(inspect.getdoc(task.networks[n]) or "").params]
        helps = [p.description for p in described if name in [part.strip() for part in p.arg_name.split(",")]]
        words = " ".join((helps[0] if helps and helps[0] else "").split()).rstrip(".")
        defaults = dict.fromkeys(str(parameters(task.networks[n])[name].default) for n in mine)
        only = "" if len(mine) == len(task.networks) else f"{', '.join(mine)}; "
        entries.append(f"    {name}: {words} ({only}default {' or '.join(defaults)}).")
    lines = text.splitlines()
    if "Args:" not in [line.strip() for line in lines]:
        return "\n".join([*lines, "", "Args:", *entries])
    start = next(place for place, line in enumerate(lines) if line.strip() == "Args:")
    end = start + 1
    while end < len(lines) and (not lines[end].strip() or lines[end].startswith("    ")):
        end += 1
    while not lines[end - 1].strip():
        end -= 1
    return "\n".join([*lines[:end], *entries, *lines[end:]])
