"""What may leave a sandbox: policies, slots of network, rules of the kernel, the gateway. Depends on common only."""
