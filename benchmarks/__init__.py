"""Measurements that anyone can repeat: every figure is a ratio of things timed side by side in one run."""
