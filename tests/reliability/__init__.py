"""What is tried by `make reliability`, a part in each module."""
