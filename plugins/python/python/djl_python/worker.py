"""A worker process: loads the user's code and answers what comes over the socket.

One thread receives. Calls are answered on the main thread one after the other; or, where the handler
takes several at a time, on threads, or as tasks of one event loop if it is declared `async`.
"""

import argparse
import asyncio
import concurrent.futures
import inspect
import logging
import os
import queue
import struct
import sys
import threading
import traceback

from . import wire
from .inputs import Input
from .outputs import Output
from .pair_list import PairList
from .service import LoadError, error_of, load_service

# How many pieces of a stream may be under way before the server asks for more.
CREDIT = 16
# Requests at a time of an `async def` that says no number.
ASYNC_IN_FLIGHT = 64

_END = object()


class Call:
    """Requests that are answered by one call of a function."""

    def __init__(self, ident, body):
        self.ident = ident
        self.function = body.text()
        self.requests = []
        for _ in range(body.number("I")):
            one = body.number("Q")
            self.requests.append((one, dict(body.pairs()), PairList()))
            for key, value in body.entries():
                self.requests[-1][2].add(key, value)
        self.idents = [one for one, _, _ in self.requests]
        self._credit = threading.Semaphore(CREDIT)
        self._waiter = None
        self.loop = None
        self.task = None
        self.is_cancelled = False
        # Whether a thread works for its task, which no cancellation reaches.
        self.is_on_thread = False

    def inputs(self, settings):
        """The function's argument."""
        # Whether it is a batch is the server's to say, not a setting's or a header's.
        shared = _without_batch_size(settings)
        ones = []
        for _, own, content in self.requests:
            own = _without_batch_size(own)
            ones.append((own, Input({**shared, **own}, content)))
        return ones[0][1] if len(ones) == 1 else Input.of_batch(shared, ones)

    def cancel(self):
        """Nobody waits for the rest."""
        self.is_cancelled = True
        self.add_credit(1)
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self._cancel_task)

    def _cancel_task(self):
        if not self.is_on_thread:
            self.task.cancel()

    async def on_thread(self, threads, function, *args):
        """Calls a function on a thread. Its task is not cancelled meanwhile: it would end, and the
        thread go on."""
        self.is_on_thread = True
        try:
            result = await self.loop.run_in_executor(threads, function, *args)
        finally:
            self.is_on_thread = False
        if self.is_cancelled:
            raise asyncio.CancelledError
        return result

    def add_credit(self, count):
        """The server takes `count` more pieces."""
        for _ in range(count):
            self._credit.release()
        waiter = self._waiter
        if waiter is not None:
            self.loop.call_soon_threadsafe(waiter.set)

    def take_credit(self):
        """Waits until a piece may be sent."""
        self._credit.acquire()

    async def take_credit_async(self):
        """The same for a task."""
        while not self._credit.acquire(blocking=False):
            self._waiter = self._waiter or asyncio.Event()
            self._waiter.clear()
            # What came between the first look and this one set nothing that is waited for.
            if self._credit.acquire(blocking=False):
                return
            await self._waiter.wait()


def _without_batch_size(properties):
    return {key: value for key, value in properties.items() if key.lower() != "batch_size"}


def is_out_of_memory(error):
    """Whether an error says that memory ran out."""
    if any(cls.__name__ in ("MemoryError", "OutOfMemoryError") for cls in type(error).__mro__):
        return True
    text = str(error)
    return "CUDA out of memory" in text or "CUDA error: out of memory" in text


def describe(error):
    """An error's text; its type, where it has none."""
    return str(error) or type(error).__name__


