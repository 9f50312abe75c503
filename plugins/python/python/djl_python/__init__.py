"""What a model.py imports: the request, the reply, and the decorators of its hooks.

Imports nothing beyond the standard library; numpy and Pillow are asked for when a method needs them.
"""

from .decorators import (
    concurrent,
    init_handler,
    input_formatter,
    output_formatter,
    prediction_handler,
)
from .inputs import Input
from .outputs import Output
from .pair_list import PairList

__all__ = [
    "Input",
    "Output",
    "PairList",
    "concurrent",
    "init_handler",
    "input_formatter",
    "output_formatter",
    "prediction_handler",
]
