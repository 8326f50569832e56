"""What a file of neurons holds: tnkit's JSON, whose layout data/neurons.schema.json states, or a published pickle.

read("ja-type1.json")                      # what `NeuronSet.save` wrote
read("ja-type1.pkl", shape=(32, 14336))    # a list of pairs, without the model's shape
"""

import json
import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tnkit import pickles, storage
from tnkit.errors import TnkitError

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

SCHEMA = Path(__file__).parent / "data" / "neurons.schema.json"


def read(path: str | Path, *, shape: tuple[int, int] | None = None) -> dict[str, Any]:
    """The content of a file of neurons, checked against the schema.

    Args:
        path: of the file.
        shape: the model's layers and neurons in a layer, which pickles do not record.

    Returns:
        The fields `shape` and `pairs`, and what else the file states of `scores`, `layout` and `provenance`.

    Raises:
        TnkitError: for a missing, damaged or foreign file.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "set.pkl")
    >>> read(pickles.write(file, [(0, 5), (1, 2)]), shape=(4, 48))
    {'pairs': [[0, 5], [1, 2]], 'shape': [4, 48]}
    """
    if Path(path).suffix not in (".pkl", ".pickle"):
        content = storage.load_json(path, "neurons")
    elif shape is None:
        raise TnkitError(f"{path} does not say what model it is of: give shape=(model.n_layers, model.n_neurons)")
    else:
        content = _of_pickle(path, shape)
    check(path, content)
    return content


def check(path: str | Path, content: dict[str, Any]) -> None:
    """Refuse what the schema does not allow, naming the first entry that it does not.

    Raises:
        TnkitError: such as this one.

    >>> check("set.json", {"shape": [4, 48], "pairs": [[0, 5], [1, 2.5]]})
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: set.json does not hold a neuron set: pairs[1][1] is 2.5, expected ...
    """
    from jsonschema.exceptions import best_match

    judged = {name: value for name, value in content.items() if name != "provenance"}  # `provenance.stated` judges it
    error = best_match(_validator().iter_errors(judged))
    if error is not None:
        where = error.json_path.removeprefix("$").removeprefix(".")
        wrong = f"{where} is {error.instance!r:.60}, expected " if where else "expected "
        value = error.validator_value
        text = {
            "type": value,
            "required": f"the file to have {value}",
            "minItems": f"at least {value} entries",
            "maxItems": f"at most {value} entries",
            "minimum": f"at least {value}",
        }.get(str(error.validator), error.message)
        raise TnkitError(f"{path} does not hold a neuron set: {wrong}{text}; create it again")
    if not all(map(math.isfinite, content.get("scores", ()))):
        raise TnkitError(f"{path} does not hold a neuron set: a score is not finite; create it again")


@cache
def _validator() -> "Draft202012Validator":
    """Of the part of the schema that is read: `about`."""
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))["properties"]["about"])


def _of_pickle(path: str | Path, shape: tuple[int, int]) -> dict[str, Any]:
    """The published code's list of pairs, whose numbers may be those of NumPy, with the model's shape."""
    pairs = pickles.read(path)
    try:
        listed = [[_plain(number) for number in pair] for pair in pairs]
    except TypeError as error:
        raise TnkitError(f"{path} does not hold a list of (layer, neuron) pairs of whole numbers") from error
    return {"pairs": listed, "shape": [_plain(size) for size in shape]}


def _plain(number: Any) -> Any:
    """A number of Python; whole floats, which some copies of the published code write, become whole numbers.

    Anything else is not looked at: the text of a nested tuple can be longer than memory.
    """
    number = number.item() if hasattr(number, "item") else number
    if not isinstance(number, int | float):
        raise TypeError(type(number).__name__)
    return int(number) if isinstance(number, float) and number.is_integer() else number
