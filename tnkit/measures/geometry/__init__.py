"""The spaces of languages, layer by layer: captures in, results with `to_frame()` and `plot()` out.

en, ja = tn.capture(model, test["en"]), tn.capture(model, test["ja"])   # parallel, not those that found the neurons

tn.geometry.similarity(en, ja).plot()
tn.geometry.retrieval(ja, en).best()                                    # (layer, share of sentences)
tn.geometry.pca({"en": en, "ja": ja}).plot([0, 8, 17])
tn.geometry.centroid_distances({"en": en, "ja": ja, "ko": ko}).plot(8)
"""

from tnkit.measures.geometry.components import PrincipalComponents as PrincipalComponents
from tnkit.measures.geometry.components import pca as pca
from tnkit.measures.geometry.dimension import effective_dimension as effective_dimension
from tnkit.measures.geometry.distances import CentroidDistances as CentroidDistances
from tnkit.measures.geometry.distances import centroid_distances as centroid_distances
from tnkit.measures.geometry.layers import ByLayer as ByLayer
from tnkit.measures.geometry.layers import beside as beside
from tnkit.measures.geometry.neighbours import mutual_knn as mutual_knn
from tnkit.measures.geometry.neighbours import shared_neighbours as shared_neighbours
from tnkit.measures.geometry.planes import Planes as Planes
from tnkit.measures.geometry.planes import aligned_planes as aligned_planes
from tnkit.measures.geometry.translation import alignment as alignment
from tnkit.measures.geometry.translation import hits as hits
from tnkit.measures.geometry.translation import margins as margins
from tnkit.measures.geometry.translation import mexa as mexa
from tnkit.measures.geometry.translation import retrieval as retrieval
from tnkit.measures.geometry.translation import similarity as similarity
