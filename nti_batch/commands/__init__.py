"""The commands of `nti-batch`, a file for each. A command's function has its flags as arguments."""
