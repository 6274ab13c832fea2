"""Power cuts: the service starts on each state that a disk may be in after one."""
