"""From audio files to batches of segments."""
