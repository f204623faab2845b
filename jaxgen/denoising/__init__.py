"""Diffusion without a network: schedules, exact denoisers, the variational bound, samplers, likelihoods of the probability-flow ODE."""
