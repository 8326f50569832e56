"""Models that run elsewhere, on NDIF (nnsight's distributed service) or on a server of its kind.

    model = tn.load_model("meta-llama/Llama-3.1-70B", remote=True)
    model = tn.load_model("meta-llama/Llama-3.1-8B", remote="http://127.0.0.1:8001")

Only the structure of such a model is here, without weights. `trace` sends its blocks to the server; what goes
wrong on the way comes back from here as one sentence.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tnkit.errors import TnkitError

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel

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
    from nnsight import CONFIG

    return bool(CONFIG.API.APIKEY)


def server_of(remote: bool | str) -> str:
    """The server's address, without a user name or password that it may hold.

    >>> server_of("http://me:secret@127.0.0.1:8001")
    'http://127.0.0.1:8001'
    """
    from nnsight import CONFIG

    parts = urlsplit(CONFIG.API.HOST if remote is True else str(remote))
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def undispatched(source: str | Path, **options: Any) -> "TransformersModel":
    """The nnsight wrapper of a model whose weights stay on the server, built from its configuration alone.

    A folder is named to the server as it is: a server on this machine can read it.
    """
    import nnsight
    from nnsight.modeling import huggingface
    from nnsight.modeling.transformers import TransformersModel

    nnsight.register("tnkit")  # the server need not have it: what a block calls travels with the block
    if Path(source).is_dir():
        source = str(Path(source).resolve())
        huggingface._ID_CACHE[source] = source  # or nnsight asks the Hub for its canonical name
    return TransformersModel(str(source), **options)


@contextmanager
def served(model: Any) -> Iterator[None]:
    """What goes wrong on the way to a remote model's server and back, told as one sentence.

    Raises:
        TnkitError: saying what the server, or the way to it, answered, and what to do; it never holds an API key.
    """
    if not model.remote:
        yield
        return
    import httpx
    import websocket
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from nnsight.intervention.backends.remote import RemoteError
    from nnsight.intervention.interleaver import OutOfOrderError

    try:
        yield
    except (HfHubHTTPError, OfflineModeIsEnabled) as error:
        raise TnkitError(
            f"the Hugging Face Hub did not confirm the name {model.name!r}, by which the server knows the model "
            f"({_last_line(error)}); check the name and the connection"
        ) from None
    except httpx.HTTPError as error:
        raise TnkitError(
            f"what {server_of(model.remote)} made of {model.name} could not be fetched ({_last_line(error)}); ask for "
            "less at once (a smaller batch_tokens, fewer layers or sites), which it returns directly"
        ) from None
    except (RemoteError, websocket.WebSocketException, OSError) as error:
        if "OutOfOrderError: " in str(error):
            raise OutOfOrderError(_last_line(error)) from None
        raise TnkitError(_explained(model, error)) from None


def _explained(model: Any, error: Exception) -> str:
    said, server = _last_line(error), server_of(model.remote)
    if "TnkitError: " in said:  # a check of ours that failed over there
        return said.partition("TnkitError: ")[2]
    if isinstance(error, OSError) or re.search(r"Errno|refused|getaddrinfo|Name or service", said):
        return f"no NDIF server answers at {server} ({said}); check the address, and that the server is up"
    advice = next((what for pattern, what in _ADVICE if re.search(pattern, said, re.IGNORECASE)), "")
    return f"{server} did not run {model.name} ({said})" + (f"; {advice}" if advice else "")


def _last_line(error: Exception) -> str:
    """The end of a server's traceback, or the first sentences of its answer, without secrets."""
    from nnsight import CONFIG

    text = str(error).strip() or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    text = lines[-1] if "Traceback" in lines[0] else " ".join(lines)
    if CONFIG.API.APIKEY:
        text = text.replace(CONFIG.API.APIKEY, "…")
    text = re.sub(r"(https?://)[^\s/@'\"]*@", r"\1", text)
    text = re.sub(r"(https?://[^\s'\"?]+)\?[^\s'\")]*", r"\1", text)  # a signed address is a key as well
    return text if len(text) <= 400 else text[:397] + "…"
