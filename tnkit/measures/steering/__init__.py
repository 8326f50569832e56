"""Putting in what a language's neurons add, and what the model then writes: `steer`, `Steering`, `selections`."""
