"""Which layers of a model hand their output to one other layer and to nobody else, read off traces by torch.fx.

A trace shows one way through a model. So that what holds in the traces holds in the model, there is one for each way:
in training and in evaluation, with arguments left at their defaults and given, and for both outcomes of each condition
that depends on an input. A way that the model ends by raising an error gives nothing to anybody. A submodule that can't
be traced is one opaque step, about whose inside nothing is said.
"""

import copy
import dis
import gc
import inspect
import warnings
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.proxy import TraceError
from torch.nn import Module
from torch.utils._pytree import tree_leaves

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")

# Of conditions along one way, and of ways: a loop that an input ends has no end here.
_MOST = 64


# Whose errors say that they can't work with a proxy.
_LIBRARIES = ("torch.", "torchconv.functional.", "torchconv.autograd.", "torchconv.nn.", "torchconv.ops")


class Link(NamedTuple):
    """`after` is all that gets the output of `before`, which is all that it gets; each is called once."""

    before: Module
    after: Module


class Dataflow(NamedTuple):
    """The links of a model, and the modules whose inside is unknown, with the reason."""

    links: set[Link]
    opaque: dict[Module, str]


class _Trace(NamedTuple):
    """What one way through the model shows: the modules that it calls, and the links between them."""

    called: set[Module]
    links: set[Link]


def dataflow(model: Module) -> Dataflow:
    """The links that hold on every way through a model that is called as `model(...)`. The model isn't touched.

    What no trace shows: conditions on the types of inputs, on the state of a random generator, and on attributes that
    are assigned later. If the model itself is opaque, there are no links.
    """
    opaque: dict[Module, str] = {}
    try:
        traces = [trace for way in _ways(model) for trace in _traces(model, *way, opaque)]
    except Exception as error:  # anything at all may happen inside of a model that gets proxies for tensors
        return Dataflow(set(), {model: _reason(error)})
    if not traces:
        return Dataflow(set(), {model: "every way through it ends in an error"})
    found = {link for trace in traces for link in trace.links}
    links = {
        link for link in found if all(link in trace.links for trace in traces if not trace.called.isdisjoint(link))
    }
    return Dataflow(links, opaque)


def _ways(model: Module) -> Iterator[tuple[bool | None, dict[str, Any] | None]]:
    """The modes, None being that which the model is in, each with every argument given and with the defaults."""
    parameters = inspect.signature(model.forward).parameters.items()
    defaults = {name: parameter.default for name, parameter in parameters if parameter.default is not parameter.empty}
    for training in (None, True, False):
        yield training, None
        if defaults:
            yield training, defaults


def _traces(
    model: Module, training: bool | None, defaults: dict[str, Any] | None, opaque: dict[Module, str]
) -> Iterator[_Trace]:
    """One trace for each outcome of the conditions, as far as the model doesn't end in an error of its own."""
    decisions: list[bool] = []
    for _ in range(_MOST):
        shell, originals = _shell(model)
        if training is not None:
            shell.train(training)
        tracer = _Tracer(decisions, originals, opaque)
        try:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph = tracer.trace(shell, defaults)
        except Exception as error:
            if not _is_refusal(error):
                raise
        else:
            yield _read(graph, tracer)
        while decisions and decisions[-1]:
            decisions.pop()
        if not decisions:
            return
        decisions[-1] = True
    raise TraceError(f"there are more than {_MOST} ways through its conditions")


