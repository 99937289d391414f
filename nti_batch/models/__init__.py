"""Stable Diffusion: where a model is, its weights, and the networks that the method calls."""
