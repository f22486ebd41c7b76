"""Measures over traces: one module per family. Reads `selection.TraceSource`, never a model."""
