"""Modules compiled as a whole: op by op, a test compiles a hundred programs."""

import jax


def init(module, *arguments):
    """`module.init`."""
    return jax.jit(module.init)(*arguments)


def apply(module, variables, x, *options, **named):
    """`module.apply`; but for the input and `rngs`, arguments are static."""
    rngs = named.pop("rngs", None)

    @jax.jit
    def applied(variables, x, rngs):
        return module.apply(variables, x, *options, rngs=rngs, **named)

    return applied(variables, x, rngs)
