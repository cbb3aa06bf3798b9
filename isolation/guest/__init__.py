"""PID 1 of every sandbox, in C, and its build."""
