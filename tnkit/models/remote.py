"""Models that run elsewhere, on NDIF (nnsight's distributed service) or on a server of its kind: `RemoteModel`.

    model = tn.load_model("meta-llama/Llama-3.1-70B", remote=True)
    model = tn.load_model("meta-llama/Llama-3.1-8B", remote="http://127.0.0.1:8001")

Only the structure of such a model is here, without weights. Its traces run on the server: weights are read there, never
fetched, and only what a block saves comes back. Everything else in tnkit treats it as any other `Model`.

A block travels as source, together with the functions that it calls. These must be plain: defined at the top of a
module and imported by name, without decorators, importing nothing themselves, and given nothing but tensors, numbers,
names and other such functions. They are those of `tnkit.models.trace`, `reading` and `weights`, and the sums of
`tnkit.detection`; `tnkit/tests/rehearsal.py` runs all of them in a process without tnkit.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, NoReturn
from urllib.parse import urlsplit

import nnsight
import torch
from jaxtyping import Float
from nnsight import CONFIG
from torch import Tensor

from tnkit.errors import TnkitError, last_line
from tnkit.models.model import Change, Model, check_layers
from tnkit.models.sessions import TURN
from tnkit.models.trace import OutOfOrderError, exactly, first, names_of, weights_of
from tnkit.models.weights import hash_of
from tnkit.models.wrapper import TransformersModel

# What the service says, and what to do about it.
_ADVICE = (
    (r"api key|status 40[13]\b", "set NDIF_API_KEY to a key from https://login.ndif.us"),
    (r"execution timeout|out of memory", "ask for less at once: a smaller batch_tokens, or fewer layers"),
    (r"deploy|accommodate|starting model|not found", "see print(nnsight.status()) for the models that it serves"),
    (r"no module at|payload could not be read|nnsight version|python version", "compare print(nnsight.compare())"),
    (r"too large|object store|bucket", "ask for less at once: a smaller batch_tokens, fewer layers or sites"),
    (r"timed out|unavailable|reconnecting", "try again later"),
)


def checked(remote: Any, source: Any, *, dtype: Any, device_map: Any) -> bool | str:
    """Where a model is to run: True (NDIF), a server's URL, or False (here).

    Raises:
        TnkitError: for what is not an address, or an option that is the server's to choose.

    >>> checked("http://127.0.0.1:8001/", "gpt2", dtype="auto", device_map=None)
    'http://127.0.0.1:8001'
    """
    if remote is False or remote is None:
        return False
    if remote is not True and not _is_address(remote):
        raise TnkitError(f"remote={remote!r} must be True (NDIF) or a server's URL such as 'http://127.0.0.1:8001'")
    if not isinstance(source, str | Path):
        raise TnkitError("a loaded model runs where it is; for remote=, name the model by its Hub id")
    if remote is True and Path(source).is_dir():
        raise TnkitError(f"NDIF knows models by their Hub id, not by a folder ({source}); name one of the Hub")
    if dtype != "auto" or device_map is not None:
        raise TnkitError("the server chooses dtype and device_map of a remote model; leave them out")
    return remote if remote is True else remote.rstrip("/")


def _is_address(url: Any) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (TypeError, ValueError, AttributeError):
        return False


def has_key() -> bool:
    """Whether there is a key for NDIF."""
    return bool(CONFIG.API.APIKEY)


def undispatched(source: str | Path, **options: Any) -> TransformersModel:
    """The nnsight wrapper of a model whose weights stay on the server, built from its configuration alone.

    A folder is named to the server as it is: a server on this machine can read it.
    """
    from nnsight.modeling import huggingface

    nnsight.register("tnkit")  # the server need not have it: what a block calls travels with the block
    if Path(source).is_dir():
        source = str(Path(source).resolve())
        huggingface._ID_CACHE[source] = source  # or nnsight asks the Hub for its canonical name
    return TransformersModel(str(source), **options)


@dataclass(frozen=True, eq=False)
class RemoteModel(Model):
    """A model whose weights are on a server, where its traces run.

    Attributes:
        remote: True for NDIF, or a server's URL.
    """

    request_bytes: ClassVar[int | None] = 32 << 20
    _edits: list[Callable[..., dict[int, Change]]] = field(default_factory=list, repr=False)

    @property
    def server(self) -> str:  # type: ignore[override]  # None in a model that runs here
        """The server's address, without a user name or password that it may hold."""
        parts = urlsplit(CONFIG.API.HOST if self.remote is True else str(self.remote))
        return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")

    @property
    def module(self) -> NoReturn:
        """Refused: it has no weights here.

        Raises:
            TnkitError: always.
        """
        raise TnkitError(
            f"{self.name} runs on {self.server}, where tnkit captures, scores and ablates; generation, perplexity, "
            f"lens, harness and export need its weights: load_model({self.name!r}) here"
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the server computes in."""
        return getattr(torch, self._hash_and_dtype[1])

    @property
    def device(self) -> torch.device:
        """Where token ids must be put: here, on the CPU."""
        return torch.device("cpu")

    def layer_device(self, _layer: int, /) -> torch.device:
        """The CPU, where what comes back is put."""
        return self.device

    @property
    def attention(self) -> None:
        """The server does not tell its attention implementation."""

    def check_unchanged(self, layer: int | None = None) -> None:
        """Nothing can be changed on the server."""

    def ask_weights(self, question: Callable[..., Any], given: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
        """Put a question to the weights of some layers, on the server."""
        blocks = attrgetter(self.blocks_path)(self.lm)
        names = names_of(self)
        given = {layer: tuple(map(_alone, extra)) for layer, extra in given.items()}
        with TURN, torch.no_grad(), self.tracing():
            with self.lm.trace(**_token(), remote=self.remote) as tracer:
                answers, _begun = nnsight.save({}), blocks[0].output  # a sandbox answers once the pass has begun
                for layer, extra in given.items():
                    answers[layer] = exactly(question, *weights_of(blocks[layer], names[layer]), *extra)
                tracer.stop()
        return answers

    def _ask_module(self, question: Callable[..., Any], *extra: Any) -> tuple[Any, str]:
        """Put a question to the whole model on the server; the answer, and the dtype of its first block's output."""
        block, root = attrgetter(self.blocks_path)(self.lm)[0], self.lm
        with TURN, torch.no_grad(), self.tracing():
            with self.lm.trace(**_token(), remote=self.remote) as tracer:
                answers = nnsight.save([question(root, *extra)])
                answers.append(str(first(block.output).dtype))
                tracer.stop()
        return tuple(answers)

    def value_vectors(self, layer: int) -> Float[Tensor, "neuron hidden"]:
        """The value vectors of a layer, downloaded each time."""
        check_layers(self, [layer])
        return self.ask_weights(partial(_part, 0), {layer: ()})[layer]

    def output_gain(self, layer: int) -> Float[Tensor, "hidden"]:
        """`Model.output_gain`; those of all layers are downloaded once."""
        check_layers(self, [layer])
        return self._gains[layer]

    @cached_property
    def _gains(self) -> list[Float[Tensor, "hidden"]]:
        return list(self.ask_weights(partial(_part, 1), dict.fromkeys(range(self.n_layers), ())).values())

    def output_bias(self, layer: int) -> Float[Tensor, "hidden"]:
        """`Model.output_bias`, downloaded each time."""
        return self.ask_weights(partial(_part, 2), {layer: ()})[layer]

    @property
    def weights_hash(self) -> str:
        """`Model.weights_hash`, read once."""
        return self._hash_and_dtype[0]

    @cached_property
    def _hash_and_dtype(self) -> tuple[str, str]:
        size = sum(tensor.numel() for tensor in self.lm._module.state_dict().values())
        try:
            weights, dtype = self._ask_module(_hash_there, size)
        except TnkitError:  # weights that cannot be read, or not in the time that the server grants
            weights, dtype = self._ask_module(_unread)
        if weights is None:
            weights = f"named:{hashlib.sha256(self.lm.to_model_key().encode()).hexdigest()[:16]}"
        return weights, dtype.removeprefix("torch.")

    def _hidden(self) -> str | None:
        named = self.weights_hash.startswith("named:")
        return f"the weights of {self.name} cannot be read on its server" if named else None

    def _beside_weights(self) -> list[Any]:
        return [self.server]

    def versions(self) -> list[Any]:
        """Nothing, for nothing can be changed on the server."""
        return []

    def settings(self) -> str:
        """Nothing, for nothing can be set on the server."""
        return ""

    @contextmanager
    def edited(self, _hook: Callable[[ExitStack], None], edit: Callable[..., dict[int, Change]]) -> Iterator[None]:
        """A context in which every trace makes an edit on the server."""
        self._edits.append(edit)
        try:
            yield
        finally:
            self._edits.remove(edit)

    def edits(self, inputs: Mapping[str, Any], deepest: int) -> dict[int, list[Change]]:
        """What the active edits change in a trace, by layer."""
        changes: dict[int, list[Change]] = {}
        for edit in self._edits:
            for layer, change in edit(inputs, deepest).items():
                changes.setdefault(layer, []).append(change)
        return changes

    def sent(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function: it runs inside the trace, so that only its results travel."""
        return function

    @contextmanager
    def tracing(self) -> Iterator[bool]:
        """A context that turns errors of the server, or of the connection to it, into one sentence.

        Raises:
            TnkitError: saying what the server, or the way to it, answered, and what to do; it never holds an API key.
        """
        import httpx
        import websocket
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
        from nnsight.intervention.backends.remote import RemoteError

        try:
            yield False
        except (HfHubHTTPError, OfflineModeIsEnabled) as error:
            raise TnkitError(
                f"the Hugging Face Hub did not confirm the name {self.name!r}, by which the server knows the model "
                f"({_last_line(error)}); check the name and the connection"
            ) from None
        except httpx.HTTPError as error:
            raise TnkitError(
                f"what {self.server} made of {self.name} could not be fetched ({_last_line(error)}); ask for "
                "less at once (a smaller batch_tokens, fewer layers or sites), which it returns directly"
            ) from None
        except (RemoteError, websocket.WebSocketException, OSError) as error:
            if "OutOfOrderError: " in str(error):
                raise OutOfOrderError(_last_line(error)) from None
            raise TnkitError(_explained(self, error)) from None

    def __deepcopy__(self, _: object) -> RemoteModel:
        raise TnkitError(f"{self.name} cannot be copied, for its weights are not all here; load it again")


def _token() -> dict[str, Any]:
    """The input of a trace that reads weights alone."""
    return {"input_ids": torch.zeros(1, 1, dtype=torch.long), "use_cache": False}


def _alone(value: Any) -> Any:
    """A tensor without the rest of the storage that it is a view of, which would travel with it."""
    return value.clone() if isinstance(value, Tensor) else value


# Functions that travel.


def _part(number: int, *weights: Tensor) -> Tensor:
    """One of a layer's value vectors, output gain and output bias."""
    return weights[number]


def _hash_there(module: Any, size: int) -> str | None:
    """The weights' hash; None where they are not there, or not of the expected size."""
    state = module.state_dict(keep_vars=True)
    if size != sum(tensor.numel() * (not tensor.is_meta) for tensor in state.values()):
        return None
    return hash_of(module)


def _unread(_module: Any) -> None:
    """The hash of weights that cannot be read."""
    return None


def _explained(model: RemoteModel, error: Exception) -> str:
    said, server = _last_line(error), model.server
    if "TnkitError: " in said:  # a check of ours that failed over there
        return said.partition("TnkitError: ")[2]
    if isinstance(error, OSError) or re.search(r"Errno|refused|getaddrinfo|Name or service", said):
        return f"no NDIF server answers at {server} ({said}); check the address, and that the server is up"
    advice = next((what for pattern, what in _ADVICE if re.search(pattern, said, re.IGNORECASE)), "")
    return f"{server} did not run {model.name} ({said})" + (f"; {advice}" if advice else "")


def _last_line(error: Exception) -> str:
    """The last line of a server's traceback, or the beginning of its answer, without secrets."""
    answer = str(error).strip() or type(error).__name__
    text = last_line(error) if "Traceback" in answer.partition("\n")[0] else " ".join(answer.split())
    if CONFIG.API.APIKEY:
        text = text.replace(CONFIG.API.APIKEY, "…")
    text = re.sub(r"(https?://)[^\s/@'\"]*@", r"\1", text)
    text = re.sub(r"(https?://[^\s'\"?]+)\?[^\s'\")]*", r"\1", text)  # a signed address is a key as well
    return text if len(text) <= 400 else text[:397] + "…"
