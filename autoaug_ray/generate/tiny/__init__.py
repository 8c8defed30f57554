"""For whoever asks where the shipped models come from: how they were trained, and how good they are."""
