"""The user's code: found, imported, and called through one function whatever form it has."""

import importlib
import importlib.util
import inspect
import json
import os
import sys

from .decorators import HOOK, MAX_IN_FLIGHT
from .encode_decode import decode, encode
from .outputs import Output


class LoadError(Exception):
    """The user's code can't be called at all."""


def load_service(entry_point, model_dir, handler):
    """The service of an entry point: a file, or a module's name; of a TorchServe archive without."""
    manifest = os.path.join(model_dir, "MAR-INF", "MANIFEST.json")
    if not entry_point and os.path.isfile(manifest):
        from .torchserve import ArchiveService

        return ArchiveService.of_manifest(manifest, model_dir)
    module = import_entry_point(entry_point)
    hooks = _hooks(module)
    if callable(getattr(module, handler, None)):
        return Service(module, entry_point, handler)
    if "prediction_handler" in hooks:
        return Service(module, entry_point, handler, HookedHandler(hooks))
    if callable(getattr(module, "predict_fn", None)) or callable(getattr(module, "model_fn", None)):
        return Service(module, entry_point, handler, ScriptHandler(module, model_dir))
    name = os.path.basename(entry_point)
    raise LoadError(
        f"{name} has no function `{handler}`: define `def {handler}(inputs)`, or name another "
        "function with option.handler"
    )


def import_entry_point(entry_point):
    """Imports a file or a module."""
    if entry_point.endswith(".py") or os.path.sep in entry_point:
        name = os.path.splitext(os.path.basename(entry_point))[0]
        spec = importlib.util.spec_from_file_location(name, entry_point)
        if spec is None or not os.path.isfile(entry_point):
            raise LoadError(f"{entry_point}: no Python file")
        module = importlib.util.module_from_spec(spec)
        # What is pickled or dispatched to other processes looks its module up by name.
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    return importlib.import_module(entry_point)


def _hooks(module):
    found = {}
    for value in list(vars(module).values()):
        name = getattr(value, HOOK, None) if callable(value) else None
        if isinstance(name, str):
            found[name] = value
    return found


class Service:
    """A module whose functions answer."""

    def __init__(self, module, entry_point, handler, stand_in=None):
        self._module = module
        self._entry_point = os.path.basename(entry_point)
        self._handler = handler
        self._stand_in = stand_in

    def function(self, name):
        """The function of a name; the handler without one."""
        if self._stand_in is not None and name in ("", self._handler):
            return self._stand_in
        function = getattr(self._module, name or self._handler, None)
        if not callable(function):
            raise LoadError(f"{self._entry_point} has no function `{name}`")
        return function

    def initialize(self, properties):
        """The function of the call that loads the model."""
        return self.function("")

    def is_async(self):
        """Whether the handler is declared `async`."""
        return inspect.iscoroutinefunction(self.function(""))

    def max_in_flight(self):
        """How many requests at a time the handler says it takes; None if it says nothing."""
        return getattr(self.function(""), MAX_IN_FLIGHT, None)


class HookedHandler:
    """A handler made of hooks."""

    def __init__(self, hooks):
        self._hooks = hooks
        self._state = None

    def __call__(self, inputs):
        if inputs.is_empty():
            init = self._hooks.get("init_handler")
            self._state = _call(init, inputs.get_properties()) if init else None
            return None
        outputs = Output()
        is_batch = inputs.is_batch()
        for idx, one in enumerate(inputs.get_batches()):
            index = idx if is_batch else None
            reply = self._answer(one)
            if not isinstance(reply, Output):
                _add_result(outputs, reply, one, index)
            elif is_batch:
                outputs.add(reply.body() or b"", batch_index=idx)
            else:
                return reply
        return outputs

    def _answer(self, one):
        read = self._hooks.get("input_formatter")
        data = _call(read, one) if read else decode(one)
        result = _call(self._hooks["prediction_handler"], data, self._state)
        write = self._hooks.get("output_formatter")
        return _call(write, result) if write else result


class ScriptHandler:
    """A handler made of SageMaker's `model_fn`, `input_fn`, `predict_fn` and `output_fn`."""

    def __init__(self, module, model_dir):
        self._module = module
        self._model_dir = model_dir
        self._model = None

    def _part(self, name):
        function = getattr(self._module, name, None)
        return function if callable(function) else None

    def __call__(self, inputs):
        if inputs.is_empty():
            load = self._part("model_fn")
            self._model = load(self._model_dir) if load else None
            return None
        outputs = Output()
        is_batch = inputs.is_batch()
        for idx, one in enumerate(inputs.get_batches()):
            index = idx if is_batch else None
            read, predict, write = map(self._part, ("input_fn", "predict_fn", "output_fn"))
            content_type = one.get_property("Content-Type") or "application/json"
            data = read(one.get_as_bytes(), content_type) if read else decode(one)
            result = predict(data, self._model) if predict else self._model(data)
            accept = one.get_property("Accept") or "application/json"
            if write is None:
                _add_result(outputs, result, one, index)
                continue
            written = write(result, accept)
            if isinstance(written, tuple) and len(written) == 2:
                written, accept = written
            outputs.add_property("Content-Type", accept)
            outputs.add(written, batch_index=index)
        return outputs


def _add_result(outputs, result, one, index):
    if index is None and not isinstance(result, (str, bytes, bytearray)):
        encode(outputs, result, one.get_property("Accept"))
    else:
        outputs.add(result, batch_index=index)


def _call(function, *arguments):
    """Calls a hook with as many of the arguments as it takes."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return function(*arguments)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return function(*arguments)
    return function(*arguments[:sum(p.kind in kinds for p in parameters)])


def error_of(output):
    """What an error's reply says, for a message."""
    body = output.body()
    if body is None:
        return output.message
    text = bytes(body[:4096]).decode("utf-8", "replace")
    try:
        value = json.loads(text)
        return str(value.get("error", text)) if isinstance(value, dict) else text
    except ValueError:
        return text
