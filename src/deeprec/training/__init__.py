"""Training of the policy: a warm start by hindsight, then reinforcement learning in stages."""