def log_error(error):
    """The traceback, in one write so that threads don't mix theirs."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    sys.stderr.write(text)
    sys.stderr.flush()


class Answering:
    """Turns what a handler did into frames."""

    def __init__(self, connection):
        self._connection = connection

    def raised(self, call, error):
        """The handler raised."""
        log_error(error)
        if is_out_of_memory(error):
            self.whole(call, Output(507, describe(error)))
        else:
            self.whole(call, Output().error(describe(error)))

    def returned(self, call, result):
        """The handler returned `result`; says whether a stream is left to send."""
        if result is None:
            result = Output(204, "No Content")
        if not isinstance(result, Output):
            result = Output().error(f"Invalid output type: {type(result)}")
        try:
            code = int(result.code)
        except (TypeError, ValueError):
            code = 0
        if not 200 <= code <= 999:
            result = Output().error(f"Invalid status code: {result.code!r}, expected 200 to 999")
        if result.stream_content is None:
            self.whole(call, result)
            return None
        if len(call.idents) > 1:
            text = "a stream answers one request: set batch_size=1 for handlers that stream"
            self.whole(call, Output().error(text))
            return None
        return result

    def whole(self, call, output):
        """Sends a reply that is there as a whole."""
        idents, frames = call.idents, []
        has_own = len(idents) > 1 and int(output.code) < 300 and int(output.code) != 204
        bodies = [output.body_of(idx) if has_own else output.body() for idx in range(len(idents))]
        if has_own and (None in bodies or output.body_of(len(idents)) is not None):
            n_found = sum(body is not None for body in bodies)
            n_found += output.body_of(len(idents)) is not None
            text = (
                f"the handler returned {n_found} outputs for a batch of {len(idents)}: add one for "
                "each request with outputs.add(value, batch_index=index)"
            )
            frames = [wire.failed(ident, wire.BAD_INPUT, text) for ident in idents]
            self._connection.send(*frames)
            return
        for ident, body in zip(idents, bodies):
            frames.append(self._head(ident, output))
            if body is not None and len(body) > 0:
                frames.append((wire.PIECE, ident, body))
            frames.append((wire.END, ident, b""))
        self._connection.send(*frames)

    def first_piece(self, call, output, item):
        """Sends a stream's head with its first piece."""
        ident = call.idents[0]
        frames = [self._head(ident, output)]
        if item is not _END:
            frames.append((wire.PIECE, ident, item))
        self._connection.send(*frames)

    def piece(self, call, item):
        """Sends a further piece."""
        self._connection.send((wire.PIECE, call.idents[0], item))

    def end(self, call):
        """Ends a stream."""
        self._connection.send((wire.END, call.idents[0], b""))

    @staticmethod
    def _head(ident, output):
        properties = {str(key): str(value) for key, value in output.properties.items()}
        return wire.reply_head(ident, int(output.code), output.message, properties)


