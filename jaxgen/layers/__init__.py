"""What several models are built of: convolutions, masks, attention, residual blocks; causal layers for whole images and for one step."""
