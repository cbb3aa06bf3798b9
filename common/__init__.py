"""What every package of the service may use: ids, the root of the errors, owned tasks. Depends on nothing of ours."""
