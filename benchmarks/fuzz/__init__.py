"""Fuzzing of everything that the tool reads: targets by kind of input, a world to run them in, and who judges."""
