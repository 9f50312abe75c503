"""Decorators for functions of a model.py.

A model.py without a function `handle` may have hooks in its place: `init_handler` is called once with
the model's settings and may return a state, `input_formatter` makes data of a request,
`prediction_handler` makes a result of data, `output_formatter` makes the reply of a result. Where
there is no formatter, `encode_decode` reads the request and writes the reply.
"""

HOOK = "__djl_hook__"
MAX_IN_FLIGHT = "__djl_max_in_flight__"


def _hook(name):
    def decorate(function):
        setattr(function, HOOK, name)
        return function

    decorate.__name__ = name
    return decorate


init_handler = _hook("init_handler")
input_formatter = _hook("input_formatter")
prediction_handler = _hook("prediction_handler")
output_formatter = _hook("output_formatter")


def concurrent(max_in_flight):
    """Says that the handler may be called for so many requests at a time, each on a thread of its
    own (or, for an `async def`, each as a task)."""
    if isinstance(max_in_flight, bool) or not isinstance(max_in_flight, int) or max_in_flight < 1:
        raise ValueError(f"concurrent({max_in_flight!r}): expected a whole number above 0")

    def decorate(function):
        setattr(function, MAX_IN_FLIGHT, max_in_flight)
        return function

    return decorate
