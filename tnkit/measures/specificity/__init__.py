"""Which languages activate each neuron: correlation ratio with its tests, LAPE, average precision.

captured = {name: tn.capture(model, train[name], keep=["activations"]) for name in corpus.languages}
of_ja = tn.specificity.correlation_ratio(captured, language="ja")    # Japanese against the rest
of_ja.shares(type1)                                                  # of the set and of its layers
tn.specificity.lape(captured).neurons["ja"]                          # at the captured position
tn.specificity.lape_of_tokens(model, train).neurons["ja"]            # all tokens, as Tang et al., 2024
tn.specificity.load_lape("activation_mask/llama-7b", ["en", "zh"], shape=(32, 11008))    # what their code saved
tn.specificity.average_precision(captured, "ja").top(1000)           # Kojima et al., 2024
tn.specificity.table(type1, captured).to_frame()                      # every measurement of each neuron of a set
tn.specificity.overlaps({"ja": type1_ja, "ko": type1_ko}, layers=model.early_layers).plot()
tn.specificity.moves(sets, attractions, centroids).plot()               # whose neurons move whom towards where
tn.specificity.routing(captured).concentration(type1, language="ja")    # of a model with experts

Give activations as a mapping from language to capture, with any number of sentences, at the captured position.
"""

from tnkit.measures.specificity.constancy import constant_share as constant_share
from tnkit.measures.specificity.correlation import FAMILIES as FAMILIES
from tnkit.measures.specificity.correlation import PUBLISHED_FAMILIES as PUBLISHED_FAMILIES
from tnkit.measures.specificity.correlation import Specificity as Specificity
from tnkit.measures.specificity.correlation import correlation_ratio as correlation_ratio
from tnkit.measures.specificity.entropy import ActivationEntropy as ActivationEntropy
from tnkit.measures.specificity.entropy import lape as lape
from tnkit.measures.specificity.entropy import lape_of_tokens as lape_of_tokens
from tnkit.measures.specificity.lape_files import load_lape as load_lape
from tnkit.measures.specificity.moves import Moves as Moves
from tnkit.measures.specificity.moves import moves as moves
from tnkit.measures.specificity.overlap import Overlaps as Overlaps
from tnkit.measures.specificity.overlap import overlaps as overlaps
from tnkit.measures.specificity.precision import AveragePrecision as AveragePrecision
from tnkit.measures.specificity.precision import average_precision as average_precision
from tnkit.measures.specificity.rivals import rivals as rivals
from tnkit.measures.specificity.rivals import rivals_found as rivals_found
from tnkit.measures.specificity.routing import Routing as Routing
from tnkit.measures.specificity.routing import routing as routing
from tnkit.measures.specificity.sentences import top_sentences as top_sentences
from tnkit.measures.specificity.table import NeuronTable as NeuronTable
from tnkit.measures.specificity.table import table as table
