"""The origin of a number that is not finite."""

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import trees
from transformer_zoo.nn.stack import STACKED

_MARK = " is finite"  # ends the names that are sown beside a module's own intermediates


def first_not_finite(
    model: Any, objective: Any, params: trees.Tree, batch: dict[str, jax.Array], key: jax.Array
) -> str:
    """Names the first module, in the order of the computation, whose output is not finite; or the first gradient.

    Compiles and runs the loss once more, with a watch on every module. The parameters are those of the step in
    question, or of the one after it.
    """

    def loss(model: Any, params: trees.Tree) -> jax.Array:
        return objective.loss(objective.sums(model, params, batch, key), objective.counts(batch))

    watched = _Watched(model)
    value, finite = jax.jit(lambda params: (loss(watched, params), watched.finite))(params)
    calls = [(path, np.asarray(finite[path][call])) for path, call in watched.order]
    if bad := [(path, ok) for path, ok in calls if not ok.all()]:
        path, ok = bad[0]
        if not ok.ndim:
            return f"the output of {_name(path)}"
        # The modules of a stack run layer by layer: the first fault is in the first layer that has one.
        stack = re.fullmatch(STACKED, path)["stack"]
        path, ok = min((call for call in bad if call[0].startswith(f"{stack}/")), key=lambda call: call[1].argmin())
        return f"the output of {_name(path)} in layer {ok.argmin()}"
    if not jnp.isfinite(value):
        return "the loss itself: every module's output is finite"
    gradient = jax.grad(functools.partial(loss, model))
    finite = jax.jit(lambda params: jax.tree.map(lambda grad: jnp.isfinite(grad).all(), gradient(params)))(params)
    bad = [path for path, ok in trees.flatten(finite).items() if not ok]
    return f"the gradient of {bad[-1]}" if bad else "not reproduced when computed again"


class _Watched:
    """A model whose `apply` also records in `finite` whether the output of each module is finite.

    A value can leave a scan only as its output. Sown values do, with an entry for each layer.
    """

    def __init__(self, model: Any):
        self.model = model
        self.order: list[tuple[str, int]] = []  # in order of computation: module and method, number of the call
        self.finite: dict[str, tuple[jax.Array, ...]] = {}  # an array for each call

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def apply(self, variables: Any, *args: Any, method: Any = None, mutable: Any = False, **kwargs: Any) -> Any:
        if method not in (None, "read"):  # a part of the model, such as its output layer
            return self.model.apply(variables, *args, method=method, **kwargs)
        wanted = [mutable] if isinstance(mutable, str) else list(mutable or ())
        with nn.intercept_methods(self._watch):
            output, sown = self.model.apply(
                variables, *args, method=method, **kwargs, mutable=["intermediates", *wanted]
            )
        flat = trees.flatten(sown["intermediates"])
        self.finite = {path: calls for path, calls in flat.items() if path.endswith(_MARK)}
        return output if mutable is False else (output, {name: sown[name] for name in wanted if name in sown})

    def _watch(self, function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output, method = function(*args, **kwargs), context.method_name
        numbers = [x for x in jax.tree.leaves(output) if isinstance(x, jax.Array)]
        # Private methods initialise parameters: flax traces them only for shapes, and no value may leave that trace.
        if numbers and re.fullmatch("__call__|[a-z]\\w*", method):
            name = method + _MARK
            call = "/".join([*context.module.path, name]), len(context.module.get_variable("intermediates", name, ()))
            context.module.sow("intermediates", name, jnp.stack([jnp.isfinite(x).all() for x in numbers]).all())
            if call not in self.order:  # flax traces the body of a scan more than once
                self.order.append(call)
        return output


def _name(path: str) -> str:
    module, _, method = path.removesuffix(_MARK).rpartition("/")
    return "/".join(part for part in (module, method) if part not in ("", "__call__")) or "the model"
