"""What the job costs, beside what else there is: speed, network work, quality, memory, bytes."""
