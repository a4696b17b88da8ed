"""Modules compiled as a whole: op by op, a test compiles a hundred programs."""

import jax


def init(module, *arguments):
    """Initializes a module in one compiled program."""
    return jax.jit(module.init)(*arguments)


def apply(module, variables, x, *options, **named):
    """Applies a module in one compiled program.

    Arguments other than `variables`, `x` and `rngs` are static.
    """
    rngs = named.pop("rngs", None)

    @jax.jit
    def applied(variables, x, rngs):
        return module.apply(variables, x, *options, rngs=rngs, **named)

    return applied(variables, x, rngs)
