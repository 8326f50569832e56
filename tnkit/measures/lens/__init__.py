"""What neurons write and what states say, read in the model's own vocabulary: the logit lens and the Jacobian lens.

tn.lens.promoted(model, (12, 345)).to_frame()                          # what a neuron's value vector promotes
tn.lens.promoted(model, type1[:20], lens="jacobian").to_frame()        # by way of the layers after it
tn.lens.latent_language(model, "ja", source="it").plot()               # in which language a state says the answer
"""

from tnkit.measures.lens.jacobian import Jacobians as Jacobians
from tnkit.measures.lens.jacobian import jacobians as jacobians
from tnkit.measures.lens.latent import LatentLanguage as LatentLanguage
from tnkit.measures.lens.latent import latent_language as latent_language
from tnkit.measures.lens.written import PromotedTokens as PromotedTokens
from tnkit.measures.lens.written import frozen_norm as frozen_norm
from tnkit.measures.lens.written import promoted as promoted
