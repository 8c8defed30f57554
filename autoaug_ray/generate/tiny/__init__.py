"""The shipped models: how they were trained, how good they are, and their weights."""
