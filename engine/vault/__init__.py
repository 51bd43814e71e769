"""Keys, domains, certificates: who may write and who may read."""
