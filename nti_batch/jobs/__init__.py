"""The Lightning side of a run: from flags to a job, and one rank from its first work unit to its exit code."""
