"""Training of the policy: SFT on demonstrations, then reinforcement learning in stages."""
