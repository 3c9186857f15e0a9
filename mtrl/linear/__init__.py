"""Linear multi-task networks: whether scalarization can explore their Pareto front (Hu et al., 2023)."""
