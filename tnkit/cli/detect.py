"""Score every neuron against centroids and keep the highest-scoring ones.

example:
  tnkit detect --model_id gemma-3-270m --TN_Type type1 --top_n 1000 --lang_for_TN ja \\
    --scoring_type cos_sim --centroids_path ja-type1-centroids.safetensors --sentence_path mono.txt
"""

import argparse
import sys

from tnkit.cli import flags
from tnkit.errors import TnkitError, visible

_DISTANCES = {"cos_sim": "cosine", "L2_dis": "euclidean"}


def add_flags(command: argparse.ArgumentParser) -> None:
    flags.add_model(command)
    flags.add_sentences(command, "sentences in that language")
    flags.add_detection(command)
    text = "file from `tnkit centroids`, or the published code's .pkl"
    flags.flag(command, "centroids_path", text, required=True)
    flags.flag(command, "top_n", "number of neurons (default 1000)", type=flags.positive, default=1000)
    flags.flag(command, "scoring_type", "distance (default cos_sim)", choices=tuple(_DISTANCES), default="cos_sim")
    text = "raw, or centred on --origin_path: what all languages share taken away (default raw)"
    flags.flag(command, "score", text, choices=("raw", "centred"), default="raw")
    text = "for centred scores: centroids over all languages; --centroids_path of type1 is then of the hub alone"
    flags.flag(command, "origin_path", text)
    text = "START:STOP without STOP itself (default: the first 20/32 of the layers for type1, the rest for type2)"
    flags.flag(command, "layers", text, type=flags.span)
    flags.flag(command, "scores", "also write every neuron's score to this .safetensors file")


def run(options: argparse.Namespace) -> None:
    from tnkit import parallel
    from tnkit.detection.centroids import Centroids
    from tnkit.detection.detect import detect_towards
    from tnkit.models.tokens import ends_lines
    from tnkit.storage import file_name

    language, layers = options.lang_for_TN, options.layers
    suffix = ".pkl" if options.format == "reference" else ".json"
    out = flags.output(options, "out", suffix, f"{file_name(language)}-{options.TN_Type}-neurons{suffix}")
    scores = options.scores and flags.output(options, "scores", ".safetensors")
    if (options.score == "centred") != bool(options.origin_path):
        raise TnkitError("centred scores need both --score centred and --origin_path; give both or neither")
    centroids = Centroids.load(options.centroids_path)
    origin = Centroids.load(options.origin_path) if options.origin_path else None
    texts = flags.sentences(options, [language])
    model = flags.model(options)
    if layers and layers.stop > model.n_layers:
        raise TnkitError(
            f"--layers {layers.start}:{layers.stop} reaches past the last layer of {options.model_id}, "
            f"{model.n_layers - 1}; give a range within 0:{model.n_layers}"
        )
    detection = detect_towards(
        model,
        texts[language],
        centroids,
        language=language,
        kind=options.TN_Type,
        top=options.top_n,
        distance=_DISTANCES[options.scoring_type],
        origin=origin,
        layers=layers,
        cache=options.cache,
        **flags.reading(options),
    )
    if parallel.rank():
        return
    also = [lambda: detection.scores.save(scores)] if scores else []
    flags.write(lambda: detection.neurons.save(out, format=options.format), *also)
    if not options.quiet:
        for name, ends in ends_lines([detection.scores.provenance["sentences"]]).items():
            print(visible(f"tnkit: sentences in {name} end: {ends}"), file=sys.stderr)
