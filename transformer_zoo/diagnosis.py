"""Where a number that is not finite came from."""

import collections
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo import trees


def first_not_finite(
    model: Any, objective: Any, params: trees.Tree, batch: dict[str, jax.Array], key: jax.Array
) -> str:
    """Names the first module, in the order of the computation, whose output is not finite; or the first gradient.

    Compiles and runs the loss once more, with a watch on every module. The parameters are those of the step in
    question, or of the one after it.
    """
    names: list[str] = []  # of the places that are watched, in the order of the computation
    finite: dict[int, list[bool]] = collections.defaultdict(list)  # of each place, once a layer where it is in a stack

    def watch(function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = function(*args, **kwargs)
        for leaf in jax.tree.leaves(output):
            if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating):
                place = len(names)
                method = [] if context.method_name == "__call__" else [context.method_name]
                names.append("/".join([*context.module.path, *method]) or "the model")
                jax.debug.callback(lambda ok, place=place: finite[place].append(bool(ok)), jnp.isfinite(leaf).all())
        return output

    def loss(params: trees.Tree) -> jax.Array:
        return objective.loss(objective.sums(model, params, batch, key), objective.counts(batch))

    with nn.intercept_methods(watch):
        value = jax.jit(loss)(params)
        jax.effects_barrier()
    bad = [(place, layer) for place in finite for layer, ok in enumerate(finite[place]) if not ok]
    if bad:
        place, layer = min(bad)
        layers = len(finite[place])
        if layers == 1:
            return f"the output of {names[place]}"
        layer, place = min((layer, place) for place, layer in bad if len(finite[place]) == layers)
        return f"the output of {names[place]} in layer {layer}"
    if not jnp.isfinite(value):
        return "the loss itself: every module's output is finite"
    grads = trees.flatten(jax.jit(jax.grad(loss))(params))
    bad = [path for path, grad in grads.items() if not jnp.isfinite(grad).all()]
    return f"the gradient of {bad[-1]}" if bad else "nothing that a second look could find"
