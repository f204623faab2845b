"""What belongs to a process: what it prints, how a signal ends it, and how several processes find each other at the start."""
