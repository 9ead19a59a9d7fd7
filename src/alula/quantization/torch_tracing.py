"""The graph of a module as `torch.fx` sees it, for inputs whose sizes are known but for the batch."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import fx, nn

__all__ = ["trace"]


def trace(
    module: nn.Module, example: Sequence[torch.Tensor], other: Sequence[torch.Tensor]
) -> fx.GraphModule:
    """Return the graph of a module; modules of PyTorch are its leaves, under their own paths.

    Plain symbolic tracing knows no sizes, and fails where control flow depends on them, as it does in padding
    that keeps a size. Here every operation also runs on two batches. A size that is the same for both is a
    constant of the graph, one that differs follows the batch and stays symbolic. Control flow that depends on
    values still fails. Types and devices are constants. Parameters of `forward` that no input is given for
    have their defaults. What works in place is read by all that comes later, whether its result is used or
    not: PyTorch's own tracing loses it. Nodes that give a tensor of integers or truth values have `integers`
    in their `meta`.

    Args:
        module: in eval mode.
        example: one tensor per input.
        other: the same with another batch size, or with the same one where the model fixes it.

    Raises:
        ValueError: control flow depends on values (`torch.fx.proxy.TraceError`), or a tensor is read that was
            changed in place by what does not give it back.
        Exception: whatever the module raises for what it did not expect: proxies.
    """
    import torch
    from torch import fx

    class SizedProxy(fx.Proxy):  # type: ignore[misc]  # torch is untyped here
        @property
        def shape(self) -> Any:
            return tracer.sizes(self)

        @property
        def ndim(self) -> Any:
            return len(self.shape)

        def size(self, dim: int | None = None) -> Any:
            return self.shape if dim is None else self.shape[dim]

        def dim(self) -> Any:
            return self.ndim

        @property
        def dtype(self) -> Any:
            return tracer.constant(self, "dtype")

        @property
        def device(self) -> Any:
            return tracer.constant(self, "device")

    class SizedTracer(fx.Tracer):  # type: ignore[misc]  # torch is untyped here
        def __init__(self) -> None:
            super().__init__()
            self._waiting = list(zip(example, other, strict=True))
            self._values: dict[fx.Node, tuple[Any, Any]] = {}
            # What to read instead of a node whose tensor was changed in place; None where no node gives it.
            self._changed: dict[fx.Node, fx.Node | None] = {}
            self._computing = False

        def proxy(self, node: fx.Node) -> fx.Proxy:
            return SizedProxy(node, self)

        def create_proxy(self, kind: str, target: Any, args: Any, *rest: Any, **more: Any) -> Any:
            if kind == "placeholder" and not self._waiting:
                return args[0] if args else None
            proxy = super().create_proxy(kind, target, args, *rest, **more)
            for read in proxy.node.all_input_nodes:
                proxy.node.replace_input_with(read, self._as_it_is_now(read))
            if kind == "placeholder":
                self._values[proxy.node] = self._waiting.pop(0)
            elif kind != "output":
                self._computing = True
                before = self._versions(proxy.node)
                try:
                    self._values[proxy.node] = (self._computed(proxy.node, 0), self._computed(proxy.node, 1))
                finally:
                    self._computing = False
                for read, version in self._versions(proxy.node).items():
                    if version != before[read]:
                        given = self._values[proxy.node][0] is self._values[read][0]
                        self._changed[read] = proxy.node if given else None
            if kind != "output":
                value = self._values[proxy.node][0]
                proxy.node.meta["integers"] = (
                    isinstance(value, torch.Tensor) and not value.is_floating_point()
                )
            return proxy

        def _versions(self, node: fx.Node) -> dict[fx.Node, int]:
            """Return how often the tensors that a node reads were changed in place so far."""
            known = {read: self._values[read][0] for read in node.all_input_nodes if read in self._values}
            return {read: value._version for read, value in known.items() if isinstance(value, torch.Tensor)}

        def _as_it_is_now(self, node: fx.Node) -> fx.Node:
            now: fx.Node | None = node
            while now in self._changed:
                now = self._changed[now]
            if now is None:
                raise ValueError(f"`{node.name}` is read after it was changed in place.")
            return now

        # While tracing, every call of a module and every look at its parameters comes through these two.
        def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
            if self._computing:
                return forward(*args, **kwargs)
            return super().call_module(m, forward, args, kwargs)

        def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
            return attr_val if self._computing else super().getattr(attr, attr_val, parameter_proxy_cache)

        def _computed(self, node: fx.Node, index: int) -> Any:
            def value(read: fx.Node) -> Any:
                # Parameters and constants become nodes on the way.
                known = read.op != "get_attr"
                return self._values[read][index] if known else operator.attrgetter(read.target)(self.root)

            args = fx.node.map_arg(node.args, value)
            kwargs = fx.node.map_arg(node.kwargs, value)
            if node.op == "get_attr":
                return value(node)
            if node.op == "call_module":
                return self.root.get_submodule(node.target)(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], node.target)(*args[1:], **kwargs)
            return node.target(*args, **kwargs)

        def sizes(self, proxy: fx.Proxy) -> Any:
            one, two = self._values[proxy.node]
            if not isinstance(one, torch.Tensor):
                return fx.proxy.Attribute(proxy, "shape")
            return tuple(
                size if size == also else self.create_proxy("call_method", "size", (proxy, axis), {})
                for axis, (size, also) in enumerate(zip(one.shape, two.shape, strict=True))
            )

        def constant(self, proxy: fx.Proxy, name: str) -> Any:
            one, _ = self._values[proxy.node]
            known = isinstance(one, torch.Tensor)
            return getattr(one, name) if known else fx.proxy.Attribute(proxy, name)

        def to_bool(self, obj: fx.Proxy) -> bool:
            one, two = self._values[obj.node]
            if isinstance(one, bool) and one == two:
                return one
            return bool(super().to_bool(obj))

    tracer = SizedTracer()
    with torch.no_grad():
        graph = tracer.trace(module)
    return fx.GraphModule(module, graph)
