"""The shipped models, for whoever asks how they were trained and how good they are."""
