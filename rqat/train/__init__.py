"""Training: the optimizer that carries the latent weights, data, teacher, schedule, gate, and what is logged."""
