"""The method: DDIM, guidance, null-text optimization of many images at once in a pool, prompt-to-prompt editing.

It imports nothing but torch. A network is any callable that fits `guidance.Predictor`.
"""
