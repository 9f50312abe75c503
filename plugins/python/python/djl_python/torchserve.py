"""TorchServe archives: a handler class with `initialize(context)` and `handle(data, context)`."""

import inspect
import json
import os
import threading

from .outputs import Output
from .service import LoadError, import_entry_point


class Context:
    """What a handler class is given beside its data."""

    def __init__(self, manifest, properties):
        self.manifest = manifest
        self.system_properties = properties
        self.metrics = None
        self.model_name = manifest.get("model", {}).get("modelName")
        self.model_yaml_config = {}
        self._headers = {}
        self.reply_headers = {}
        self.status = None

    def get_request_header(self, idx, key, exp=None):
        """A header of request `idx`."""
        for known, value in self._headers.get(idx, {}).items():
            if known.lower() == key.lower():
                return value
        return exp

    def get_all_request_header(self, idx):
        """All headers of request `idx`."""
        return self._headers.get(idx, {})

    def set_response_content_type(self, idx, value):
        """Sets the content type of the replies."""
        self.reply_headers["Content-Type"] = value

    def set_response_header(self, idx, key, value):
        """Sets a header of the replies."""
        self.reply_headers[key] = value

    def set_response_status(self, code=200, phrase="", idx=0):
        """Sets the status of the replies."""
        self.status = (code, phrase)


class ArchiveService:
    """The handler of an archive, in the form of a service."""

    def __init__(self, manifest, module, model_dir):
        self._manifest = manifest
        self._model_dir = model_dir
        classes = [
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and value.__module__ == module.__name__
            and callable(getattr(value, "handle", None))
        ]
        if classes:
            self._instance = classes[-1]()
            self._handle = self._instance.handle
        elif callable(getattr(module, "handle", None)):
            self._instance = None
            self._handle = module.handle
        else:
            name = os.path.basename(module.__file__)
            raise LoadError(f"{name} has no class with a method `handle`, and no function `handle`")
        self._context = None
        # The context is one for all calls.
        self._lock = threading.Lock()

    @classmethod
    def of_manifest(cls, path, model_dir):
        """The service that MAR-INF/MANIFEST.json names."""
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
        handler = manifest.get("model", {}).get("handler")
        if not handler:
            raise LoadError("MAR-INF/MANIFEST.json names no model.handler")
        name = handler.split(":")[0]
        name = name if name.endswith(".py") else name + ".py"
        if os.path.basename(name) != name:
            raise LoadError(f"MAR-INF/MANIFEST.json: model.handler {handler!r} is no file's name")
        return cls(manifest, import_entry_point(os.path.join(model_dir, name)), model_dir)

    def function(self, name):
        """The handler, whatever name was asked for."""
        return self._answer

    def initialize(self, properties):
        """The function of the call that loads the model."""
        gpu = properties.get("device_id", "-1")
        system = {
            "model_dir": self._model_dir,
            "gpu_id": None if gpu == "-1" else int(gpu),
            "batch_size": properties.get("batch_size", "1"),
            "server_name": "Drivetrain",
            "server_version": "1",
        }
        self._context = Context(self._manifest, system)

        def start(_inputs):
            if callable(getattr(self._instance, "initialize", None)):
                self._instance.initialize(self._context)

        return start

    def is_async(self):
        """Handler classes are called one request at a time."""
        return False

    def max_in_flight(self):
        """They say nothing of how many requests they take."""
        return None

    def _answer(self, inputs):
        with self._lock:
            return self._answer_alone(inputs)

    def _answer_alone(self, inputs):
        data, context = [], self._context
        context._headers, context.reply_headers, context.status = {}, {}, None
        batches = inputs.get_batches()
        for idx, one in enumerate(batches):
            context._headers[idx] = one.get_properties()
            row = {}
            for key, value in one.get_content().items():
                row["body" if key == "data" else key] = value
            data.append(row)
        results = self._handle(data, context)
        if not isinstance(results, list) or len(results) != len(batches):
            return Output().error(f"the handler has to return a list of {len(batches)} results")
        outputs = Output(*(context.status or (200, "OK")))
        for key, value in context.reply_headers.items():
            outputs.add_property(key, value)
        for idx, result in enumerate(results):
            outputs.add(result, batch_index=idx if inputs.is_batch() else None)
        return outputs
