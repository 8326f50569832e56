"""A server to rehearse remote models with: blocks run as on NDIF, in a process without tnkit and its kin.

`rehearsing()` sends the blocks of remote models there: `python -I server.py` reads requests (a model's folder and a
serialised block) and answers with what the block saved. nnsight's own `remote="local"` runs blocks where tnkit is at
hand, and lets pass what a server refuses or gets wrong.
"""

import contextlib
import io
import pickle
import struct
import subprocess
import sys
import traceback
from unittest import mock

# What a server need not have. A block that asks for one of them fails there.
ABSENT = "tnkit jaxtyping beartype pandas matplotlib seaborn sklearn platformdirs pytest".split()


@contextlib.contextmanager
def rehearsing(*, blind=False):
    """Run the blocks of remote models in the isolated process, and yield a count of what travels.

    Args:
        blind: whether blocks see no weights, as in a server's sandbox.
    """
    from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
    from nnsight.modeling.transformers import TransformersModel
    from nnsight.schema.request import RequestModel

    traffic = {"requests": 0, "up": 0, "down": 0}
    command = [sys.executable, "-I", __file__, *(["blind"] if blind else [])]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")

    class Rehearsal(RemoteBackend):
        """nnsight's own backend, with a pipe in the place of the network."""

        def __init__(self, folder):
            super().__init__(folder)
            self.compress = False

        def request(self, _, tracer):
            block = RequestModel.serialize(tracer)
            _send(server.stdin, pickle.dumps((self.model_key, block)))
            answer = _receive(server.stdout)
            for name, size in (("requests", 1), ("up", len(block)), ("down", len(answer))):
                traffic[name] += size
            if answer.startswith(b"error"):
                raise RemoteError(answer.removeprefix(b"error").decode())
            return self.finalize(answer)

    try:
        with mock.patch.object(TransformersModel, "_remote_backend", lambda lm, *_: Rehearsal(lm.repo_id)):
            yield traffic
    finally:
        server.stdin.close()
        server.wait()
        server.stdout.close()


def serve(blind):
    """Answer requests until there are no more."""
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    sys.modules.update(dict.fromkeys(ABSENT))  # None: not to be imported
    import torch
    from nnsight.modeling.transformers import TransformersModel

    torch.set_num_threads(1)
    if blind:
        _hide_weights()
    models = {}
    while request := _receive(sys.stdin.buffer):
        folder, block = pickle.loads(request)
        if folder not in models:
            models[folder] = TransformersModel(folder, task="text-generation", dispatch=True)
            models[folder]._module.requires_grad_(False)
        try:
            saved = io.BytesIO()
            torch.save(_run(models[folder], block), saved)
            answer = saved.getvalue()
        except Exception:
            answer = b"error" + traceback.format_exc().encode()
        _send(answers, answer)


def _run(model, block):
    """What a block saves, run as NDIF's model actor runs it: under autocast if of half precision."""
    import torch
    from nnsight.schema.request import RequestModel
    from nnsight.tracing.globals import BLOCKS, SOURCES
    from nnsight.tracing.tracer import _saves, dec, inc

    dtype = next(model._module.parameters()).dtype
    tracer = RequestModel.deserialize(block, model._remoteable_persistent_objects())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        inc()
        try:
            tracer.execute(tracer.info.code)
            saves = _saves()
            return {name: value for name, value in tracer.info.frame.f_locals.items() if id(value) in saves}
        finally:
            dec()
            BLOCKS.clear()
            SOURCES.clear()


def _hide_weights():
    import torch
    from nnsight.intervention.envoy import Envoy

    seen = Envoy.__getattr__

    def hidden(envoy, name):
        value = seen(envoy, name)
        if name == "state_dict":
            return lambda **how: {key: tensor.to("meta") for key, tensor in value(**how).items()}
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    Envoy.__getattr__ = hidden


def _send(pipe, data):
    pipe.write(struct.pack("<Q", len(data)) + data)
    pipe.flush()


def _receive(pipe):
    size = pipe.read(8)
    return pipe.read(struct.unpack("<Q", size)[0]) if len(size) == 8 else b""


if __name__ == "__main__":
    serve("blind" in sys.argv)
