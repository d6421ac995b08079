"""From embeddings to anomaly scores; a scorer is a configuration with the method `score`."""

from asdjax.scoring.centers import Centers
from asdjax.scoring.knn import Knn
from asdjax.scoring.mahalanobis import Mahalanobis
from asdjax.scoring.mixture import Mixture

# Every scorer of any embedding. A new one is a file here and a word in this line.
Scorer = Knn | Centers | Mixture | Mahalanobis
