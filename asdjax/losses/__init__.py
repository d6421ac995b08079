"""Losses of embeddings and labels; a loss is a configuration that makes its head.

Every loss has

- `has_classes`: whether it separates classes, by centers;
- `center_counts(without_attributes [C] bool) -> [C] int`, if it has classes: centers of each class,
  given which classes are of machines without attributes;
- `head(width, counts, *, train, rngs)`: an `nnx.Module` for embeddings `[B, width]`, and `counts`
  centers of each class. Called with `(embedding, label, weight)`, the latter two `[B, M]` (classes
  of a clip and how much of it they are), it returns the loss of each clip, `[B]`, and its cosine to
  each class, `[B, C]`, both float32; None in place of the cosines if it has no classes.
  What a step changes without a gradient is an `nnx.BatchStat`.
"""

from asdjax.losses.adacos import AdaCos
from asdjax.losses.contrastive import Contrastive
from asdjax.losses.margin import Margin

# Every loss. A new one is a file here and a word in this line.
Loss = Margin | AdaCos | Contrastive
