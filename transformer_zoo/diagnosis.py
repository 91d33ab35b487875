"""Where a number that is not finite came from."""

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import trees
from transformer_zoo.nn.stack import STACKED

_MARK = " is finite"  # what is sown beside a module's own intermediates


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
        # The modules of a stack take turns, layer by layer: the first is in the first layer that has one.
        stack = re.fullmatch(STACKED, path)["stack"]
        path, ok = min((call for call in bad if call[0].startswith(f"{stack}/")), key=lambda call: call[1].argmin())
        return f"the output of {_name(path)} in layer {ok.argmin()}"
    if not jnp.isfinite(value):
        return "the loss itself: every module's output is finite"
    grads = trees.flatten(jax.jit(jax.grad(functools.partial(loss, model)))(params))
    bad = [path for path, grad in grads.items() if not jnp.isfinite(grad).all()]
    return f"the gradient of {bad[-1]}" if bad else "nothing that a second look could find"


class _Watched:
    """A model whose `apply` also says of every module, in `finite`, whether its output is finite.

    Values that leave a scan have to be returned by it: what is sown is, with an entry for each layer.
    """

    def __init__(self, model: Any):
        self.model = model
        self.order: list[tuple[str, int]] = []  # of the computation: module and method, and which call of it
        self.finite: dict[str, tuple[jax.Array, ...]] = {}  # of each call

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def apply(self, variables: Any, *args: Any, method: Any = None, mutable: Any = False, **how: Any) -> Any:
        if method not in (None, "read"):  # a part, once more
            return self.model.apply(variables, *args, method=method, **how)
        with nn.intercept_methods(self._watch):
            output, asked = self.model.apply(variables, *args, method=method, **how, mutable="intermediates")
        flat = trees.flatten(asked["intermediates"])
        self.finite = {path: calls for path, calls in flat.items() if path.endswith(_MARK)}
        return output if mutable is False else (output, asked)

    def _watch(self, function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output, method = function(*args, **kwargs), context.method_name
        numbers = [x for x in jax.tree.leaves(output) if isinstance(x, jax.Array)]
        # Private methods initialise parameters: flax traces them for shapes alone, out of which no value may come.
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
