"""Linear multi-task learning (Hu et al., 2023): can linear scalarization reach every Pareto optimum?

k regression targets share a linear layer of width q: target i is predicted by ``x^T W a_i``, with W ``[p, q]`` and
``a_i`` ``[q]``. All that counts is the Gramian ``G = Y'^T Y' / n`` of the best linear predictors ``Y'`` (ordinary least
squares): a choice of W is a q-dimensional subspace of their span, and what target i explains, the fall of its mean
squared error from that of predicting 0, is the squared projection of ``y'_i / sqrt(n)`` on the subspace.
"""
