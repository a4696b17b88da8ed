"""Cost of programs compiled for TPUs, on a machine without one."""