class Worker:
    """The service and its calls."""

    def __init__(self, connection, options):
        self._connection = connection
        self._options = options
        self._answering = Answering(connection)
        self._service = None
        self._settings = {}
        self._calls = {}
        self._lock = threading.Lock()
        self._queue = queue.SimpleQueue()
        self._loop = None
        self._threads = None

    def run(self):
        """Loads the service, and answers until the server goes."""
        first = self._connection.receive()
        if first is None or first[0] != wire.INIT:
            return
        self._settings = dict(first[2].pairs())
        threading.Thread(target=self._receive, name="receive", daemon=True).start()
        try:
            self._service = load_service(
                self._options.entry_point, self._options.model_dir, self._options.handler
            )
            is_async = self._service.is_async()
            n_in_flight = self._n_in_flight(is_async)
        except BaseException as error:
            self._refuse(error)
            return
        if is_async or self._options.async_mode:
            asyncio.run(self._run_loop(n_in_flight))
        elif self._initialize_here():
            self._run_threads(n_in_flight)

    def _n_in_flight(self, is_async):
        said = self._options.max_in_flight or self._service.max_in_flight()
        return said or (ASYNC_IN_FLIGHT if is_async or self._options.async_mode else 1)

    def _receive(self):
        try:
            self._receive_all()
        except BaseException as error:
            # Nobody else would hear of requests.
            log_error(error)
            os._exit(1)
        # Without a server there is nothing to live for, whatever the handler is doing.
        os._exit(0)

    def _receive_all(self):
        while True:
            frame = self._connection.receive()
            if frame is None:
                return
            kind, ident, body = frame
            if kind == wire.CALL:
                call = Call(ident, body)
                with self._lock:
                    self._calls.update((one, call) for one in call.idents)
                self._queue.put(call)
                if self._loop is not None:
                    self._loop.call_soon_threadsafe(self._start_tasks)
                continue
            with self._lock:
                call = self._calls.get(ident)
            if call is not None and kind == wire.CANCEL:
                call.cancel()
            elif call is not None and kind == wire.CREDIT:
                call.add_credit(body.number("I"))

    def _forget(self, call):
        with self._lock:
            for ident in call.idents:
                self._calls.pop(ident, None)

    # Loading.

    def _refuse(self, error):
        log_error(error)
        kind = wire.OUT_OF_MEMORY if is_out_of_memory(error) else wire.BAD_INPUT
        is_own = isinstance(error, LoadError)
        text = str(error) if is_own else f"{type(error).__name__}: {describe(error)}"
        self._connection.send(wire.failed(0, kind, text))

    def _ready(self, result, n_in_flight):
        """Judges what the first call returned, and says that calls may come."""
        if isinstance(result, Output) and int(result.code) >= 300:
            kind = wire.OUT_OF_MEMORY if int(result.code) == 507 else wire.BAD_INPUT
            text = f"the handler's first call returned {result.code}: {error_of(result)}"
            self._connection.send(wire.failed(0, kind, text))
            return False
        if result is not None and not isinstance(result, Output):
            text = f"the handler's first call: Invalid output type: {type(result)}"
            self._connection.send(wire.failed(0, wire.BAD_INPUT, text))
            return False
        self._connection.send((wire.READY, 0, struct.pack(">I", n_in_flight)))
        return True

    def _initialize_here(self):
        try:
            inputs = Input(self._settings)
            result = self._service.initialize(self._settings)(inputs)
        except BaseException as error:
            self._refuse(error)
            return False
        n_in_flight = self._n_in_flight(False)
        return self._ready(result, n_in_flight)

    # One at a time, or several on threads.

    def _run_threads(self, n_in_flight):
        pool = None
        if n_in_flight > 1:
            pool = concurrent.futures.ThreadPoolExecutor(n_in_flight, "handler")
        while True:
            call = self._queue.get()
            if pool is None:
                self._answer(call)
            else:
                pool.submit(self._answer, call)

    def _answer(self, call):
        try:
            try:
                function = self._service.function(call.function)
                result = function(call.inputs(self._settings))
                if inspect.iscoroutine(result):
                    result = asyncio.run(result)
                stream = self._answering.returned(call, result)
            except BaseException as error:
                self._answering.raised(call, error)
                return
            if stream is not None:
                self._send_stream(call, stream)
            if isinstance(result, Output):
                self._finalize(result)
        finally:
            self._forget(call)

    def _send_stream(self, call, output):
        content = output.stream_content
        if hasattr(content, "__aiter__"):
            content = _drained(content)
        items, sent = None, False
        try:
            items = iter(content)
            while not call.is_cancelled:
                item = next(items, _END)
                if item is _END:
                    break
                data = output.format_item(item)
                call.take_credit()
                if sent:
                    self._answering.piece(call, data)
                else:
                    self._answering.first_piece(call, output, data)
                    sent = True
        except BaseException as error:
            if not sent:
                self._answering.raised(call, error)
                return
            log_error(error)
            call.take_credit()
            self._answering.piece(call, describe(error).encode("utf-8", "replace"))
        close = getattr(items, "close", None)
        if call.is_cancelled and callable(close):
            try:
                close()
            except BaseException as error:
                log_error(error)
        if not sent:
            self._answering.first_piece(call, output, _END)
        self._answering.end(call)

    @staticmethod
    def _finalize(output):
        try:
            output.run_finalizers()
        except BaseException as error:
            log_error(error)

    # Tasks of an event loop.

    async def _run_loop(self, n_in_flight):
        self._threads = concurrent.futures.ThreadPoolExecutor(n_in_flight + 4, "handler")
        loop = asyncio.get_running_loop()
        try:
            result = await self._initialize_on_loop()
        except BaseException as error:
            self._refuse(error)
            return
        if not self._ready(result, n_in_flight):
            return
        self._loop = loop
        self._start_tasks()
        await asyncio.Event().wait()

    def _start_tasks(self):
        while True:
            try:
                call = self._queue.get_nowait()
            except queue.Empty:
                return
            call.task = self._loop.create_task(self._answer_async(call))
            # After the task: who cancels looks for the loop.
            call.loop = self._loop

    async def _initialize_on_loop(self):
        inputs = Input(self._settings)
        function = self._service.initialize(self._settings)
        if inspect.iscoroutinefunction(function):
            return await function(inputs)
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self._threads, function, inputs)
        return await result if inspect.isawaitable(result) else result

    async def _invoke(self, call):
        function, inputs = self._service.function(call.function), call.inputs(self._settings)
        if inspect.iscoroutinefunction(function):
            return await function(inputs)
        result = await call.on_thread(self._threads, function, inputs)
        return await result if inspect.isawaitable(result) else result

    async def _answer_async(self, call):
        try:
            try:
                if call.is_cancelled:
                    raise asyncio.CancelledError
                result = await self._invoke(call)
                stream = self._answering.returned(call, result)
            except BaseException as error:
                self._answering.raised(call, error)
                return
            if stream is not None:
                await self._send_stream_async(call, stream)
            if isinstance(result, Output):
                self._finalize(result)
        finally:
            self._forget(call)

    async def _send_stream_async(self, call, output):
        sent, items = False, None
        try:
            items = self._items(call, output.stream_content)
            async for item in items:
                if call.is_cancelled:
                    break
                data = output.format_item(item)
                await call.take_credit_async()
                if sent:
                    self._answering.piece(call, data)
                else:
                    self._answering.first_piece(call, output, data)
                    sent = True
        except asyncio.CancelledError:
            # Nobody waits: the end is all that the server wants to know.
            pass
        except BaseException as error:
            if not sent:
                self._answering.raised(call, error)
                return
            log_error(error)
            await call.take_credit_async()
            self._answering.piece(call, describe(error).encode("utf-8", "replace"))
        if items is not None and call.is_cancelled:
            try:
                await items.aclose()
            except BaseException as error:
                log_error(error)
        if not sent:
            self._answering.first_piece(call, output, _END)
        self._answering.end(call)

    async def _items(self, call, content):
        if hasattr(content, "__aiter__"):
            async for item in content:
                yield item
            return
        items = iter(content)
        while True:
            item = await call.on_thread(self._threads, next, items, _END)
            if item is _END:
                return
            yield item


