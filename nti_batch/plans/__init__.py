"""What a run has to do: its work units, and which of their records are missing. It writes nothing."""
