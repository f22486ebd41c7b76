"""Graph stores: one protocol, one module per database."""
