"""The trainer of one model, and the loop that trains adapters for many subjects at once."""
