"""The method: DDIM, guidance, null-text optimization, and the pool that runs it on many images at once.

Imports torch and nothing else. A network is any callable that fits `guidance.NoisePredictor`.
"""
