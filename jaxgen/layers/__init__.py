"""Layers that several models use: convolutions, masks, attention, residual blocks. Causal ones have a form for whole images and one for
the sampler, which computes a row, a pixel or a place at a time from a cache; tests compare the two."""
