"""The command line: commands open, call the library, and translate errors; nothing else."""
