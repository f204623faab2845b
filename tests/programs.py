"""Traced programs of jax."""

import jax


def equations(program):
    """Every operation of a traced program, those of the programs inside it (loops, branches, calls) too."""
    for equation in getattr(program, "jaxpr", program).eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns")):
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def convolutions(function, *arguments) -> list:
    """The parameters of every convolution of a function."""
    return [e.params for e in equations(jax.make_jaxpr(function)(*arguments)) if e.primitive.name == "conv_general_dilated"]
