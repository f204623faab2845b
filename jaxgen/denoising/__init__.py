"""Diffusion without a network: schedules, exact denoisers, samplers and the likelihood of the probability-flow ODE."""
