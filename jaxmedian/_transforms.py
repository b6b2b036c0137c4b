"""Arguments that are optax transformations themselves."""

from typing import Any

import optax


def as_transform(name: str, value: Any) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation, which then takes extra arguments.

    Raises:
      TypeError: for anything else.
    """
    if not isinstance(value, optax.GradientTransformation):
        raise TypeError(
            f"`{name}` must be an optax gradient transformation; got {value!r}."
        )
    return optax.with_extra_args_support(value)
