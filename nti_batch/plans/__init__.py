"""What a run has to do: the work units of its input, and which of their records are missing. Nothing is written here."""
