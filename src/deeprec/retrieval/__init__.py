"""What an explorer asks: retrievers, their index, and simple baselines."""
