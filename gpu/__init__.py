"""GPUs of this machine: what there is, who gets which, and what a sandbox needs to use one (docs/adr/0016)."""
