"""Status of rollouts and of all of them together: codes of what they say, and the freeze."""
