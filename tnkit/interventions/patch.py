"""States of one run put into another: `patch` makes a `Patch`, which everything takes that takes neurons.

english = tn.patch(model, test["en"], test["ja"], site="post", layers=[8])   # last token into last token
with tn.Ablation(model, english, tokens="last"):
    tn.capture(model, test["ja"])
off = tn.Intervention(everything)                                            # restore some in a run without any
own = tn.patch(model, test["ja"], test["ja"], site="contributions", neurons=type1)
tn.ablate(model, test, [off, own], language="ja", controls={})
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from tnkit import storage
from tnkit.captures.activations import Activations, gathered
from tnkit.captures.batches import Tokens, by_length, read_places, roomy, tokenised
from tnkit.captures.passes import plan, shown
from tnkit.captures.rows import Rows
from tnkit.captures.token_ids import Texts
from tnkit.detection.neurons import NeuronSet, Pair
from tnkit.errors import TnkitError, check_model, one_of
from tnkit.interventions.intervention import set_of
from tnkit.models.model import Model, check_layers
from tnkit.models.sessions import TURN, running
from tnkit.models.trace import trace_blocks
from tnkit.provenance import check_made_with, provenance_of

PATCHED = ("pre", "mid", "post", "activations", "contributions")
SCOPES = ("last", "last_word", "prompt")
_OF_NEURONS = ("activations", "contributions")


@dataclass(frozen=True, eq=False)
class Patch:
    """States of a source run for each sentence of a target run; made by `patch`.

    Attributes:
        site: "pre", "mid", "post", "activations" or "contributions".
        tokens: "last", "last_word" or "prompt", which an `Ablation` of it is given too.
        values: layer → for each source, (token, hidden | neuron), float32; of contributions, activation × scale.
        rows: token ids of each target sentence, up to its last patched token → its source.
        neurons: whose activations or contributions they are; None for states.
        provenance: model, source sentences, a hash of the values.
    """

    site: str
    tokens: str
    values: dict[int, tuple[Tensor, ...]]
    rows: dict[tuple[int, ...], int]
    neurons: NeuronSet | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values) if self.neurons is None else len(self.neurons)

    def __iter__(self) -> Iterator[Pair]:
        """The neurons that it sets; none where it moves states."""
        return iter(self.neurons or () if self.site == "activations" else ())

    @property
    def shape(self) -> tuple[int, int]:
        """The model's numbers of layers and of neurons in a layer.

        Raises:
            TnkitError: for a patch of states, which holds no neurons.
        """
        if self.neurons is None:
            raise TnkitError(f"a Patch of {self.site} holds no neurons; give a neuron set, or leave the patch out here")
        return self.neurons.shape

    def about(self) -> dict[str, Any]:
        """What is patched, for provenance."""
        return {
            "patch": self.site,
            "layers": list(self.values),
            **{k: self.provenance[k] for k in ("values", "source")},
        }

    def describe(self) -> str:
        """One line: what is patched, and where."""
        what = self.site if self.neurons is None else f"{self.site} of {len(self.neurons)} neurons"
        return f"{what} patched at layer{'s' if len(self.values) > 1 else ''} {', '.join(map(str, self.values))}"

    def check(self, model: Model) -> None:
        """Refuse a patch of another model, or of sites that a model does not have.

        Raises:
            TnkitError: saying why.
        """
        check_made_with(model, self.provenance, "these states", states=True)
        if self.site != "activations":
            check_site(model, self.site, [*self.values])

    def draw(self, tokens: Iterable[int]) -> int:
        """The source of the sentence with these token ids.

        Raises:
            TnkitError: for a sentence that was not among the targets.
        """
        row = self.rows.get(tuple(tokens))
        if row is None:
            raise TnkitError(
                "a sentence runs that this patch has no source for; patch(model, source, into) with the sentences that "
                "run as into, and the same tokens and suffix"
            )
        return row

    def targets(self, layer: int) -> Float[Tensor, "source neuron"]:
        """The activations that neurons of a layer are set to, a row for each source."""
        return torch.cat(self.values[layer])


def patch(
    model: Model,
    source: Texts | Activations,
    into: Texts,
    *,
    site: str = "post",
    layers: Iterable[SupportsIndex] | None = None,
    neurons: Iterable[Pair] | None = None,
    tokens: str = "last",
    mean: bool = False,
    suffix: str | None = None,
    progress: bool = True,
) -> Patch:
    """Run source sentences, and keep their states to put them into the runs of target sentences.

    The source runs now, under the ablations that are active now. In an `Ablation` of the patch with the same `tokens`,
    each target sentence, recognised by its tokens in any batch, gets the states of its source:

    - pre, post: what enters or leaves a block;
    - mid: the sum that the MLP branch is added to, also as what that branch reads;
    - activations: of the neurons; in experts only where their expert runs;
    - contributions: post → post + Σ over the neurons of (c of the source - c of the target), where
      c = scale · gain ⊙ value vector · activation, with the denominator of the branch's own norm as it is in each run.

    A sentence that is patched with itself keeps every bit where source and targets are batched alike, as by default.

    Args:
        model: from `load_model`.
        source: sentences, one for each of `into`; or a capture of them, of these layers, at the token that is patched.
        into: the target sentences.
        site: one of the above; a server can only patch activations.
        layers: which (default: all, or those of the neurons).
        neurons: for activations and contributions (default: all neurons of the layers).
        tokens: "last" puts the last token's states into the last token, "last_word" those of the last token that is not
            punctuation; "prompt" all tokens' into those at equal positions, of sentences with as many tokens.
        mean: give every target the mean over the sources, of which there may be any number; not for "prompt".
        suffix: as in `capture`.
        progress: show a bar.

    Raises:
        TnkitError: for numbers of sentences or tokens that differ, two targets with the same tokens, a site that the
            model does not have, or an unknown option.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> model, (source, into) = tiny_model(), (SENTENCES[:3], SENTENCES[3:])
    >>> english = patch(model, source, into, layers=[2], progress=False)
    >>> with tn.Ablation(model, english, tokens="last"):
    ...     patched = tn.capture(model, into, progress=False)
    >>> torch.equal(patched.post[2], tn.capture(model, source, progress=False).post[2])
    True
    """
    check_model(model)
    one_of("site", site, PATCHED)
    one_of("tokens", tokens, SCOPES)
    chosen = _neurons(model, site, neurons, layers)
    layers = check_layers(model, layers or range(model.n_layers)) if chosen is None else tuple(chosen.by_layer())
    if site != "activations":
        check_site(model, site, layers)
    if tokens == "prompt" and (site == "activations" or mean):
        raise TnkitError('tokens="prompt" patches states or contributions of each token; give tokens="last" here')
    targets = tokenised(model, into, suffix=suffix)
    sources = _check_pairs(model, targets, source, suffix=suffix, mean=mean, lengths=tokens == "prompt")
    keep = [site] if chosen is None else ["activations"]
    if sources is not None:
        values = _all_tokens(model, sources, layers, keep, chosen)
    elif isinstance(source, Activations):
        values = _one_token(_captured(model, source, tokens, layers), site, chosen, mean=mean)
    else:
        planned = plan(model, source, position=tokens, suffix=suffix, keep=keep, layers=layers)
        whole = replace(planned, narrow=False)  # as inside an Ablation, so that no bit differs there
        captured = gathered(shown(whole.run(), len(source), progress), len(source))
        values = _one_token(captured, site, chosen, mean=mean)
    rows = _rows(targets, read_places(model, targets, tokens if tokens == "last_word" else "last"), mean=mean)
    provenance = dict(source.provenance) if isinstance(source, Activations) else provenance_of(model, source)
    about = {"source": provenance.pop("sentences", {}) | {"mean": mean}, "values": _hash(values, rows)}
    return Patch(site, tokens, values, rows, chosen, provenance | about)


def check_site(model: Model, site: str, layers: Sequence[int]) -> None:
    """Refuse what cannot be patched in a model's blocks.

    Raises:
        TnkitError: saying why.

    >>> from tnkit.testing import tiny_model
    >>> check_site(tiny_model("gpt-neox"), "mid", [0])
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: attention and MLP of layer 0 of GPTNeoXForCausalLM run side by side, so nothing reads ...
    """
    if model.request_bytes is not None:
        raise TnkitError(f"{model.name} runs elsewhere, where only activations can be patched; load it here")
    for layer in layers:
        sites = model.sites[layer]
        if sites and site != "pre" and (sites.after or sites.carry):
            raise TnkitError(
                f"layer {layer} of {model.name} goes on after its MLP is added, so {site} cannot be patched; patch "
                "pre of the next layer"
            )
        if site == "mid" and (sites is None or sites.mid is None):
            raise TnkitError(
                f"attention and MLP of layer {layer} of {model.name} run side by side, so nothing reads its mid; patch "
                "pre or post"
            )


def _neurons(
    model: Model, site: str, neurons: Iterable[Pair] | None, layers: Iterable[SupportsIndex] | None
) -> NeuronSet | None:
    """The neurons that are patched; None for states."""
    if site not in _OF_NEURONS:
        if neurons is not None:
            raise TnkitError(f"neurons= is for activations and contributions, not for site={site!r}; leave it out")
        return None
    every = check_layers(model, layers or range(model.n_layers))
    if neurons is None:
        neurons = [(layer, neuron) for layer in every for neuron in range(model.widths[layer])]
    given = set_of(model, neurons)
    kept = tuple(pair for pair in given if pair[0] in every)
    if not kept:
        raise TnkitError("there are no neurons to patch in these layers; give some, or other layers")
    return replace(given, pairs=kept, scores=())


def _check_pairs(
    model: Model, targets: Tokens, source: Texts | Activations, *, suffix: str | None, mean: bool, lengths: bool
) -> Tokens | None:
    """The tokens of the sources, where all are patched."""
    if len(targets) != len(source) and not mean:
        raise TnkitError(
            f"there are {len(source)} source and {len(targets)} target sentences; give one source for each target, or "
            "mean=True"
        )
    if not lengths:
        return None
    if isinstance(source, Activations):
        raise TnkitError('tokens="prompt" needs the source as sentences: a capture holds one token of each')
    sources = tokenised(model, source, suffix=suffix)
    for number, (ours, theirs) in enumerate(zip(sources.lengths(), targets.lengths(), strict=True)):
        if ours != theirs:
            raise TnkitError(
                f"source {number} has {ours} tokens and its target {theirs}, so their positions do not match; patch "
                'tokens="last", or sentences of equal length'
            )
    return sources


def _captured(model: Model, captured: Activations, tokens: str, layers: Sequence[int]) -> Activations:
    """A capture with the rows of these layers."""
    check_made_with(model, captured.provenance, "these states", states=True)
    position, missing = captured.provenance.get("position", tokens), [*set(layers) - set(captured.layers)]
    if position != tokens or missing:
        raise TnkitError(
            f"the source holds layers {captured.layers} at position={position!r}; capture layers {missing or 'there'} "
            f"with position={tokens!r}"
        )
    rows = [captured.layers.index(layer) for layer in layers]
    tensors = {name: tensor[rows] for name, tensor in captured.tensors().items()}
    return Activations(tuple(layers), captured.index, provenance=captured.provenance, **tensors)


def _rows(targets: Tokens, places: Sequence[int], *, mean: bool) -> dict[tuple[int, ...], int]:
    """Which source each target gets."""
    rows: dict[tuple[int, ...], int] = {}
    for number, (ids, place) in enumerate(zip(targets, places, strict=True)):
        first = rows.setdefault(tuple(ids[: place + 1]), 0 if mean else number)
        if first != (0 if mean else number):
            raise TnkitError(
                f"target sentences {first} and {number} have the same tokens and would get different states; drop one"
            )
    return rows


def _one_token(
    captured: Activations, site: str, neurons: NeuronSet | None, *, mean: bool
) -> dict[int, tuple[Tensor, ...]]:
    """What a capture of the sources holds, by layer and sentence."""
    values = {}
    for row, layer in enumerate(captured.layers):
        if neurons is None:
            states = captured.require(site).tensors()[site][row]
        else:
            states = captured.of_neurons(layer, neurons.by_layer()[layer])
            if site == "contributions":
                states = states * captured.tensors()["scale"][row][:, None]
        states = states.mean(dim=0, keepdim=True) if mean else states
        values[layer] = tuple(states[:, None])
    return values


def _all_tokens(
    model: Model, sources: Tokens, layers: Sequence[int], keep: list[str], neurons: NeuronSet | None
) -> dict[int, tuple[Tensor, ...]]:
    """The states of every token of the sources."""
    if neurons is not None and model.slots:
        raise TnkitError(f'{model.name} has experts, whose contributions are patched at one token; give tokens="last"')
    keep = [*keep, "scale"] if neurons is not None else keep
    kept: dict[int, dict[int, Tensor]] = {layer: {} for layer in layers}
    for index in by_length(sources.lengths(), roomy(model)):
        rows = Rows.of(model, [sources[number] for number in index])
        with TURN, running(model.lm._module, **rows.known(sources, index)):
            found = trace_blocks(model, rows.inputs | {"use_cache": False}, rows.places, layers=layers, keep=keep)
        for place, layer in enumerate(layers):
            states = found[keep[0]][place].float().cpu()
            if neurons is not None:
                states = states[..., neurons.by_layer()[layer]] * found["scale"][place].cpu()[..., None]
            for row, number in enumerate(index):
                kept[layer][number] = states[row, : len(sources[number])].clone()
    return {layer: tuple(states[number] for number in range(len(sources))) for layer, states in kept.items()}


def _hash(values: dict[int, tuple[Tensor, ...]], rows: dict[tuple[int, ...], int]) -> str:
    digest = hashlib.sha256(repr(sorted(rows.items())).encode())
    for layer, states in values.items():
        digest.update(f"layer {layer}".encode())
        for state in states:
            digest.update(storage.tensor_bytes(state))
    return digest.hexdigest()[:16]
