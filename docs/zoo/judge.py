"""What becomes of one model type: `judged` builds it, has tnkit score and ablate it, and compares with the oracle."""

import copy
import traceback
import warnings
from dataclasses import dataclass

import torch
import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

import tnkit as tn
from docs.zoo.oracle import Oracle, look_ahead, scores
from docs.zoo.tiny import LAYERS, VERSIONS, tiny
from tnkit.testing import SENTENCES, byte_tokenizer

AUTO = {
    "causal": (transformers.AutoModelForCausalLM, (*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VERSIONS)),
    "image-text": (transformers.AutoModelForImageTextToText, tuple(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)),
}
SCORE, STATE = 1e-5, 1e-4  # the largest error of a score, and of a state relative to its size


@dataclass(frozen=True)
class Verdict:
    """What became of a type.

    Attributes:
        table: "causal" or "image-text".
        name: the model type.
        kind: "right", "refused", "wrong", "crashed" or "not built".
        module: the class that was built.
        error: the largest difference between a score and the oracle's.
        reason: where the neurons are, or why it is not right.
    """

    table: str
    name: str
    kind: str
    module: str = ""
    error: float | None = None
    reason: str = ""


def judged(table: str, name: str) -> Verdict:
    """Build a type and judge it; nothing is raised."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(50)
    torch.set_num_threads(1)
    try:
        module = tiny(name, AUTO[table][0])
    except Exception as error:
        return Verdict(table, name, "not built", reason=f"{type(error).__name__}: {error}"[:300])
    kind = type(module).__name__
    try:
        model = tn.load_model(module, tokenizer=byte_tokenizer())
    except tn.TnkitError as error:
        return Verdict(table, name, "refused", kind, reason=str(error))
    except Exception:
        return Verdict(table, name, "crashed", kind, reason=traceback.format_exc(limit=-2))
    try:
        faults, error = compared(model)
    except Exception:
        return Verdict(table, name, "crashed", kind, reason=traceback.format_exc(limit=-2))
    return Verdict(table, name, "wrong" if faults else "right", kind, error, "; ".join(faults) or model.reading)


def compared(model: tn.Model) -> tuple[list[str], float]:
    """What differs from the oracle, and the largest error of a score."""
    few = SENTENCES[:3]
    captured = tn.capture(model, few, progress=False)  # in one padded batch
    found = tn.score_neurons(model, captured, tn.estimate_centroids([captured]))
    sentences = [torch.tensor([model.tokenizer(sentence)["input_ids"]]) for sentence in few]
    oracle = Oracle(_in_float64(model.module, sentences[0]), sentences[0], LAYERS)
    chosen = {layer: _chosen(found.values[layer], oracle.width(layer)) for layer in range(len(oracle.blocks))}
    expected, posts = scores(oracle, sentences, chosen)
    faults = []
    error = max(abs(float(found.values[layer][neuron]) - score) for (layer, neuron), score in expected.items())
    if not error <= SCORE:
        faults.append(f"a score is off by {error:.2g}")
    if max(map(abs, expected.values())) < 1e-5:
        faults.append("no neuron has any score")
    moved = max(
        float((kept.double() - post).norm() / post.norm()) for kept, post in zip(captured.post, posts, strict=True)
    )
    if not moved <= STATE:
        faults.append(f"states in a padded batch differ from those of sentences alone by {moved:.2g}")
    if not (ahead := look_ahead(oracle, sentences[0])) <= STATE:
        faults.append(f"a token that follows changes states by {ahead:.2g}")
    if (
        not (off := _ablated(model, {layer: neurons[0] for layer, neurons in chosen.items() if neurons}, sentences[0]))
        <= STATE
    ):
        faults.append(f"an ablation differs from zeroed weights by {off:.2g} of what they change")
    return faults, error


def _chosen(row: torch.Tensor, width: int) -> list[int]:
    """The neurons of a layer that are compared: the highest, the lowest, and one in the middle."""
    return sorted({int(row[:width].argmax()), int(row[:width].argmin()), width // 2}) if width else []


def _in_float64(module: transformers.PreTrainedModel, ids: torch.Tensor) -> transformers.PreTrainedModel:
    """A copy in float64, or in float32 where the type does not run in it."""
    copied = copy.deepcopy(module)
    try:
        with torch.no_grad():
            copied.double()(input_ids=ids, use_cache=False)
        return copied
    except Exception:
        return copied.float()


def _ablated(model: tn.Model, neurons: dict[int, int], ids: torch.Tensor) -> float:
    """How far outputs under an ablation are from those of zeroed weights, relative to what these change."""
    oracle = Oracle(model.module, ids, LAYERS)
    plain = oracle.logits(ids)
    with tn.Ablation(model, list(neurons.items())):
        ablated = oracle.logits(ids)
    with oracle.without(*neurons.items()):
        expected = oracle.logits(ids)
    return float((ablated - expected).norm() / (expected - plain).norm())
