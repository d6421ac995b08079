"""From embeddings to anomaly scores; a scorer is a configuration with the method `fit`."""

from asdjax.scoring.centers import Centers
from asdjax.scoring.knn import Knn
from asdjax.scoring.mahalanobis import Mahalanobis
from asdjax.scoring.minimum import Minimum
from asdjax.scoring.mixture import Mixture
from asdjax.scoring.residual import Residual

# Every scorer of any embedding. A new one is a file here and a word in this line.
Scorer = Knn | Centers | Mixture | Mahalanobis | Residual | Minimum
