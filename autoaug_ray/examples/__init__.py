"""Policies in the training loops of others, to copy from; see README.md."""