def _drained(content):
    """The items of an async iterator, for a handler that is not on a loop."""
    loop = asyncio.new_event_loop()
    try:
        items = content.__aiter__()
        while True:
            try:
                yield loop.run_until_complete(items.__anext__())
            except StopAsyncIteration:
                return
    finally:
        loop.close()


def _options(arguments):
    parser = argparse.ArgumentParser(prog="djl_python.worker")
    parser.add_argument("--model-dir", required=True)
    parser.add_argument("--entry-point", default="")
    parser.add_argument("--handler", default="handle")
    parser.add_argument("--max-in-flight", type=int, default=0)
    parser.add_argument("--async-mode", action="store_true")
    parser.add_argument("--devices", default="")
    return parser.parse_args(arguments)


def _narrow_devices(devices):
    """Leaves the worker's own GPUs visible, as positions among those that were."""
    if not devices:
        return
    known = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
    wanted = [int(one) for one in devices.split(",")]
    if known:
        wanted = [known[idx] for idx in wanted if idx < len(known)]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(str(one) for one in wanted)


def main(arguments, package_root):
    """Runs a worker; returns when the server has gone or the code can't be loaded."""
    options = _options(arguments)
    connection = wire.Connection.of_standard_input()
    _narrow_devices(options.devices)
    logging.basicConfig(
        stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(name)s %(message)s"
    )
    sys.path.insert(0, options.model_dir)
    paths = [options.model_dir, package_root, os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    try:
        Worker(connection, options).run()
        sys.stdout.flush()
    except BaseException as error:
        log_error(error)
    finally:
        # Threads of the handler's are not waited for.
        os._exit(1)
