"""What belongs to a process: what it prints, how a signal ends it, the memory that it keeps, how several find each other at the start."""