def _shell(model: Module) -> tuple[Module, dict[Module, Module]]:
    """A copy that traces may leave marks on, with the model's own tensors and no hooks; whose copy each module is."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        attributes = vars(module)
        for value in (*attributes.values(), *module._parameters.values(), *module._buffers.values()):
            if isinstance(value, Tensor):
                memo[id(value)] = value
        for name in HOOKS:
            memo[id(attributes[name])] = OrderedDict()
    shell = copy.deepcopy(model, memo)
    return shell, dict(zip(shell.modules(), model.modules(), strict=True))


class _Tracer(fx.Tracer):
    """Goes the way that `decisions` say, and from their end on the first one."""

    proxy_buffer_attributes = True  # a buffer changed in place is the model's own

    def __init__(self, decisions: list[bool], originals: dict[Module, Module], opaque: dict[Module, str]) -> None:
        super().__init__()
        self.decisions, self.originals, self.opaque = decisions, originals, opaque
        self.asked = 0
        self.proxies: list[tuple[fx.Node, weakref.ref[fx.Proxy]]] = []
        self.public: set[fx.Node] = set()  # what hooks get to see

    def proxy(self, node: fx.Node) -> fx.Proxy:
        proxy = super().proxy(node)
        self.proxies.append((node, weakref.ref(proxy)))
        return proxy

    def to_bool(self, obj: fx.Proxy) -> bool:
        if self.asked == len(self.decisions):
            if self.asked == _MOST:
                raise TraceError(f"there are more than {_MOST} conditions on its way")
            self.decisions.append(False)
        self.asked += 1
        return self.decisions[self.asked - 1]

    def is_leaf_module(self, m: Module, module_qualified_name: str) -> bool:
        ours = any(kind.__module__.startswith(("torchconv.nn.", "torchconv.fuse")) for kind in type(m).__mro__)
        known = ours or isinstance(m, torch.jit.ScriptModule) or self.originals[m] in self.opaque
        return known or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if m not in self.originals:  # kept where torch.nn doesn't look: part of the module that calls it
            return forward(*args, **kwargs)
        path, original, asked = self.path_of_module(m), self.originals[m], self.asked
        if self.is_leaf_module(m, path):
            return self.create_proxy("call_module", path, args, kwargs)
        try:
            output = forward(*args, **kwargs)
        except Exception as error:
            if _is_refusal(error):
                raise
            self.opaque[original] = _reason(error)
            self.asked = asked
            del self.decisions[asked:]
            output = self.create_proxy("call_module", path, args, kwargs)
        if any(vars(original)[name] for name in HOOKS):
            seen = tree_leaves((args, kwargs, output))
            self.public |= {value.node for value in seen if isinstance(value, fx.Proxy)}
        return output


def _read(graph: fx.Graph, tracer: _Tracer) -> _Trace:
    if any(proxy() is not None for _, proxy in tracer.proxies):
        gc.collect()
    # What the model still holds, in an attribute or a list, may be seen there.
    public = tracer.public | {node for node, proxy in tracer.proxies if proxy() is not None}
    modules = {
        node: tracer.originals[tracer.root.get_submodule(str(node.target))]
        for node in graph.nodes
        if node.op == "call_module"
    }
    calls = Counter(inner for module in modules.values() for inner in module.modules())
    links = set()
    for node, module in modules.items():
        (user, *others) = node.users or [None]
        if others or user not in modules or node in public or user.all_input_nodes != [node]:
            continue
        if calls[module] == calls[modules[user]] == 1:
            links.add(Link(module, modules[user]))
    return _Trace(set(calls), links)


def _is_refusal(error: Exception) -> bool:
    """Whether it comes from a `raise` or an `assert` of the model, as for an input that it doesn't take.

    Else it comes from what a proxy can't do or isn't, and says nothing about the model.
    """
    traceback = error.__traceback__
    assert traceback is not None
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    frame = traceback.tb_frame
    return (
        frame.f_code.co_code[traceback.tb_lasti] == dis.opmap["RAISE_VARARGS"]
        and not frame.f_globals.get("__name__", "").startswith(_LIBRARIES)
        and not isinstance(error, TypeError)
        and error.__context__ is None
    )


def _reason(error: Exception) -> str:
    """The first sentence: torch.fx goes on with advice to who wrote the model."""
    return str(error).strip().split("\n")[0].split(". ")[0] or type(error).__name__
