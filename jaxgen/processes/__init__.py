"""What belongs to a process: what it prints, how a signal ends it, what happens to memory that it frees, and how several processes find each other at the start."""
