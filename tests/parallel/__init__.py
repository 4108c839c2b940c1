"""Groups of ranks against one."""
